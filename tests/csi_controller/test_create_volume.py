"""CreateVolume: what is made, what a repeated call gets, and that no final error leaves anything behind."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from csi_rig import RELEASE, Code, Rig, block, create_request, eventually, mount, refused, running

from cinderblock.core.api.builtin import (
    CsiVolumeSource,
    ObjectRef,
    PersistentVolume,
    PersistentVolumeClaim,
    PersistentVolumeSpec,
)
from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.api.volume import AccessMode, Volume, VolumeMode, VolumeSpec
from cinderblock.core.errors import GrpcCode
from cinderblock.core.kube.port import Forbidden, KubeUnavailable
from cinderblock.core.names import ANNOTATION_CSI_ANSWERED, FINALIZER_PROTECT, TOPOLOGY_NODE
from cinderblock.core.units import GIB
from cinderblock.csi.pb import csi_pb2


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as rig:
        yield rig


async def volumes(rig: Rig) -> list[Volume]:
    return list((await rig.kube.list(Volume)).items)


def claim_parameters(claim: PersistentVolumeClaim) -> dict[str, str]:
    return {
        "csi.storage.k8s.io/pvc/name": claim.name,
        "csi.storage.k8s.io/pvc/namespace": claim.namespace or "",
        "csi.storage.k8s.io/pv/name": f"pvc-{claim.uid}",
    }


async def test_a_claim_gets_its_volume(rig: Rig) -> None:
    claim = await rig.claim()
    parameters = {"volumeType": "gold", **claim_parameters(claim)}
    answer = await rig.stub.CreateVolume(create_request(f"pvc-{claim.uid}", parameters=parameters))
    (made,) = await volumes(rig)
    assert answer.volume.volume_id == made.status.handle == made.uid
    assert answer.volume.capacity_bytes == GIB
    assert (made.namespace, made.name) == (RELEASE, f"pvc-{claim.uid}")
    assert made.spec.size == "1Gi"
    assert made.spec.volume_type == "gold"
    assert (made.spec.volume_mode, made.spec.fs_type) == (VolumeMode.FILESYSTEM, "ext4")
    assert made.spec.claim_ref is not None
    assert (made.spec.claim_ref.namespace, made.spec.claim_ref.uid) == ("tenant", claim.uid)
    assert made.has_finalizer(FINALIZER_PROTECT)
    assert made.metadata.annotations[ANNOTATION_CSI_ANSWERED] == "OK"


async def test_the_claims_uid_comes_from_the_name_where_claims_may_not_be_read(rig: Rig) -> None:
    uid = "0a0b0c0d-0000-4000-8000-123456789abc"
    read = rig.kube.get

    async def get(kind: Any, name: str, namespace: str | None = None) -> Any:
        if kind is PersistentVolumeClaim:
            raise Forbidden("no", status=403)
        return await read(kind, name, namespace)

    rig.kube.get = get  # type: ignore[method-assign]
    claim = PersistentVolumeClaim(metadata=ObjectMeta(name="data", namespace="tenant", uid=uid))
    await rig.stub.CreateVolume(create_request(f"pvc-{uid}", parameters=claim_parameters(claim)))
    (made,) = await volumes(rig)
    assert made.spec.claim_ref is not None
    assert made.spec.claim_ref.uid == uid


@pytest.mark.parametrize(
    ("capability", "mode"),
    [
        (mount("SINGLE_NODE_WRITER"), AccessMode.READ_WRITE_ONCE),
        (mount("SINGLE_NODE_MULTI_WRITER"), AccessMode.READ_WRITE_ONCE),
        (mount("SINGLE_NODE_SINGLE_WRITER"), AccessMode.READ_WRITE_ONCE_POD),
        (mount("MULTI_NODE_READER_ONLY"), AccessMode.READ_ONLY_MANY),
        (block("MULTI_NODE_MULTI_WRITER"), AccessMode.READ_WRITE_MANY),
    ],
)
async def test_access_modes(rig: Rig, capability: Any, mode: AccessMode) -> None:
    await rig.stub.CreateVolume(create_request(volume_capabilities=[capability]))
    (made,) = await volumes(rig)
    assert made.spec.access_modes == (mode,)


@pytest.mark.parametrize("name", ["a/../b", "-%s", "Ünï🙂", "x" * 128, "line\n", "a..b", "UPPER"])
async def test_any_name_works_and_none_reaches_an_object_name(rig: Rig, name: str) -> None:
    first = await rig.stub.CreateVolume(create_request(name))
    again = await rig.stub.CreateVolume(create_request(name))
    assert first.volume.volume_id == again.volume.volume_id
    (made,) = await volumes(rig)
    assert made.name == name or made.name.startswith("v-")
    assert "/" not in made.name and "\n" not in made.name and ".." not in made.name


@pytest.mark.parametrize(
    "request_",
    [
        create_request(""),
        create_request(volume_capabilities=[]),
        create_request(volume_capabilities=[csi_pb2.VolumeCapability()]),
        create_request(volume_capabilities=[mount("UNKNOWN")]),
        create_request(volume_capabilities=[mount(fs_type="zfs")]),
        create_request(volume_capabilities=[mount(), block()]),
        create_request(volume_capabilities=[mount("MULTI_NODE_MULTI_WRITER")]),
        create_request(size_bytes=-1),
        create_request(parameters={"colour": "red"}),
        create_request(parameters={"volumeType": ""}),
        create_request(mutable_parameters={"iops": "1"}),
        create_request("bell\u0007"),
        create_request("x" * 129),
        create_request(
            volume_content_source=csi_pb2.VolumeContentSource(
                volume=csi_pb2.VolumeContentSource.VolumeSource(volume_id="v")
            )
        ),
        create_request(
            accessibility_requirements=csi_pb2.TopologyRequirement(
                requisite=[csi_pb2.Topology(segments={"zone": "a"})]
            )
        ),
    ],
)
async def test_bad_requests_are_refused_and_make_nothing(rig: Rig, request_: Any) -> None:
    code, _ = await refused(rig.stub.CreateVolume(request_))
    assert code is Code.INVALID_ARGUMENT
    assert await volumes(rig) == []


async def test_a_limit_below_the_size_is_out_of_range(rig: Rig) -> None:
    code, _ = await refused(rig.stub.CreateVolume(create_request(size_bytes=GIB, limit_bytes=GIB - 1)))
    assert code is Code.OUT_OF_RANGE


async def test_no_size_is_the_default_and_never_above_the_limit(rig: Rig) -> None:
    answer = await rig.stub.CreateVolume(create_request("a", size_bytes=0))
    small = await rig.stub.CreateVolume(create_request("b", size_bytes=0, limit_bytes=1_000_000))
    assert (answer.volume.capacity_bytes, small.volume.capacity_bytes) == (GIB, 1_000_000)


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({}, True),
        ({"size_bytes": GIB // 2}, True),  # the volume that exists is large enough
        ({"size_bytes": 2 * GIB}, False),
        ({"size_bytes": GIB // 2, "limit_bytes": GIB // 2}, False),
        ({"volume_capabilities": [block()]}, False),
        ({"volume_capabilities": [mount("SINGLE_NODE_SINGLE_WRITER")]}, False),
        ({"volume_capabilities": [mount(fs_type="xfs")]}, False),
        ({"parameters": {"volumeType": "gold"}}, False),
    ],
)
async def test_the_same_name_again(rig: Rig, changed: dict[str, Any], same: bool) -> None:
    first = await rig.stub.CreateVolume(create_request())
    if same:
        again = await rig.stub.CreateVolume(create_request(**changed))
        assert again.volume.volume_id == first.volume.volume_id
    else:
        code, _ = await refused(rig.stub.CreateVolume(create_request(**changed)))
        assert code is Code.ALREADY_EXISTS
    assert rig.operator.created == [first.volume.volume_id]
    assert rig.operator.deleted == []


async def test_a_volume_of_a_person_under_the_same_name_is_never_touched(rig: Rig) -> None:
    await rig.kube.create(
        Volume(metadata=ObjectMeta(name="vol", namespace=RELEASE), spec=VolumeSpec(size="1Gi"))
    )
    code, _ = await refused(rig.stub.CreateVolume(create_request()))
    assert code is Code.ALREADY_EXISTS
    code, _ = await refused(rig.stub.CreateVolume(create_request(parameters={"bad": "x"})))
    assert code is Code.INVALID_ARGUMENT
    (left,) = await volumes(rig)
    assert not left.deleting


async def test_many_equal_calls_at_once_are_one_effect(rig: Rig) -> None:
    answers = await asyncio.gather(*(rig.stub.CreateVolume(create_request()) for _ in range(20)))
    assert len({a.volume.volume_id for a in answers}) == 1
    assert len(rig.operator.created) == 1
    assert [w[:2] for w in rig.kube.writes].count(("create", "Volume")) == 1
    assert [w[:2] for w in rig.kube.writes].count(("update", "Volume")) == 1  # the verdict


async def test_short_deadlines_against_a_slow_backend_are_one_effect(rig: Rig) -> None:
    rig.operator.create_seconds = 0.5
    codes = set()
    for _ in range(20):
        try:
            answer = await rig.stub.CreateVolume(create_request(), timeout=0.05)
        except grpc.aio.AioRpcError as error:
            codes.add(error.code())
        else:
            break
    else:
        answer = await rig.stub.CreateVolume(create_request())
    assert codes <= {Code.ABORTED, Code.DEADLINE_EXCEEDED}
    assert codes
    assert rig.operator.created == [answer.volume.volume_id]


async def test_a_deadline_is_answered_before_it_passes_and_says_what_goes_on(rig: Rig) -> None:
    rig.operator.may_create.clear()
    code, message = await refused(rig.stub.CreateVolume(create_request(), timeout=1.5))
    assert code is Code.ABORTED
    assert "vol" in message
    rig.operator.may_create.set()
    await rig.stub.CreateVolume(create_request())
    assert len(rig.operator.created) == 1


async def test_a_cancelled_call_goes_on_and_a_retry_gets_its_result(rig: Rig) -> None:
    rig.operator.may_create.clear()
    call = rig.stub.CreateVolume(create_request())
    await eventually(lambda: ("create", "Volume", "vol") in rig.kube.writes)
    call.cancel()
    rig.operator.may_create.set()
    await rig.stub.CreateVolume(create_request())
    assert len(rig.operator.created) == 1


async def test_a_restart_between_calls_finds_the_same_volume(rig: Rig) -> None:
    rig.operator.may_create.clear()
    await refused(rig.stub.CreateVolume(create_request(), timeout=1.5))
    async with rig.controller("second.sock"):
        rig.operator.may_create.set()
        first = await rig.stub.CreateVolume(create_request())
    async with rig.controller("third.sock"):
        again = await rig.stub.CreateVolume(create_request())
    assert first.volume.volume_id == again.volume.volume_id
    assert len(rig.operator.created) == 1


@pytest.mark.parametrize(
    ("recorded", "answered"),
    [
        (GrpcCode.RESOURCE_EXHAUSTED, Code.RESOURCE_EXHAUSTED),
        (GrpcCode.OUT_OF_RANGE, Code.OUT_OF_RANGE),
        (GrpcCode.INTERNAL, Code.INTERNAL),
        (GrpcCode.NOT_FOUND, Code.NOT_FOUND),
        (GrpcCode.INVALID_ARGUMENT, Code.INVALID_ARGUMENT),
        (GrpcCode.FAILED_PRECONDITION, Code.FAILED_PRECONDITION),
    ],
)
@pytest.mark.parametrize("step", ["schedule_error", "create_error"])
async def test_a_final_error_is_answered_when_nothing_is_left(
    rig: Rig, step: str, recorded: GrpcCode, answered: grpc.StatusCode
) -> None:
    setattr(rig.operator, step, (recorded, "there is a reason"))
    code, message = await refused(rig.stub.CreateVolume(create_request()))
    assert (code, message) == (answered, "there is a reason")
    assert await volumes(rig) == []
    setattr(rig.operator, step, None)
    await rig.stub.CreateVolume(create_request())


@pytest.mark.parametrize(
    ("recorded", "answered"),
    [
        (GrpcCode.UNAVAILABLE, Code.UNAVAILABLE),
        (GrpcCode.DEADLINE_EXCEEDED, Code.DEADLINE_EXCEEDED),
        (GrpcCode.ABORTED, Code.ABORTED),
    ],
)
async def test_an_error_that_may_pass_keeps_the_volume(
    rig: Rig, recorded: GrpcCode, answered: grpc.StatusCode
) -> None:
    rig.operator.schedule_error = (recorded, "wait for it")
    code, message = await refused(rig.stub.CreateVolume(create_request()))
    assert (code, message) == (answered, "wait for it")
    assert len(await volumes(rig)) == 1


async def test_no_final_code_while_the_cleanup_goes_on(rig: Rig) -> None:
    rig.operator.create_error = (GrpcCode.INTERNAL, "broken disk")
    rig.operator.may_delete.clear()
    code, message = await refused(rig.stub.CreateVolume(create_request(), timeout=1.5))
    assert code is Code.ABORTED
    assert "broken disk" in message
    code, _ = await refused(rig.stub.CreateVolume(create_request(), timeout=1.5))
    assert code is Code.ABORTED  # a Volume that is being deleted is not made anew
    rig.operator.may_delete.set()
    rig.operator.create_error = None

    async def created() -> Any:
        while True:
            try:
                return await rig.stub.CreateVolume(create_request())
            except grpc.aio.AioRpcError as error:
                assert error.code() is Code.ABORTED
                await asyncio.sleep(0.01)

    await asyncio.wait_for(created(), 5)
    assert len(rig.operator.backend) == 1


@pytest.mark.parametrize("parameters", [{"bad": "x"}, {"volumeType": "x" * 5000}])
async def test_a_bad_request_also_cleans_up_after_an_earlier_good_one(
    rig: Rig, parameters: dict[str, str]
) -> None:
    """The StorageClass was replaced while the first call was under way: IA makes the provisioner forget."""
    rig.operator.may_create.clear()
    await refused(rig.stub.CreateVolume(create_request(), timeout=1.5))
    assert len(await volumes(rig)) == 1
    rig.operator.create_error = (GrpcCode.UNAVAILABLE, "later")
    rig.operator.may_create.set()
    code, _ = await refused(rig.stub.CreateVolume(create_request(parameters=parameters)))
    assert code is Code.INVALID_ARGUMENT
    assert await volumes(rig) == []


async def test_a_volume_that_grew_is_still_the_answer_to_its_own_request(rig: Rig) -> None:
    request = create_request(limit_bytes=GIB)
    first = await rig.stub.CreateVolume(request)
    await rig.stub.ControllerExpandVolume(
        csi_pb2.ControllerExpandVolumeRequest(
            volume_id=first.volume.volume_id, capacity_range=csi_pb2.CapacityRange(required_bytes=2 * GIB)
        )
    )
    again = await rig.stub.CreateVolume(request)
    assert again.volume.volume_id == first.volume.volume_id
    assert again.volume.capacity_bytes == 2 * GIB


async def test_a_cleanup_begun_by_a_process_that_died_is_finished(rig: Rig) -> None:
    rig.operator.create_error = (GrpcCode.INTERNAL, "broken disk")

    def die(verb: str, kind: str, name: str) -> None:
        if (verb, kind) == ("delete", "Volume"):
            raise KubeUnavailable("cut off")

    rig.kube.before_write = die
    code, _ = await refused(rig.stub.CreateVolume(create_request()))
    assert code is Code.UNAVAILABLE
    (condemned,) = await volumes(rig)
    assert condemned.metadata.annotations[ANNOTATION_CSI_ANSWERED] == "Discarded"
    rig.kube.before_write = lambda verb, kind, name: None
    rig.operator.create_error = None
    async with rig.controller("second.sock"):
        code, _ = await refused(rig.stub.CreateVolume(create_request()))
        assert code is Code.ABORTED

        async def gone() -> None:
            while await volumes(rig):
                await asyncio.sleep(0.005)

        await asyncio.wait_for(gone(), 5)
        await rig.stub.CreateVolume(create_request())
    assert len(rig.operator.backend) == 1


async def test_a_volume_that_was_handed_out_is_never_cleaned_up(rig: Rig) -> None:
    await rig.stub.CreateVolume(create_request())
    code, _ = await refused(rig.stub.CreateVolume(create_request(parameters={"bad": "x"})))
    assert code is Code.ABORTED
    assert len(await volumes(rig)) == 1
    assert rig.operator.deleted == []


async def test_a_volume_that_a_pv_names_is_never_cleaned_up(rig: Rig) -> None:
    rig.operator.create_error = (GrpcCode.INTERNAL, "broken disk")
    rig.operator.may_create.clear()
    await refused(rig.stub.CreateVolume(create_request(), timeout=1.5))
    (made,) = await volumes(rig)
    await rig.kube.create(
        PersistentVolume(
            metadata=ObjectMeta(name="vol"),
            spec=PersistentVolumeSpec(
                csi=CsiVolumeSource(driver="csi.cinderblock.io", volume_handle=made.status.handle or ""),
                claim_ref=ObjectRef(namespace="tenant", name="data"),
            ),
        )
    )
    rig.operator.may_create.set()
    code, _ = await refused(rig.stub.CreateVolume(create_request()))
    assert code is Code.ABORTED
    assert len(await volumes(rig)) == 1


async def test_a_claim_deleted_while_its_volume_cannot_be_placed_leaves_nothing(rig: Rig) -> None:
    claim = await rig.claim()
    request = create_request(f"pvc-{claim.uid}", parameters=claim_parameters(claim))
    rig.operator.schedule_error = (GrpcCode.UNAVAILABLE, "no backend is ready")
    await refused(rig.stub.CreateVolume(request))
    await rig.kube.delete(claim)
    code, message = await refused(rig.stub.CreateVolume(request))
    assert code is Code.FAILED_PRECONDITION
    assert "tenant/data" in message
    assert await volumes(rig) == []


async def test_a_claim_made_again_under_its_old_name_is_another_one(rig: Rig) -> None:
    old = await rig.claim()
    await rig.kube.delete(old)
    await rig.claim()
    code, _ = await refused(
        rig.stub.CreateVolume(create_request(f"pvc-{old.uid}", parameters=claim_parameters(old)))
    )
    assert code is Code.FAILED_PRECONDITION
    assert await volumes(rig) == []


async def test_an_api_server_that_does_not_answer_is_no_final_error(rig: Rig) -> None:
    def down(verb: str, kind: str, name: str) -> None:
        raise KubeUnavailable("timed out")

    rig.kube.before_write = down
    code, _ = await refused(rig.stub.CreateVolume(create_request()))
    assert code is Code.UNAVAILABLE


async def test_topology_goes_in_as_nodes_and_comes_back_from_the_pool(rig: Rig) -> None:
    await rig.pool("on-n1", node="n1")
    await eventually(lambda: rig.gateway.caches.pools.store.get(None, "on-n1") is not None)  # type: ignore[union-attr]
    rig.operator.pool = "on-n1"
    here = csi_pb2.Topology(segments={TOPOLOGY_NODE: "n1"})
    there = csi_pb2.Topology(segments={TOPOLOGY_NODE: "n2"})
    request = create_request(
        accessibility_requirements=csi_pb2.TopologyRequirement(requisite=[here], preferred=[here])
    )
    answer = await rig.stub.CreateVolume(request)
    (made,) = await volumes(rig)
    assert made.spec.topology is not None
    assert made.spec.topology.requisite == made.spec.topology.preferred == ("n1",)
    assert list(answer.volume.accessible_topology) == [here]
    elsewhere = create_request(accessibility_requirements=csi_pb2.TopologyRequirement(requisite=[there]))
    code, _ = await refused(rig.stub.CreateVolume(elsewhere))
    assert code is Code.ALREADY_EXISTS


async def test_a_requirement_that_names_every_node_is_none(rig: Rig) -> None:
    nodes = [csi_pb2.Topology(segments={TOPOLOGY_NODE: n}) for n in ("n1", "n2")]
    answer = await rig.stub.CreateVolume(
        create_request(accessibility_requirements=csi_pb2.TopologyRequirement(requisite=nodes))
    )
    (made,) = await volumes(rig)
    assert made.spec.topology is None
    assert list(answer.volume.accessible_topology) == []  # a pool without a node is reached from everywhere


async def test_a_requirement_that_leaves_a_node_out_stands_whatever_else_it_names(rig: Rig) -> None:
    nodes = [csi_pb2.Topology(segments={TOPOLOGY_NODE: n}) for n in ("n1", "not-yet-known", "gone")]
    await rig.stub.CreateVolume(
        create_request(accessibility_requirements=csi_pb2.TopologyRequirement(requisite=nodes))
    )
    (made,) = await volumes(rig)
    assert made.spec.topology is not None
    assert made.spec.topology.requisite == ("n1", "not-yet-known", "gone")


@pytest.mark.parametrize("granted", [False, True])
async def test_a_claim_that_moved_to_another_node_is_not_stuck_with_the_first(
    rig: Rig, granted: bool
) -> None:
    """The node of the first try is gone before the volume was handed out: the scheduler has picked another."""
    for node in ("n1", "n2"):
        await rig.pool(f"on-{node}", node=node)
        await eventually(lambda n=node: rig.gateway.caches.pools.store.get(None, f"on-{n}") is not None)  # type: ignore[union-attr, misc]

    def on(node: str) -> Any:
        here = csi_pb2.Topology(segments={TOPOLOGY_NODE: node})
        return create_request(
            accessibility_requirements=csi_pb2.TopologyRequirement(requisite=[here], preferred=[here])
        )

    rig.operator.pool = "on-n1"
    if granted:
        rig.operator.may_create.clear()
    else:
        rig.operator.schedule_error = (GrpcCode.UNAVAILABLE, "the host of n1 is not there")
    code, _ = await refused(rig.stub.CreateVolume(on("n1"), timeout=1.5))
    assert code in (Code.ABORTED, Code.UNAVAILABLE)
    rig.operator.pool, rig.operator.schedule_error = "on-n2", None
    rig.operator.may_create.set()
    async with asyncio.timeout(10):
        while True:
            try:
                answer = await rig.stub.CreateVolume(on("n2"), timeout=5)
                break
            except grpc.aio.AioRpcError as error:
                assert error.code() is Code.ABORTED
    assert list(answer.volume.accessible_topology) == [csi_pb2.Topology(segments={TOPOLOGY_NODE: "n2"})]
    (made,) = await volumes(rig)
    assert rig.operator.backend.keys() == {made.status.handle}


async def test_secrets_stay_out_of_logs_and_objects(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    canary = "canary-55d1"
    caplog.set_level(logging.DEBUG)
    capability = mount()
    capability.mount.mount_flags.append(f"password={canary}")
    await rig.stub.CreateVolume(create_request(secrets={"key": canary}, volume_capabilities=[capability]))
    (made,) = await volumes(rig)
    assert canary not in caplog.text
    assert canary not in made.model_dump_json()
