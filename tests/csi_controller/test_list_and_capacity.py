"""ListVolumes, GetCapacity, capabilities, Identity."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from csi_rig import Code, Rig, create_request, eventually, refused, running
from google.protobuf.wrappers_pb2 import BoolValue

from cinderblock.core.api.backend import Provisioning, VolumeType, VolumeTypeSpec
from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.clock import SystemClock
from cinderblock.core.names import TOPOLOGY_NODE
from cinderblock.core.units import GIB
from cinderblock.csi.controller_main import health_of
from cinderblock.csi.pb import csi_pb2, csi_pb2_grpc


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as rig:
        yield rig


async def create_many(rig: Rig, count: int) -> list[str]:
    answers = [await rig.stub.CreateVolume(create_request(f"vol-{i}")) for i in range(count)]
    return [a.volume.volume_id for a in answers]


def list_(rig: Rig, token: str = "", max_entries: int = 0) -> Any:
    return rig.stub.ListVolumes(csi_pb2.ListVolumesRequest(starting_token=token, max_entries=max_entries))


def ids(page: Any) -> list[str]:
    return [entry.volume.volume_id for entry in page.entries]


async def test_everything_comes_at_once_where_no_page_is_asked(rig: Rig) -> None:
    handles = await create_many(rig, 5)
    page = await list_(rig)
    assert sorted(ids(page)) == sorted(handles)
    assert page.next_token == ""
    assert all(entry.HasField("status") for entry in page.entries)
    await rig.stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=handles[0]))
    assert sorted(ids(await list_(rig))) == sorted(handles[1:])


async def test_pages_hold_when_volumes_come_and_go_between_them(rig: Rig) -> None:
    handles = sorted(await create_many(rig, 7))
    first = await list_(rig, max_entries=3)
    assert ids(first) == handles[:3]
    # the volume that the token points at goes, and so does one of the next page
    for gone in (handles[2], handles[4]):
        await rig.stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=gone))
    second = await list_(rig, first.next_token, 2)
    assert ids(second) == [handles[3], handles[5]]
    third = await list_(rig, second.next_token, 2)
    assert ids(third) == [handles[6]]
    assert third.next_token == ""


async def test_bad_pages(rig: Rig) -> None:
    assert (await refused(list_(rig, "invalid-token")))[0] is Code.ABORTED
    assert (await refused(list_(rig, max_entries=-1)))[0] is Code.INVALID_ARGUMENT


async def volume_type(rig: Rig, name: str, **spec: Any) -> None:
    await rig.kube.create(VolumeType(metadata=ObjectMeta(name=name), spec=VolumeTypeSpec(**spec)))
    await eventually(lambda: rig.gateway.caches.types.store.get(None, name) is not None)  # type: ignore[union-attr]


async def pool(rig: Rig, name: str, **more: Any) -> None:
    await rig.pool(name, **more)

    def seen() -> bool:
        found = rig.gateway.caches.pools.store.get(None, name)  # type: ignore[union-attr]
        return found is not None and found.status.total_bytes is not None

    await eventually(seen)


async def capacity(rig: Rig, parameters: dict[str, str] | None = None, node: str = "") -> tuple[int, int]:
    request = csi_pb2.GetCapacityRequest(parameters=parameters or {})
    if node:
        request.accessible_topology.CopyFrom(csi_pb2.Topology(segments={TOPOLOGY_NODE: node}))
    answer = await rig.stub.GetCapacity(request)
    return answer.available_capacity, answer.maximum_volume_size.value


async def test_capacity_is_what_is_left_after_the_grants(rig: Rig) -> None:
    assert await capacity(rig) == (100 * GIB, 100 * GIB)
    await rig.stub.CreateVolume(create_request(size_bytes=30 * GIB))
    assert await capacity(rig) == (70 * GIB, 70 * GIB)


async def test_capacity_of_a_node_leaves_out_the_pools_of_others(rig: Rig) -> None:
    await pool(rig, "on-n1", node="n1", total_bytes=10 * GIB)
    await pool(rig, "on-n2", node="n2", total_bytes=200 * GIB)
    assert await capacity(rig, node="n1") == (110 * GIB, 100 * GIB)
    assert await capacity(rig, node="n2") == (300 * GIB, 200 * GIB)
    assert await capacity(rig) == (310 * GIB, 200 * GIB)


async def test_capacity_of_a_type_counts_the_pools_that_fit_it(rig: Rig) -> None:
    await pool(rig, "fast", total_bytes=7 * GIB, capabilities={"media": "nvme"})
    await volume_type(rig, "gold", extra_specs={"media": "nvme"})
    await volume_type(rig, "small", max_size="5Gi", provisioning=Provisioning.THICK)
    gold = {"volumeType": "gold", "csi.storage.k8s.io/fstype": "ext4"}
    assert await capacity(rig, gold) == (7 * GIB, 7 * GIB)
    assert (await capacity(rig, {"volumeType": "small"}))[1] == 5 * GIB


async def test_capacity_of_an_unknown_type_is_asked_again(rig: Rig) -> None:
    request = csi_pb2.GetCapacityRequest(parameters={"volumeType": "missing"})
    code, message = await refused(rig.stub.GetCapacity(request))
    assert code is Code.UNAVAILABLE
    assert "missing" in message


async def test_pools_that_are_not_ready_have_no_capacity(rig: Rig) -> None:
    await pool(rig, "broken", total_bytes=7 * GIB, conditions=())
    assert await capacity(rig) == (100 * GIB, 100 * GIB)


async def test_the_advertised_capabilities(rig: Rig) -> None:
    answer = await rig.stub.ControllerGetCapabilities(csi_pb2.ControllerGetCapabilitiesRequest())
    kind = csi_pb2.ControllerServiceCapability.RPC.Type
    assert {kind.Name(c.rpc.type) for c in answer.capabilities} == {
        "CREATE_DELETE_VOLUME",
        "PUBLISH_UNPUBLISH_VOLUME",
        "LIST_VOLUMES",
        "GET_CAPACITY",
        "PUBLISH_READONLY",
        "EXPAND_VOLUME",
        "LIST_VOLUMES_PUBLISHED_NODES",
        "SINGLE_NODE_MULTI_WRITER",
    }


@pytest.mark.parametrize(
    ("rpc", "request_"),
    [
        ("CreateSnapshot", csi_pb2.CreateSnapshotRequest()),
        ("DeleteSnapshot", csi_pb2.DeleteSnapshotRequest()),
        ("ListSnapshots", csi_pb2.ListSnapshotsRequest()),
        ("ControllerGetVolume", csi_pb2.ControllerGetVolumeRequest()),
        ("ControllerModifyVolume", csi_pb2.ControllerModifyVolumeRequest()),
    ],
)
async def test_what_is_not_advertised_is_not_served(rig: Rig, rpc: str, request_: Any) -> None:
    assert (await refused(getattr(rig.stub, rpc)(request_)))[0] is Code.UNIMPLEMENTED


async def test_identity(rig: Rig) -> None:
    info = await rig.identity.GetPluginInfo(csi_pb2.GetPluginInfoRequest())
    assert info.name == "csi.cinderblock.io"
    assert info.vendor_version
    answer = await rig.identity.GetPluginCapabilities(csi_pb2.GetPluginCapabilitiesRequest())
    kind = csi_pb2.PluginCapability
    assert {kind.Service.Type.Name(c.service.type) for c in answer.capabilities if c.HasField("service")} == {
        "CONTROLLER_SERVICE",
        "VOLUME_ACCESSIBILITY_CONSTRAINTS",
    }
    assert [c.volume_expansion.type for c in answer.capabilities if c.HasField("volume_expansion")] == [
        kind.VolumeExpansion.ONLINE
    ]
    probe = await rig.identity.Probe(csi_pb2.ProbeRequest())
    assert probe.ready == BoolValue(value=True)


async def test_nothing_is_served_before_the_caches_are_filled(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    listing = rig.kube.list

    async def never(kind: Any, **more: Any) -> Any:
        if kind is VolumeType:
            await eventually(lambda: False, 30)
        return await listing(kind, **more)

    rig.kube.list = never  # type: ignore[method-assign]
    from prometheus_client import CollectorRegistry

    from cinderblock.core.clock import SystemClock
    from cinderblock.csi.controller_main import controller

    path = tmp_path / "csi.sock"
    async with (
        controller(rig.kube, path, "cinderblock", CollectorRegistry(), SystemClock()),
        grpc.aio.insecure_channel(f"unix:{path}") as channel,
    ):
        probe = await csi_pb2_grpc.IdentityStub(channel).Probe(csi_pb2.ProbeRequest())
        assert probe.ready == BoolValue(value=False)
        stub = csi_pb2_grpc.ControllerStub(channel)
        assert (await refused(stub.CreateVolume(create_request())))[0] is Code.UNAVAILABLE
        assert (await refused(stub.ListVolumes(csi_pb2.ListVolumesRequest())))[0] is Code.UNAVAILABLE


async def test_what_is_polled_is_not_in_the_log_unless_it_fails(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cinderblock.csi")
    await rig.stub.ListVolumes(csi_pb2.ListVolumesRequest())
    await rig.stub.GetCapacity(csi_pb2.GetCapacityRequest())
    await rig.identity.Probe(csi_pb2.ProbeRequest())
    assert caplog.text == ""
    await refused(rig.stub.ListVolumes(csi_pb2.ListVolumesRequest(starting_token="bad")))
    assert "ListVolumes ABORTED" in caplog.text


async def test_health_shows_caches_that_are_behind(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rig.gateway is not None
    health = health_of(rig.gateway)
    assert health.faults(ready=True) == []
    clock, now = SystemClock(), SystemClock.monotonic
    monkeypatch.setattr(SystemClock, "monotonic", lambda _: now(clock) + 300.0)  # no watch was heard since
    assert "no watch of volumes" in health.faults(ready=True)[0]
    assert health.faults(ready=False) == [], "an outage of some minutes is not made better by a restart"
    monkeypatch.setattr(SystemClock, "monotonic", lambda _: now(clock) + 3600.0)
    assert "no watch of volumes" in health.faults(ready=False)[0]
