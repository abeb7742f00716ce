"""The CSI controller together with the real leader, the real volume host and the fake driver.

Only the API server is the one in memory, and the node's agent is played by a few lines that let go when asked.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from csi_rig import RELEASE, Code, block, create_request, eventually, mount, refused
from fake_kube import FakeKube
from prometheus_client import CollectorRegistry

from cinderblock.core.api.attachment import Attachment
from cinderblock.core.api.backend import Backend, BackendSpec, VolumeType, VolumeTypeSpec
from cinderblock.core.api.builtin import Node
from cinderblock.core.api.meta import ObjectMeta, is_true
from cinderblock.core.api.node import StorageNode, StorageNodeStatus
from cinderblock.core.api.volume import Volume
from cinderblock.core.clock import SystemClock
from cinderblock.core.kube.events import EventRecorder
from cinderblock.core.kube.informer import Informer
from cinderblock.core.kube.port import Conflict, ObjectNotFound
from cinderblock.core.process import SystemRunner
from cinderblock.core.units import GIB
from cinderblock.csi.controller_main import controller
from cinderblock.csi.gateway.controller import ControllerGateway
from cinderblock.csi.pb import csi_pb2, csi_pb2_grpc
from cinderblock.drivers.registry import Registry
from cinderblock.operator.control.role import ControlRole
from cinderblock.operator.engine.stores import make_stores
from cinderblock.operator.host.role import HostRole


class World:
    def __init__(self, kube: FakeKube, stub: Any, gateway: ControllerGateway) -> None:
        self.kube, self.stub, self.gateway = kube, stub, gateway

    async def volumes(self) -> list[Volume]:
        return list((await self.kube.list(Volume)).items)


async def agent(kube: FakeKube) -> None:
    """Lets go of everything that is being detached."""
    async for event in kube.watch(Attachment, resource_version="0"):
        seen = event.object
        if not seen.deleting or seen.status.released >= seen.status.generation:
            continue
        with contextlib.suppress(Conflict, ObjectNotFound):
            fresh = await kube.get(Attachment, seen.name, seen.namespace)
            after = fresh.status.with_(released=fresh.status.generation)
            await kube.update_status(fresh, fresh.with_(status=after))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    kube, clock, stores, registry = FakeKube(), SystemClock(), make_stores(), Registry.load()
    for name in ("n1", "n2"):
        node = await kube.create(Node(metadata=ObjectMeta(name=name)))
        made = await kube.create(StorageNode(metadata=ObjectMeta(name=name)))
        facts = StorageNodeStatus(node_uid=node.uid, boot_id="b", protocols=("Fake", "Local"))
        await kube.update_status(made, made.with_(status=facts))
    await kube.create(VolumeType(metadata=ObjectMeta(name="default"), spec=VolumeTypeSpec(is_default=True)))
    await kube.create(
        Backend(
            metadata=ObjectMeta(name="fake"),
            spec=BackendSpec(driver="fake", config={"totalSize": "100Gi"}, over_subscription_ratio="1"),
        )
    )
    recorder = EventRecorder(kube, "test", clock)
    leader = ControlRole(kube, stores, clock, 1, recorder, registry, RELEASE)
    host = HostRole(kube, stores, clock, recorder, registry, "operator", None, tmp_path, SystemRunner())
    running = [Informer(kube, store, clock=clock).run() for store in stores.each()]
    tasks = [asyncio.create_task(work) for work in (*running, leader.run(), host.run(), agent(kube))]
    path = tmp_path / "csi.sock"
    try:
        async with (
            controller(kube, path, RELEASE, CollectorRegistry(), clock) as gateway,
            grpc.aio.insecure_channel(f"unix:{path}") as channel,
        ):
            pools = gateway.caches.pools.store
            await eventually(lambda: any(is_true(p.status.conditions, "Ready") for p in pools.all()), 10)
            yield World(kube, csi_pb2_grpc.ControllerStub(channel), gateway)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def publish(world: World, handle: str, node: str, capability: Any = None) -> Any:
    return world.stub.ControllerPublishVolume(
        csi_pb2.ControllerPublishVolumeRequest(
            volume_id=handle, node_id=node, volume_capability=capability or mount()
        )
    )


def unpublish(world: World, handle: str, node: str) -> Any:
    return world.stub.ControllerUnpublishVolume(
        csi_pb2.ControllerUnpublishVolumeRequest(volume_id=handle, node_id=node)
    )


async def test_the_life_of_a_volume(world: World) -> None:
    answers = await asyncio.gather(
        *(world.stub.CreateVolume(create_request(f"v-{i % 5}")) for i in range(20))
    )
    handles = sorted({a.volume.volume_id for a in answers})
    assert len(handles) == 5
    handle = handles[0]
    await publish(world, handle, "n1")
    code, message = await refused(publish(world, handle, "n2"))
    assert code is Code.FAILED_PRECONDITION
    assert "n1" in message
    grown = await world.stub.ControllerExpandVolume(
        csi_pb2.ControllerExpandVolumeRequest(
            volume_id=handle, capacity_range=csi_pb2.CapacityRange(required_bytes=2 * GIB)
        )
    )
    assert grown.capacity_bytes == 2 * GIB
    code, _ = await refused(world.stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=handle)))
    assert code is Code.FAILED_PRECONDITION
    await unpublish(world, handle, "n1")
    await unpublish(world, handle, "")
    capacity = await world.stub.GetCapacity(csi_pb2.GetCapacityRequest())
    assert capacity.available_capacity == 94 * GIB
    for one in handles:
        await world.stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=one))
    assert await world.volumes() == []


async def test_two_nodes_at_once_never_both_win(world: World) -> None:
    answer = await world.stub.CreateVolume(create_request())
    handle = answer.volume.volume_id
    results = await asyncio.gather(
        publish(world, handle, "n1"), publish(world, handle, "n2"), return_exceptions=True
    )
    errors = [r for r in results if isinstance(r, grpc.aio.AioRpcError)]
    assert [e.code() for e in errors] == [Code.FAILED_PRECONDITION]
    await unpublish(world, handle, "")
    assert (await world.kube.list(Attachment)).items == []


async def test_a_shared_block_volume_is_on_both_nodes(world: World) -> None:
    shared = block("MULTI_NODE_MULTI_WRITER")
    answer = await world.stub.CreateVolume(create_request(volume_capabilities=[shared]))
    await publish(world, answer.volume.volume_id, "n1", shared)
    await publish(world, answer.volume.volume_id, "n2", shared)
    listed = await world.stub.ListVolumes(csi_pb2.ListVolumesRequest())
    assert sorted(listed.entries[0].status.published_node_ids) == ["n1", "n2"]


async def test_beyond_every_pool_leaves_nothing(world: World) -> None:
    code, message = await refused(world.stub.CreateVolume(create_request(size_bytes=101 * GIB)))
    assert code is Code.RESOURCE_EXHAUSTED
    assert message
    assert await world.volumes() == []


async def test_an_unknown_type_is_asked_again_and_works_once_it_is_there(world: World) -> None:
    request = create_request(parameters={"volumeType": "gold"})
    code, message = await refused(world.stub.CreateVolume(request))
    assert code is Code.UNAVAILABLE
    assert "gold" in message
    await world.kube.create(VolumeType(metadata=ObjectMeta(name="gold")))

    async def created() -> Any:
        while True:
            try:
                return await world.stub.CreateVolume(request)
            except grpc.aio.AioRpcError as error:
                assert error.code() is Code.UNAVAILABLE
                await asyncio.sleep(0.02)

    await asyncio.wait_for(created(), 10)
    assert len(await world.volumes()) == 1


async def test_an_expansion_beyond_the_pool_says_so_and_can_be_lowered(world: World) -> None:
    answer = await world.stub.CreateVolume(create_request())

    def expand(size_bytes: int) -> Any:
        return world.stub.ControllerExpandVolume(
            csi_pb2.ControllerExpandVolumeRequest(
                volume_id=answer.volume.volume_id,
                capacity_range=csi_pb2.CapacityRange(required_bytes=size_bytes),
            )
        )

    code, _ = await refused(expand(500 * GIB))
    assert code is Code.RESOURCE_EXHAUSTED
    assert (await expand(3 * GIB)).capacity_bytes == 3 * GIB
