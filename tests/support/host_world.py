"""A volume host in a small world: fake API server, fake backend, a clock turned by hand, a leader and a node to play.

A host can be killed at any effect: from there on each of its effects hangs for ever, as after kill -9; a new host
on the same API server and backend then shows what is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from fake_clock import FakeClock, settle
from fake_kube import FakeKube
from prometheus_client import CollectorRegistry

from cinderblock.core.api import Attachment, Backend, Pool, StorageNode, Volume
from cinderblock.core.api.attachment import AttachmentSpec, Formatted, Probe
from cinderblock.core.api.backend import BackendSpec
from cinderblock.core.api.builtin import Node
from cinderblock.core.api.meta import ObjectMeta, find_condition, is_true
from cinderblock.core.api.node import StorageNodeStatus
from cinderblock.core.api.volume import Allocation, FilesystemState, Use, VolumePhase, VolumeSpec
from cinderblock.core.kube.events import EventRecorder
from cinderblock.core.kube.informer import Informer
from cinderblock.core.kube.port import Conflict, ObjectNotFound
from cinderblock.core.names import FINALIZER_PROTECT, pool_name
from cinderblock.core.process import Result
from cinderblock.core.units import GIB, parse_quantity
from cinderblock.drivers.base import DriverConfig, DriverContext, VolumeRef
from cinderblock.drivers.fake import FakeDriver, FakeState
from cinderblock.drivers.fake.state import FakeVolume, MemoryPlace
from cinderblock.drivers.registry import Registry
from cinderblock.operator.engine.stores import Stores, make_stores
from cinderblock.operator.host.metrics import PrometheusHostMetrics
from cinderblock.operator.host.role import HostRole

T = TypeVar("T")
NS = "default"


class NoRunner:
    async def run(self, argv: Any, **_: Any) -> Result:
        raise AssertionError(f"no program is started here: {argv}")


class LocalFakeDriver(FakeDriver):
    """The fake backend as one that lives on a node."""

    node_local = True


class OfflineFakeDriver(FakeDriver):
    """The fake backend as one that extends detached volumes only."""

    online_extend = False


class Life:
    """One process's life: counts its effects and ends it at the one that was chosen."""

    def __init__(self, *, die_at: int | None = None) -> None:
        self.effects = 0
        self.die_at = die_at
        self.dead = False
        self.log: list[str] = []

    async def effect(self, what: str, do: Callable[[], Awaitable[T]]) -> T:
        """Two moments of death: before the effect, and after it with the answer lost."""
        await self._moment()
        result = await do()
        self.log.append(what)
        await self._moment()
        return result

    async def alive(self) -> None:
        if self.dead:
            await asyncio.Event().wait()

    async def _moment(self) -> None:
        self.effects += 1
        self.dead = self.dead or self.effects == self.die_at
        await self.alive()


class MortalKube:
    """The API server as one process sees it."""

    def __init__(self, kube: FakeKube, life: Life) -> None:
        self._kube = kube
        self._life = life

    async def get(self, kind: Any, name: str, namespace: str | None = None) -> Any:
        await self._life.alive()
        return await self._kube.get(kind, name, namespace)

    async def list(self, kind: Any, **selectors: Any) -> Any:
        await self._life.alive()
        return await self._kube.list(kind, **selectors)

    def watch(self, kind: Any, **selectors: Any) -> AsyncIterator[Any]:
        return self._kube.watch(kind, **selectors)

    async def create(self, obj: Any) -> Any:
        return await self._life.effect(f"create {obj.KIND}", lambda: self._kube.create(obj))

    async def update(self, before: Any, after: Any) -> Any:
        return await self._life.effect(f"update {before.KIND}", lambda: self._kube.update(before, after))

    async def update_status(self, before: Any, after: Any) -> Any:
        return await self._life.effect(
            f"status {before.KIND}", lambda: self._kube.update_status(before, after)
        )

    async def delete(self, obj: Any, *, unchanged: bool = False) -> None:
        await self._life.effect(f"delete {obj.KIND}", lambda: self._kube.delete(obj, unchanged=unchanged))


class MortalPlace:
    def __init__(self, place: MemoryPlace, life: Life) -> None:
        self._place = place
        self._life = life

    async def transact(self, change: Callable[[FakeState], T]) -> T:
        return await self._life.effect("driver", lambda: self._place.transact(change))


class World:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.kube = FakeKube()
        self.metrics = CollectorRegistry()
        self.clock = FakeClock()
        self.place = MemoryPlace()
        self.life = Life()
        self.stores: Stores = make_stores()
        self.role: HostRole | None = None
        self.driver_class: type[FakeDriver] = FakeDriver
        self.actors: list[Callable[[], Awaitable[None]]] = []

    # the host --------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def host(
        self, host: str = "operator", node: str | None = None, *, die_at: int | None = None
    ) -> AsyncIterator[HostRole]:
        """A living host process with its informers."""
        self.life = life = Life(die_at=die_at)
        self.metrics = CollectorRegistry()
        kube = MortalKube(self.kube, life)
        self.stores = stores = make_stores()
        informers = [
            Informer(self.kube, store, clock=self.clock)
            for store in stores.each()
            if store not in (stores.snapshots, stores.volume_types, stores.persistent_volumes)
        ]

        class Driver(self.driver_class):  # type: ignore[name-defined,misc]
            def __init__(driver, config: DriverConfig, context: DriverContext) -> None:
                super().__init__(config, context, place=MortalPlace(self.place, life))

        role = HostRole(
            kube,
            stores,
            self.clock,
            EventRecorder(kube, "test", self.clock),
            Registry.of(fake=Driver),
            host,
            node,
            self.root,
            NoRunner(),
            release_namespace="release",
            host_metrics=PrometheusHostMetrics(self.metrics),
        )
        self.role = role
        tasks = [asyncio.ensure_future(run) for run in (*(i.run() for i in informers), role.run())]
        self.role_task = tasks[-1]
        try:
            yield role
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def until(
        self, what: Callable[[], Awaitable[bool]], *, seconds: float = 300.0, step: float = 0.25
    ) -> None:
        """Let time pass until this is so."""
        passed = 0.0
        while True:
            await settle(60)
            for actor in self.actors:
                await actor()
            if await what():
                return
            if self.role_task.done():
                self.role_task.result()
            assert passed < seconds, f"not so after {passed} s; effects: {self.life.log[-20:]}"
            await self.clock.advance(step)
            passed += step
            step = min(step * 1.2, 5.0)

    async def until_dead(self) -> bool:
        """Run until the host died; False when it got through everything without."""
        for _ in range(60):
            await settle(60)
            for actor in self.actors:
                await actor()
            if self.life.dead:
                return True
            await self.clock.advance(0.5)
        return False

    async def quiet(self, seconds: float = 0.0) -> None:
        for _ in range(5):
            await settle(80)
        if seconds:
            await self.clock.advance(seconds)

    # objects ---------------------------------------------------------------------------------------------
    async def backend(self, name: str = "b", **spec: Any) -> Backend:
        return await self.kube.create(
            Backend(
                metadata=ObjectMeta(name=name, finalizers=(FINALIZER_PROTECT,)),
                spec=BackendSpec(**{"driver": "fake", **spec}),
            )
        )

    async def configure(self, name: str, **config: Any) -> None:
        backend = await self.kube.get(Backend, name)
        await self.kube.update(backend, backend.with_(spec=backend.spec.with_(config=config)))

    async def node(self, name: str, labels: dict[str, str] | None = None) -> Node:
        node = await self.kube.create(Node(metadata=ObjectMeta(name=name, labels=labels or {})))
        facts = await self.kube.create(StorageNode(metadata=ObjectMeta(name=name)))
        status = StorageNodeStatus(boot_id="boot-1", node_uid=node.uid, protocols=("Fake",))
        await self.kube.update_status(facts, facts.with_(status=status))
        return node

    async def volume(self, name: str = "v", size: str = "1Gi", **spec: Any) -> Volume:
        return await self.kube.create(
            Volume(
                metadata=ObjectMeta(name=name, namespace=NS, finalizers=(FINALIZER_PROTECT,)),
                spec=VolumeSpec(size=size, **spec),
            )
        )

    async def grant(
        self, name: str = "v", *, backend: str = "b", host: str = "operator", node: str | None = None
    ) -> Volume:
        """What the leader writes for a placement."""
        volume = await self.get(name)
        status = volume.status
        grant = status.last_grant + 1
        return await self.kube.update_status(
            volume,
            volume.with_(
                status=status.with_(
                    handle=status.handle or volume.uid,
                    last_grant=grant,
                    phase=VolumePhase.SCHEDULED,
                    allocation=Allocation(
                        backend=backend,
                        pool=pool_name(backend, node, None),
                        host=host,
                        size_bytes=parse_quantity(volume.spec.size),
                        grant=grant,
                    ),
                )
            ),
        )

    async def revoke(self, name: str = "v") -> None:
        volume = await self.get(name)
        await self.kube.update_status(volume, volume.with_(status=volume.status.with_(allocation=None)))

    async def resize(self, size: str, name: str = "v") -> None:
        volume = await self.get(name)
        allocation = volume.status.allocation
        assert allocation is not None
        status = volume.status.with_(allocation=allocation.with_(size_bytes=parse_quantity(size)))
        await self.kube.update_status(volume, volume.with_(status=status))

    async def available(self, name: str = "v", **spec: Any) -> Volume:
        """A Volume that this host made, to start from."""
        await self.volume(name, **spec)
        await self.grant(name)
        await self.until(lambda: self.ready(name))
        return await self.get(name)

    async def attach(self, node: str, *, volume: str = "v", name: str = "", **spec: Any) -> Attachment:
        return await self.kube.create(
            Attachment(
                metadata=ObjectMeta(name=name or f"{volume}-{node}", namespace=NS),
                spec=AttachmentSpec(volume=volume, node=node, **spec),
            )
        )

    async def get(self, name: str = "v") -> Volume:
        return await self.kube.get(Volume, name, NS)

    async def attachment(self, name: str) -> Attachment:
        return await self.kube.get(Attachment, name, NS)

    async def remove(self, name: str = "v") -> None:
        await self.kube.delete(await self.get(name))

    async def detach(self, name: str) -> None:
        await self.kube.delete(await self.attachment(name))

    async def force_away(self, name: str) -> None:
        """An Attachment whose finalizer somebody took off by hand."""
        await self.detach(name)
        attachment = await self.attachment(name)
        await self.kube.update(attachment, attachment.without_finalizer(FINALIZER_PROTECT))

    # questions -------------------------------------------------------------------------------------------
    async def ready(self, name: str = "v") -> bool:
        return is_true((await self.get(name)).status.conditions, "Ready")

    async def ready_reason(self, name: str = "v") -> str:
        found = find_condition((await self.get(name)).status.conditions, "Ready")
        return found.reason if found is not None else ""

    async def gone(self, name: str = "v", kind: type[Any] = Volume) -> bool:
        try:
            await self.kube.get(kind, name, NS if kind.NAMESPACED else None)
        except ObjectNotFound:
            return True
        return False

    async def is_(self, name: str, type_: str, status: bool = True) -> bool:
        found = find_condition((await self.attachment(name)).status.conditions, type_)
        return found is not None and (found.status == "True") is status

    async def attachment_error(self, name: str, reason: str) -> bool:
        error = (await self.attachment(name)).status.last_error
        return error is not None and error.reason == reason

    async def refused_for(self, name: str, reason: str) -> bool:
        """Whether the Attachment is not admitted, for this reason."""
        found = find_condition((await self.attachment(name)).status.conditions, "Admitted")
        return found is not None and found.status == "False" and found.reason == reason

    async def pool_ready(self, name: str = "b") -> bool:
        try:
            return is_true((await self.kube.get(Pool, name)).status.conditions, "Ready")
        except ObjectNotFound:
            return False

    async def events(self) -> set[str]:
        from cinderblock.core.api.builtin import Event

        return {e.reason for e in (await self.kube.list(Event)).items}

    @property
    def objects(self) -> dict[str, FakeVolume]:
        return self.place.state.volumes

    @property
    def effects(self) -> dict[str, int]:
        return self.place.state.effects

    def own(self, handle: str, grant: int, *, sealed: bool = False, size_bytes: int = GIB) -> VolumeRef:
        """Put an object into the backend behind the host's back."""
        ref = VolumeRef(handle, grant)
        self.objects[ref.object_name] = FakeVolume(
            handle=handle, grant=grant, pool=None, size_bytes=size_bytes, thick=False, sealed=sealed
        )
        return ref


class NodeActor:
    """Plays the node's side of docs/protocol.md for one node, one step at a time."""

    def __init__(self, world: World, node: str, *, content: dict[str, str] | None = None) -> None:
        self.world = world
        self.node = node
        self.content = content if content is not None else {}  # volume name -> filesystem on the device
        self.mounted: set[str] = set()
        self.formats: list[str] = []
        self.lets_go = True
        self.cut_off_with = ""  # a mkfs dies half-way and leaves what looks like this
        self.half_made: set[str] = set()

    async def step(self) -> None:
        kube = self.world.kube
        for attachment in (await kube.list(Attachment)).items:
            if attachment.spec.node != self.node:
                continue
            try:
                await self._serve(attachment)
            except (Conflict, ObjectNotFound):
                continue

    async def _serve(self, attachment: Attachment) -> None:
        kube, status, spec = self.world.kube, attachment.status, attachment.spec
        connection = status.connection
        if connection is None or connection.generation != status.generation:
            return
        if attachment.deleting:
            if self.lets_go and status.released < status.generation:
                self.mounted.discard(spec.volume)
                after = status.with_(released=status.generation, device=None, device_bytes=None)
                await kube.update_status(attachment, attachment.with_(status=after))
            return
        after = status.with_(device=f"/dev/cinderblock/{attachment.uid}", device_bytes=connection.size_bytes)
        if spec.use is Use.MOUNT:
            after = await self._mount(attachment, after)
        if after != status:
            await kube.update_status(attachment, attachment.with_(status=after))

    async def _mount(self, attachment: Attachment, status: Any) -> Any:
        spec, generation = attachment.spec, status.generation
        volume = await self.world.get(spec.volume)
        filesystem, permit = volume.status.filesystem, status.format_permit
        if filesystem is not None and filesystem.state is FilesystemState.FORMATTED:
            assert spec.volume not in self.half_made, "half a filesystem is mounted"
            self.mounted.add(spec.volume)
            return status
        wanted = spec.fs_type or (filesystem.type if filesystem is not None else "") or "ext4"
        if status.probe is None or status.probe.generation != generation:
            found = self.content.get(spec.volume, "Blank")
            return status.with_(probe=Probe(wanted_type=wanted, found=found, generation=generation))
        if permit is not None and permit.generation == generation and status.formatted is None:
            assert filesystem is not None
            assert filesystem.state is FilesystemState.FORMATTING
            assert spec.volume not in self.content.keys() - self.half_made, "formatted over data"
            if self.cut_off_with:
                self.content[spec.volume] = self.cut_off_with
                self.half_made.add(spec.volume)
                return status
            self.half_made.discard(spec.volume)
            self.content[spec.volume] = permit.type
            self.formats.append(spec.volume)
            return status.with_(formatted=Formatted(type=permit.type, generation=generation))
        return status


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)
