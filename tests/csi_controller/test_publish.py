"""ControllerPublishVolume and ControllerUnpublishVolume: one Attachment per volume and node, never two."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from csi_rig import RELEASE, Code, Rig, block, create_request, eventually, mount, refused, running

from cinderblock.core.api.attachment import Attachment
from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.api.volume import Use, Volume, VolumeSpec
from cinderblock.core.errors import GrpcCode
from cinderblock.core.kube.store import key_of
from cinderblock.core.names import FINALIZER_PROTECT, LABEL_HOST, attachment_name
from cinderblock.csi.pb import csi_pb2


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as rig:
        yield rig


@pytest.fixture
async def handle(rig: Rig) -> str:
    answer = await rig.stub.CreateVolume(create_request())
    return str(answer.volume.volume_id)


def publish(
    rig: Rig, volume_id: str, node: str = "n1", capability: Any = None, readonly: bool = False, **more: Any
) -> Any:
    return rig.stub.ControllerPublishVolume(
        csi_pb2.ControllerPublishVolumeRequest(
            volume_id=volume_id,
            node_id=node,
            volume_capability=mount() if capability is None else capability,
            readonly=readonly,
        ),
        **more,
    )


def unpublish(rig: Rig, volume_id: str, node: str = "n1", **more: Any) -> Any:
    return rig.stub.ControllerUnpublishVolume(
        csi_pb2.ControllerUnpublishVolumeRequest(volume_id=volume_id, node_id=node), **more
    )


async def attachments(rig: Rig) -> list[Attachment]:
    return list((await rig.kube.list(Attachment)).items)


async def test_publish_answers_when_it_is_exported(rig: Rig, handle: str) -> None:
    answer = await publish(rig, handle)
    (made,) = await attachments(rig)
    assert dict(answer.publish_context) == {"attachment": made.name}
    assert (made.namespace, made.name) == (RELEASE, attachment_name(handle, "n1"))
    assert (made.spec.volume, made.spec.volume_namespace, made.spec.node) == ("vol", None, "n1")
    assert (made.spec.use, made.spec.fs_type, made.spec.read_only) == (Use.MOUNT, "ext4", False)
    assert made.metadata.labels[LABEL_HOST] == "host"
    assert made.has_finalizer(FINALIZER_PROTECT)


async def test_a_volume_of_another_namespace_can_be_published(rig: Rig) -> None:
    made = await rig.kube.create(
        Volume(metadata=ObjectMeta(name="by-hand", namespace="tenant"), spec=VolumeSpec(size="1Gi"))
    )
    await eventually(lambda: made.uid in rig.operator.created)
    await publish(rig, made.uid)
    (attachment,) = await attachments(rig)
    assert (attachment.namespace, attachment.spec.volume_namespace) == (RELEASE, "tenant")


async def test_the_filesystem_is_the_volumes_own_where_the_call_names_none(rig: Rig) -> None:
    answer = await rig.stub.CreateVolume(create_request("x", volume_capabilities=[mount(fs_type="xfs")]))
    await publish(rig, answer.volume.volume_id, capability=mount(fs_type=""))
    (made,) = await attachments(rig)
    assert made.spec.fs_type == "xfs"


async def test_publish_again_is_the_same(rig: Rig, handle: str) -> None:
    answers = await asyncio.gather(*(publish(rig, handle) for _ in range(10)))
    again = await publish(rig, handle)
    assert all(a == again for a in answers)
    assert len(rig.operator.exported) == 1
    assert [w[:2] for w in rig.kube.writes].count(("create", "Attachment")) == 1


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"volume_id": ""}, Code.INVALID_ARGUMENT),
        ({"node": ""}, Code.INVALID_ARGUMENT),
        ({"capability": csi_pb2.VolumeCapability()}, Code.INVALID_ARGUMENT),
        ({"capability": block()}, Code.INVALID_ARGUMENT),
        ({"capability": mount("MULTI_NODE_READER_ONLY")}, Code.INVALID_ARGUMENT),
        ({"volume_id": "fake-vol-id"}, Code.NOT_FOUND),
        ({"node": "fake-node-id-1"}, Code.NOT_FOUND),
        ({"node": "Fake/Node%2f"}, Code.NOT_FOUND),
    ],
)
async def test_bad_publishes_make_nothing(rig: Rig, handle: str, more: dict[str, Any], code: Any) -> None:
    got, _ = await refused(publish(rig, **({"volume_id": handle} | more)))
    assert got is code
    assert await attachments(rig) == []


async def test_publish_without_a_capability(rig: Rig, handle: str) -> None:
    request = csi_pb2.ControllerPublishVolumeRequest(volume_id=handle, node_id="n1")
    assert (await refused(rig.stub.ControllerPublishVolume(request)))[0] is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("other", [{"readonly": True}, {"capability": mount("SINGLE_NODE_SINGLE_WRITER")}])
async def test_the_same_node_in_another_way(rig: Rig, handle: str, other: dict[str, Any]) -> None:
    await publish(rig, handle)
    code, message = await refused(publish(rig, handle, **other))
    assert code is Code.ALREADY_EXISTS
    assert "n1" in message


async def test_read_only_reaches_the_attachment(rig: Rig, handle: str) -> None:
    await publish(rig, handle, readonly=True)
    (made,) = await attachments(rig)
    assert made.spec.read_only


async def test_another_node_is_refused_and_told_where_it_is(rig: Rig, handle: str) -> None:
    await publish(rig, handle)
    code, message = await refused(publish(rig, handle, "n2"))
    assert code is Code.FAILED_PRECONDITION
    assert "n1" in message


async def test_a_shared_volume_goes_to_both_nodes_and_from_all_at_once(rig: Rig) -> None:
    shared = block("MULTI_NODE_MULTI_WRITER")
    answer = await rig.stub.CreateVolume(create_request("shared", volume_capabilities=[shared]))
    handle = answer.volume.volume_id
    await publish(rig, handle, "n1", shared)
    await publish(rig, handle, "n2", shared)
    listed = await rig.stub.ListVolumes(csi_pb2.ListVolumesRequest())
    assert sorted(listed.entries[0].status.published_node_ids) == ["n1", "n2"]
    await unpublish(rig, handle, "")
    assert await attachments(rig) == []


async def test_unpublish_answers_when_it_is_gone_and_again(rig: Rig, handle: str) -> None:
    await publish(rig, handle)
    await unpublish(rig, handle)
    assert await attachments(rig) == []
    for _ in range(11):
        await unpublish(rig, handle)
    await publish(rig, handle, "n2")


@pytest.mark.parametrize(
    ("volume_id", "node"), [("fake-vol-id", "n1"), ("fake-vol-id", ""), ("a,b", "fake-node-id")]
)
async def test_unpublish_of_what_is_not_there_is_done(rig: Rig, volume_id: str, node: str) -> None:
    await unpublish(rig, volume_id, node)


async def test_unpublish_from_an_unknown_node_is_done(rig: Rig, handle: str) -> None:
    await unpublish(rig, handle, "fake-node-id-1")


async def test_unpublish_without_an_id(rig: Rig) -> None:
    assert (await refused(unpublish(rig, "")))[0] is Code.INVALID_ARGUMENT


async def test_a_detach_that_takes_long_is_pending_and_joined(rig: Rig, handle: str) -> None:
    await publish(rig, handle)
    rig.operator.may_detach.clear()
    code, message = await refused(unpublish(rig, handle, timeout=1.5))
    assert code is Code.ABORTED
    assert "n1" in message
    code, _ = await refused(publish(rig, handle))
    assert code is Code.ABORTED  # what is on its way out is not handed out again
    rig.operator.may_detach.set()
    await unpublish(rig, handle)
    assert [w[:2] for w in rig.kube.writes].count(("delete", "Attachment")) == 1


async def test_short_deadlines_publish_once(rig: Rig, handle: str) -> None:
    rig.operator.may_export.clear()
    for _ in range(20):
        with pytest.raises(grpc.aio.AioRpcError):
            await publish(rig, handle, timeout=0.02)
    rig.operator.may_export.set()
    await publish(rig, handle)
    assert len(rig.operator.exported) == 1


async def test_what_the_host_recorded_is_answered(rig: Rig, handle: str) -> None:
    rig.operator.export_error = (GrpcCode.UNAVAILABLE, "the target does not answer")
    assert await refused(publish(rig, handle)) == (Code.UNAVAILABLE, "the target does not answer")


async def test_a_restart_in_the_middle_of_a_publish(rig: Rig, handle: str) -> None:
    rig.operator.may_export.clear()
    await refused(publish(rig, handle, timeout=1.5))
    async with rig.controller("second.sock"):
        rig.operator.may_export.set()
        await publish(rig, handle)
        await unpublish(rig, handle)
    assert len(rig.operator.exported) == 1


async def test_unpublish_works_when_the_volume_is_gone(rig: Rig, handle: str) -> None:
    await publish(rig, handle)
    volume = (await rig.kube.list(Volume)).items[0]
    await rig.kube.update(volume, volume.without_finalizer(FINALIZER_PROTECT))
    await rig.kube.delete((await rig.kube.list(Volume)).items[0])
    await unpublish(rig, handle)
    assert await attachments(rig) == []


async def test_a_cache_that_is_behind_does_not_answer_for_what_is_gone(rig: Rig, handle: str) -> None:
    await publish(rig, handle)
    assert rig.gateway is not None
    store = rig.gateway.caches.attachments.store
    (stale,) = store.all()
    await unpublish(rig, handle)
    store._set(key_of(stale), None, stale)  # as if the removal had not come through yet
    await publish(rig, handle)
    assert len(await attachments(rig)) == 1
    assert len(rig.operator.exported) == 2


@pytest.mark.parametrize("node", ["n1", ""])
async def test_a_detach_sees_what_an_attach_still_makes(rig: Rig, handle: str, node: str) -> None:
    create, may_create = rig.kube.create, asyncio.Event()

    async def slow(obj: Any) -> Any:
        if isinstance(obj, Attachment):
            await may_create.wait()
        return await create(obj)

    rig.kube.create = slow  # type: ignore[method-assign]
    with pytest.raises(grpc.aio.AioRpcError):
        await publish(rig, handle, timeout=0.3)  # its caller is gone, its effect is not
    detaching = asyncio.ensure_future(unpublish(rig, handle, node))
    done, _ = await asyncio.wait({detaching}, timeout=0.2)
    assert not done
    may_create.set()
    await detaching
    assert await attachments(rig) == []
