"""A leader on an API server in memory, with hosts that do what a test wants of them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from fake_clock import FakeClock, settle
from fake_kube import FakeKube

from cinderblock.core.api import Attachment, Backend, Pool, Volume, VolumeType
from cinderblock.core.api.attachment import AttachmentSpec
from cinderblock.core.api.backend import POOL_READY, BackendSpec, PoolSpec, VolumeTypeSpec
from cinderblock.core.api.builtin import Event, Lease, LeaseSpec, Node
from cinderblock.core.api.meta import ObjectMeta, set_condition
from cinderblock.core.api.volume import PROVISIONED, READY, Refusal, VolumePhase, VolumeSpec
from cinderblock.core.errors import GrpcCode
from cinderblock.core.kube.events import EventRecorder
from cinderblock.core.kube.informer import Informer
from cinderblock.core.kube.port import KubeUnavailable, ObjectNotFound
from cinderblock.core.names import FINALIZER_PROTECT, host_lease, host_name
from cinderblock.core.units import GIB
from cinderblock.drivers.fake import FakeDriver
from cinderblock.drivers.registry import Registry
from cinderblock.operator.control.role import ControlRole
from cinderblock.operator.engine.stores import make_stores

RELEASE = "cinderblock-system"


class LocalDriver(FakeDriver):
    """The fake driver as one whose pools nodes own."""

    node_local = True


class Mortal:
    """The port of one process, which dies at a given write: before it lands, or after with the answer lost.

    `only` = the kinds that count. A dead process sends nothing and hears nothing.
    """

    def __init__(self, kube: FakeKube, die_at: int | None = None, *, landed: bool = False) -> None:
        self._kube = kube
        self._left = die_at
        self._landed = landed
        self.dead = asyncio.Event()
        self.lost_answers = 0  # so many writes land, and their answer is lost
        self.refused_writes = 0  # so many writes fail without landing, undecided for the caller

    async def _dies(self) -> None:
        self.dead.set()
        await asyncio.Event().wait()

    async def _write(self, verb: str, *args: Any) -> Any:
        if self.dead.is_set():
            await self._dies()
        if self.refused_writes:
            self.refused_writes -= 1
            raise KubeUnavailable("no answer")
        fatal = False
        if self._left is not None and type(args[0]) is not Event:
            fatal = self._left == 0
            self._left -= 1
        if fatal and not self._landed:
            await self._dies()
        before = len(self._kube.writes)
        answer = await getattr(self._kube, verb)(*args)
        if fatal:
            await self._dies()
        if self.lost_answers and len(self._kube.writes) > before:
            self.lost_answers -= 1
            raise KubeUnavailable("the answer was lost")
        return answer

    async def create(self, obj):
        return await self._write("create", obj)

    async def update(self, before, after):
        return await self._write("update", before, after)

    async def update_status(self, before, after):
        return await self._write("update_status", before, after)

    async def delete(self, obj):
        return await self._write("delete", obj)

    async def get(self, kind, name, namespace=None):
        return await self._kube.get(kind, name, namespace)

    async def list(self, kind, **selectors):
        return await self._kube.list(kind, **selectors)

    def watch(self, kind, **more):
        return self._kube.watch(kind, **more)


class Leader:
    """One process: its own caches, its own term."""

    def __init__(self, kube: FakeKube, clock: FakeClock, epoch: int, port: Mortal | None = None) -> None:
        self.port = port or Mortal(kube)
        self.stores = make_stores()
        self.role = ControlRole(
            self.port,
            self.stores,
            clock,
            epoch,
            EventRecorder(self.port, "leader", clock),
            Registry.of(fake=FakeDriver, local=LocalDriver),
            RELEASE,
        )
        self._informers = [Informer(kube, store, clock=clock) for store in self.stores.each()]
        self._feeds: list[asyncio.Task[None]] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._feeds = [asyncio.create_task(i.run()) for i in self._informers]
        self._task = asyncio.create_task(self.role.run())
        await settle()

    async def stop(self) -> None:
        for task in (*([self._task] if self._task else []), *self._feeds):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def deafen(self) -> None:
        """Its watches bring nothing any more."""
        for task in self._feeds:
            task.cancel()

    async def settle(self) -> None:
        """Until it has nothing to do now, or is dead."""
        for _ in range(40):
            await settle()
            if self.port.dead.is_set():
                return
            if self._task is not None and self._task.done():
                self._task.result()
            if self.role.started.is_set():
                await self.role.wait_idle()


class Bench:
    """`async with Bench() as bench`: a leader of epoch 1 runs until the end of the block."""

    def __init__(self) -> None:
        self.kube = FakeKube()
        self.clock = FakeClock()
        self.leader = Leader(self.kube, self.clock, 1)
        self._beats = 0

    async def __aenter__(self) -> Bench:
        await self.leader.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leader.stop()

    async def succeed(self, epoch: int, port: Mortal | None = None) -> None:
        """The leader is gone, another process leads."""
        await self.leader.stop()
        self.leader = Leader(self.kube, self.clock, epoch, port)
        await self.leader.start()

    async def settle(self) -> None:
        await self.leader.settle()

    async def wait(self, seconds: float, *, alive: tuple[str, ...] = ("operator",)) -> None:
        """Let time pass in which these hosts renew their Leases."""
        passed = 0.0
        while passed < seconds:
            step = min(5.0, seconds - passed)
            passed += step
            for host in alive:
                await self.beat(host)
            await self.clock.advance(step)
            await self.settle()

    async def beat(self, host: str) -> None:
        self._beats += 1
        spec = LeaseSpec(holder_identity=host, renew_time=str(self._beats))
        try:
            lease = await self.kube.get(Lease, host_lease(host), RELEASE)
        except ObjectNotFound:
            meta = ObjectMeta(name=host_lease(host), namespace=RELEASE)
            await self.kube.create(Lease(metadata=meta, spec=spec))
        else:
            await self.kube.update(lease, lease.with_(spec=spec))

    # objects ---------------------------------------------------------------------------------------------
    async def add_backend(self, name: str = "b", **spec: Any) -> Backend:
        spec = {"driver": "fake", **spec}
        return await self.kube.create(Backend(metadata=ObjectMeta(name=name), spec=BackendSpec(**spec)))

    async def add_pool(
        self,
        name: str,
        *,
        total: int = 100,
        free: int | None = None,
        node: str | None = None,
        backend: str = "b",
        ready: bool = True,
        **status: Any,
    ) -> Pool:
        host = host_name(node) if node else "operator"
        made = await self.kube.create(
            Pool(metadata=ObjectMeta(name=name), spec=PoolSpec(backend=backend, host=host, node=node))
        )
        after = made.status.with_(
            total_bytes=total * GIB,
            free_bytes=(total if free is None else free) * GIB,
            **{"over_subscription_ratio": "1", "physical_floor_percent": 0, **status},
            conditions=set_condition(
                (), POOL_READY, ready, reason="Opened", generation=1, now=self.clock.now()
            ),
        )
        return await self.kube.update_status(made, made.with_(status=after))

    async def add_type(self, name: str = "standard", *, default: bool = True, **spec: Any) -> VolumeType:
        body = VolumeTypeSpec(is_default=default, **spec)
        return await self.kube.create(VolumeType(metadata=ObjectMeta(name=name), spec=body))

    async def add_node(self, name: str) -> Node:
        return await self.kube.create(Node(metadata=ObjectMeta(name=name)))

    async def add_volume(
        self, name: str, size: str = "10Gi", *, namespace: str = "ns", **spec: Any
    ) -> Volume:
        meta = ObjectMeta(name=name, namespace=namespace, finalizers=(FINALIZER_PROTECT,))
        return await self.kube.create(Volume(metadata=meta, spec=VolumeSpec(size=size, **spec)))

    async def add_attachment(self, name: str, volume: str, node: str, **more: Any) -> Attachment:
        meta = ObjectMeta(name=name, namespace=more.pop("namespace", "ns"), finalizers=(FINALIZER_PROTECT,))
        return await self.kube.create(
            Attachment(metadata=meta, spec=AttachmentSpec(volume=volume, node=node, **more))
        )

    async def standard(self, pools: int = 1, **pool: Any) -> None:
        """One Backend, pools p1..pn, one default type."""
        await self.add_backend()
        await self.add_type()
        for number in range(1, pools + 1):
            await self.add_pool(f"p{number}", **pool)
        await self.settle()

    async def volume(self, name: str, namespace: str = "ns") -> Volume:
        return await self.kube.get(Volume, name, namespace)

    async def resize(self, name: str, size: str) -> None:
        volume = await self.volume(name)
        await self.kube.update(volume, volume.with_(spec=volume.spec.with_(size=size)))
        await self.settle()

    async def events(self) -> list[str]:
        return sorted(e.reason for e in (await self.kube.list(Event)).items)

    # hosts -----------------------------------------------------------------------------------------------
    async def make(self, name: str, namespace: str = "ns") -> Volume:
        """The host made it: Available."""
        volume = await self.volume(name, namespace)
        assert volume.status.allocation is not None
        conditions = volume.status.conditions
        for type_, reason in ((PROVISIONED, "Created"), (READY, "Available")):
            conditions = set_condition(
                conditions, type_, True, reason=reason, generation=1, now=self.clock.now()
            )
        status = volume.status.with_(
            capacity_bytes=volume.status.allocation.size_bytes,
            conditions=conditions,
            phase=VolumePhase.AVAILABLE,
        )
        await self.kube.update_status(volume, volume.with_(status=status))
        await self.settle()
        return await self.volume(name, namespace)

    async def refuse(self, name: str, reason: str = "BackendFault") -> Volume:
        """The host of the current grant cleaned up and refuses it."""
        volume = await self.volume(name)
        assert volume.status.allocation is not None
        refusal = Refusal(
            grant=volume.status.allocation.grant,
            reason=reason,
            message="the disk said no",
            grpc_code=GrpcCode.INTERNAL,
            at=self.clock.now(),
        )
        await self.kube.update_status(volume, volume.with_(status=volume.status.with_(refusal=refusal)))
        await self.settle()
        return await self.volume(name)

    async def gone(self, name: str, namespace: str = "ns") -> bool:
        try:
            await self.volume(name, namespace)
        except ObjectNotFound:
            return True
        return False
