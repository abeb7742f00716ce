"""DeleteVolume, ControllerExpandVolume and ValidateVolumeCapabilities."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from csi_rig import RELEASE, Code, Rig, block, create_request, eventually, mount, refused, running

from cinderblock.core.api.attachment import Attachment, AttachmentSpec
from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.api.volume import Use, Volume, VolumeAttachmentEntry, VolumeSpec
from cinderblock.core.errors import GrpcCode
from cinderblock.core.units import GIB
from cinderblock.csi.pb import csi_pb2


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as rig:
        yield rig


async def created(rig: Rig, name: str = "vol", **more: Any) -> str:
    answer = await rig.stub.CreateVolume(create_request(name, **more))
    return str(answer.volume.volume_id)


def delete(rig: Rig, volume_id: str, **more: Any) -> Any:
    return rig.stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=volume_id), **more)


def expand(rig: Rig, volume_id: str, size_bytes: int, limit_bytes: int = 0, **more: Any) -> Any:
    return rig.stub.ControllerExpandVolume(
        csi_pb2.ControllerExpandVolumeRequest(
            volume_id=volume_id,
            capacity_range=csi_pb2.CapacityRange(required_bytes=size_bytes, limit_bytes=limit_bytes),
            **more,
        )
    )


async def volume_of(rig: Rig, handle: str) -> Volume:
    listing = await rig.kube.list(Volume, field_selector=f"status.handle={handle}")
    return listing.items[0]


# delete --------------------------------------------------------------------------------------------------
async def test_delete_answers_when_it_is_gone(rig: Rig) -> None:
    handle = await created(rig)
    await delete(rig, handle)
    assert (await rig.kube.list(Volume)).items == []
    assert rig.operator.deleted == [handle]
    await delete(rig, handle)


@pytest.mark.parametrize("volume_id", ["fake-vol-id", "a,b=c", "../../x", "ü"])
async def test_delete_of_what_never_was_is_done(rig: Rig, volume_id: str) -> None:
    await delete(rig, volume_id)


async def test_delete_without_an_id(rig: Rig) -> None:
    assert (await refused(delete(rig, "")))[0] is Code.INVALID_ARGUMENT


async def test_delete_reports_what_goes_on(rig: Rig) -> None:
    handle = await created(rig)
    rig.operator.may_delete.clear()
    calls = [refused(delete(rig, handle, timeout=1.5)) for _ in range(10)]
    assert {code for code, _ in await asyncio.gather(*calls)} == {Code.ABORTED}
    rig.operator.may_delete.set()
    await delete(rig, handle)
    assert rig.operator.deleted == [handle]
    assert [w[:2] for w in rig.kube.writes].count(("delete", "Volume")) == 1


async def test_delete_of_an_attached_volume_leaves_it_untouched(rig: Rig) -> None:
    handle = await created(rig)
    volume = await volume_of(rig, handle)
    await rig.kube.create(
        Attachment(
            metadata=ObjectMeta(name="by-hand", namespace=RELEASE),
            spec=AttachmentSpec(volume=volume.name, node="n1"),
        )
    )
    await eventually(lambda: len(rig.gateway.caches.attachments.store) == 1)  # type: ignore[union-attr]
    code, message = await refused(delete(rig, handle))
    assert code is Code.FAILED_PRECONDITION
    assert "n1" in message
    assert not (await volume_of(rig, handle)).deleting


async def test_delete_of_a_volume_that_was_not_born_by_csi(rig: Rig) -> None:
    made = await rig.kube.create(
        Volume(metadata=ObjectMeta(name="by-hand", namespace="tenant"), spec=VolumeSpec(size="1Gi"))
    )
    await eventually(lambda: made.uid in rig.operator.created)
    await delete(rig, made.uid)
    assert (await rig.kube.list(Volume)).items == []


async def test_create_after_delete_under_the_same_name_is_a_new_volume(rig: Rig) -> None:
    first = await created(rig)
    await delete(rig, first)
    assert await created(rig) != first


async def test_create_while_it_is_deleted_is_pending(rig: Rig) -> None:
    handle = await created(rig)
    rig.operator.may_delete.clear()
    await refused(delete(rig, handle, timeout=1.5))
    code, _ = await refused(rig.stub.CreateVolume(create_request()))
    assert code is Code.ABORTED


# expand --------------------------------------------------------------------------------------------------
async def test_expand_answers_exactly_what_was_asked(rig: Rig) -> None:
    handle = await created(rig)
    asked = 2 * GIB + 512
    answer = await expand(rig, handle, asked)
    assert answer.capacity_bytes == asked
    assert answer.node_expansion_required
    assert rig.operator.backend == {handle: asked}
    again = await expand(rig, handle, GIB)  # large enough already: its real size
    assert again.capacity_bytes == asked


async def test_a_detached_block_device_needs_nothing_of_a_node(rig: Rig) -> None:
    handle = await created(rig, volume_capabilities=[block()])
    assert not (await expand(rig, handle, 2 * GIB)).node_expansion_required


async def test_many_expansions_at_once_are_one_write(rig: Rig) -> None:
    handle = await created(rig)
    before = len(rig.kube.writes)
    await asyncio.gather(*(expand(rig, handle, 2 * GIB) for _ in range(10)))
    updates = [w for w in rig.kube.writes[before:] if w[:2] == ("update", "Volume")]
    assert len(updates) == 1


async def test_an_expansion_that_finds_no_room_can_be_lowered(rig: Rig) -> None:
    handle = await created(rig)
    rig.operator.extend_error = (GrpcCode.RESOURCE_EXHAUSTED, "the pool is full")
    code, message = await refused(expand(rig, handle, 50 * GIB))
    assert (code, message) == (Code.RESOURCE_EXHAUSTED, "the pool is full")
    rig.operator.extend_error = None
    answer = await expand(rig, handle, 2 * GIB)
    assert answer.capacity_bytes == 2 * GIB
    assert (await volume_of(rig, handle)).spec.size == "2Gi"


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"volume_id": ""}, Code.INVALID_ARGUMENT),
        ({"volume_id": "fake-vol-id"}, Code.NOT_FOUND),
        ({"size_bytes": 0}, Code.INVALID_ARGUMENT),
        ({"size_bytes": -1}, Code.INVALID_ARGUMENT),
        ({"size_bytes": 3 * GIB, "limit_bytes": 2 * GIB}, Code.OUT_OF_RANGE),
        ({"size_bytes": 1, "limit_bytes": GIB - 1}, Code.OUT_OF_RANGE),
        ({"volume_capability": block()}, Code.INVALID_ARGUMENT),
    ],
)
async def test_bad_expansions(rig: Rig, more: dict[str, Any], code: Any) -> None:
    handle = await created(rig)
    got, _ = await refused(expand(rig, **({"volume_id": handle, "size_bytes": 2 * GIB} | more)))
    assert got is code


async def test_expand_without_a_range(rig: Rig) -> None:
    handle = await created(rig)
    call = rig.stub.ControllerExpandVolume(csi_pb2.ControllerExpandVolumeRequest(volume_id=handle))
    assert (await refused(call))[0] is Code.INVALID_ARGUMENT


async def test_an_expansion_says_in_use_only_for_what_is_in_use(rig: Rig) -> None:
    """The resizer takes FAILED_PRECONDITION as "in use" and does not come back while a pod uses the claim."""
    handle = await created(rig)
    rig.operator.extend_error = (GrpcCode.FAILED_PRECONDITION, "the pool is being looked after")
    code, message = await refused(expand(rig, handle, 2 * GIB))
    assert code is Code.UNAVAILABLE
    assert message == "the pool is being looked after"
    rig.operator.extend_error = None


# validate ------------------------------------------------------------------------------------------------
def validate(rig: Rig, volume_id: str, *capabilities: Any, **more: Any) -> Any:
    return rig.stub.ValidateVolumeCapabilities(
        csi_pb2.ValidateVolumeCapabilitiesRequest(
            volume_id=volume_id, volume_capabilities=capabilities, **more
        )
    )


async def test_what_is_possible_is_confirmed_and_what_is_not_is_explained(rig: Rig) -> None:
    handle = await created(rig)
    yes = await validate(rig, handle, mount())
    assert list(yes.confirmed.volume_capabilities) == [mount()]
    for impossible in (block(), mount("MULTI_NODE_MULTI_WRITER"), mount("MULTI_NODE_READER_ONLY")):
        answer = await validate(rig, handle, mount(), impossible)
        assert not answer.HasField("confirmed")
        assert answer.message
    assert not (await validate(rig, handle, mount(), parameters={"volumeType": "gold"})).HasField("confirmed")


async def test_bad_validations(rig: Rig) -> None:
    handle = await created(rig)
    assert (await refused(validate(rig, "", mount())))[0] is Code.INVALID_ARGUMENT
    assert (await refused(validate(rig, handle)))[0] is Code.INVALID_ARGUMENT
    assert (await refused(validate(rig, "fake-vol-id", mount())))[0] is Code.NOT_FOUND


async def entry_without_attachment(rig: Rig, handle: str, *, fenced: bool) -> None:
    (volume,) = (await rig.kube.list(Volume)).items
    assert volume.status.handle == handle
    entry = VolumeAttachmentEntry(
        attachment_uid="gone",
        attachment=f"{RELEASE}/gone",
        node="n1",
        generation=1,
        use=Use.MOUNT,
        fenced=fenced,
    )
    after = volume.with_(status=volume.status.with_(attachments=(entry,)))
    await rig.kube.update_status(volume, after)
    assert rig.gateway is not None
    store = rig.gateway.caches.volumes.store
    await eventually(lambda: all(v.status.attachments for v in store.all()))


async def test_an_entry_whose_attachment_is_gone_does_not_keep_a_volume_for_ever(rig: Rig) -> None:
    """Only the host can end such an entry, and it does so once the Volume is being deleted (docs/protocol.md)."""
    handle = await created(rig)
    await entry_without_attachment(rig, handle, fenced=False)
    code, _ = await refused(delete(rig, handle, timeout=1.5))
    assert code is Code.ABORTED
    (volume,) = (await rig.kube.list(Volume)).items
    assert volume.deleting
    assert rig.operator.deleted == []


async def test_a_node_that_was_cut_off_is_not_shown_as_published(rig: Rig) -> None:
    handle = await created(rig)
    await entry_without_attachment(rig, handle, fenced=True)
    (entry,) = (await rig.stub.ListVolumes(csi_pb2.ListVolumesRequest())).entries
    assert entry.HasField("status")
    assert list(entry.status.published_node_ids) == []
