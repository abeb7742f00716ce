"""The host on a real API server: every status it writes passes the schemas, by real watches and real conflicts."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from host_world import LocalFakeDriver, NodeActor, NoRunner, World

from cinderblock.core.api import Attachment, Backend, Pool, StorageNode, Volume
from cinderblock.core.api.attachment import AttachmentSpec
from cinderblock.core.api.backend import BackendSpec
from cinderblock.core.api.builtin import Node
from cinderblock.core.api.meta import ObjectMeta, is_true
from cinderblock.core.api.node import StorageNodeStatus
from cinderblock.core.api.volume import Allocation, Use, VolumeSpec
from cinderblock.core.clock import SystemClock
from cinderblock.core.kube.adapter import connect
from cinderblock.core.kube.events import EventRecorder
from cinderblock.core.kube.informer import Informer
from cinderblock.core.kube.port import Conflict, ObjectNotFound
from cinderblock.core.names import FINALIZER_PROTECT
from cinderblock.core.units import GIB
from cinderblock.drivers.registry import Registry
from cinderblock.operator.engine.stores import make_stores
from cinderblock.operator.host.role import HostRole

pytestmark = pytest.mark.apiserver


class Real(World):
    """The same world on a real API server, for one node of its own."""

    def __init__(self, root: Path, kube: Any, namespace: str) -> None:
        super().__init__(root)
        self.kube = kube
        self.namespace = namespace
        self.name = namespace  # of the Node, the Backend, and the host
        self.pool = f"{namespace}-{namespace}"

    async def get(self, name: str = "v") -> Volume:
        return await self.kube.get(Volume, name, self.namespace)

    async def attachment(self, name: str) -> Attachment:
        return await self.kube.get(Attachment, name, self.namespace)

    async def change(self, read: Callable[[], Awaitable[Any]], change: Callable[[Any], Any]) -> None:
        """Write as another process does: read, change, again on a conflict."""
        while True:
            before = await read()
            try:
                await self.kube.update_status(before, before.with_(status=change(before.status)))
                return
            except Conflict:
                continue

    async def make(self, name: str, size_bytes: int = GIB) -> None:
        volume = await self.kube.create(
            Volume(
                metadata=ObjectMeta(name=name, namespace=self.namespace, finalizers=(FINALIZER_PROTECT,)),
                spec=VolumeSpec(size="1Gi", fs_type="ext4"),
            )
        )
        await self.kube.update_status(
            volume,
            volume.with_(
                status=volume.status.with_(
                    handle=volume.uid,
                    last_grant=1,
                    allocation=Allocation(
                        backend=self.name, pool=self.pool, host=self.name, size_bytes=size_bytes, grant=1
                    ),
                )
            ),
        )

    async def so(self, what: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + 30
        while not await what():
            assert time.monotonic() < deadline
            for actor in self.actors:
                await actor()
            await asyncio.sleep(0.02)

    async def nothing_left(self, kind: type[Any], name: str) -> bool:
        try:
            await self.kube.get(kind, name, self.namespace if kind.NAMESPACED else None)
        except ObjectNotFound:
            return True
        return False


class _Actor(NodeActor):
    async def step(self) -> None:
        for attachment in (
            await self.world.kube.list(Attachment, field_selector=f"spec.node={self.node}")
        ).items:
            try:
                await self._serve(attachment)
            except (Conflict, ObjectNotFound):
                continue


@pytest.fixture
async def real(apiserver: Any, tmp_path: Path) -> AsyncIterator[Real]:
    apiserver.apply_crds()
    name = f"host-{uuid.uuid4().hex[:8]}"
    apiserver.kubectl("create", "namespace", name)
    async with connect(apiserver.kubeconfig) as kube:
        world = Real(tmp_path, kube, name)
        node = await kube.create(Node(metadata=ObjectMeta(name=name, labels={"test": name})))
        facts = await kube.create(StorageNode(metadata=ObjectMeta(name=name)))
        status = StorageNodeStatus(boot_id="boot-1", node_uid=node.uid, protocols=("Fake",))
        await kube.update_status(facts, facts.with_(status=status))
        config = {
            "faults": [
                {"verb": "create", "error": "OutOfCapacity", "message": "x" * 40000, "times": 1, "skip": 1}
            ]
        }
        backend = await kube.create(
            Backend(
                metadata=ObjectMeta(name=name),
                spec=BackendSpec(driver="fake", node_selector={"test": name}, config=config),
            )
        )
        stores, clock = make_stores(), SystemClock()

        class Driver(LocalFakeDriver):
            def __init__(self, config: Any, context: Any) -> None:
                super().__init__(config, context, place=world.place)

        role = HostRole(
            kube,
            stores,
            clock,
            EventRecorder(kube, "test", clock),
            Registry.of(fake=Driver),
            name,
            name,
            tmp_path,
            NoRunner(),
        )
        informers = [
            Informer(kube, stores.volumes, field_selector=f"status.allocation.host={name}", clock=clock),
            Informer(kube, stores.attachments, namespace=name, clock=clock),
            *(
                Informer(kube, store, clock=clock)
                for store in (stores.backends, stores.pools, stores.storage_nodes, stores.nodes)
            ),
        ]
        tasks = [asyncio.ensure_future(run) for run in (*(i.run() for i in informers), role.run())]
        try:
            yield world
            await kube.delete(backend)
            await world.so(lambda: world.nothing_left(Pool, world.pool))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await kube.delete(facts)
            await kube.delete(node)
    apiserver.kubectl("delete", "namespace", name, "--wait=false")


async def test_a_whole_life_with_a_refusal_and_a_loss(real: Real) -> None:
    actor = _Actor(real, real.name)
    real.actors.append(actor.step)
    await real.so(lambda: real.pool_ready(real.pool))
    await real.make("v")
    await real.so(real.ready)
    await real.kube.create(
        Attachment(
            metadata=ObjectMeta(name="a", namespace=real.namespace),
            spec=AttachmentSpec(volume="v", node=real.name, use=Use.MOUNT),
        )
    )
    await real.so(lambda: _mounted(actor))
    await real.change(real.get, lambda s: s.with_(allocation=s.allocation.with_(size_bytes=2 * GIB)))
    await real.so(lambda: _connection(real, 2 * GIB))

    await real.make("refused")
    await real.so(lambda: _refused(real))

    await real.kube.delete(await real.attachment("a"))
    await real.so(lambda: real.nothing_left(Attachment, "a"))
    assert not (await real.get()).status.attachments

    volume = await real.get()
    real.objects.pop(f"{volume.uid}-1")
    await real.change(real.get, lambda s: s.with_(allocation=s.allocation.with_(size_bytes=3 * GIB)))
    await real.so(lambda: _lost(real))

    for name in ("v", "refused"):
        await real.kube.delete(await real.get(name))
        await real.so(lambda name=name: real.nothing_left(Volume, name))  # type: ignore[misc]
    assert not real.objects


async def _mounted(actor: NodeActor) -> bool:
    return "v" in actor.mounted


async def _connection(real: Real, size_bytes: int) -> bool:
    connection = (await real.attachment("a")).status.connection
    return connection is not None and connection.size_bytes == size_bytes


async def _refused(real: Real) -> bool:
    refusal = (await real.get("refused")).status.refusal
    return refusal is not None and len(refusal.message) == 1024


async def _lost(real: Real) -> bool:
    return is_true((await real.get()).status.conditions, "Lost")
