"""Admission, detach, orphans and the formatting dialogue as pure decisions."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cinderblock.core.api import Attachment, Volume
from cinderblock.core.api.attachment import (
    AttachmentSpec,
    AttachmentStatus,
    Connection,
    ConnectionProtocol,
    Fence,
    FormatPermit,
    Formatted,
    Probe,
)
from cinderblock.core.api.meta import ObjectMeta, set_condition
from cinderblock.core.api.volume import (
    LOST,
    PROVISIONED,
    AccessMode,
    Filesystem,
    FilesystemState,
    Use,
    VolumeAttachmentEntry,
    VolumeSpec,
    VolumeStatus,
)
from cinderblock.core.clock import SystemClock
from cinderblock.core.errors import InvalidRequest
from cinderblock.operator.host.decide_attachment import (
    Admit,
    DropEntry,
    FenceEntry,
    KeepEntry,
    NodeFacts,
    OrphanView,
    Refuse,
    judge_admission,
    judge_detach,
    judge_orphan,
    reads_only,
)
from cinderblock.operator.host.decide_filesystem import (
    Nothing,
    Object,
    Permit,
    Record,
    judge_filesystem,
    may_be_writing,
)
from cinderblock.operator.host.volume_status import entry_added

NOW = SystemClock().now()
NODE = NodeFacts(exists=True, storage_node=True)
FORMATTING = FilesystemState.FORMATTING


def _volume(
    *entries: VolumeAttachmentEntry,
    modes: tuple[str, ...] = ("ReadWriteOnce",),
    provisioned: bool = True,
    lost: bool = False,
    deleting: bool = False,
    filesystem: Filesystem | None = None,
    counter: int = 5,
) -> Volume:
    conditions: tuple[Any, ...] = ()
    if provisioned:
        conditions = set_condition(conditions, PROVISIONED, True, reason="Created", generation=1, now=NOW)
    if lost:
        conditions = set_condition(conditions, LOST, True, reason="Vanished", generation=1, now=NOW)
    return Volume(
        metadata=ObjectMeta(name="v", namespace="d", uid="u", deletion_timestamp=NOW if deleting else None),
        spec=VolumeSpec(size="10", access_modes=tuple(AccessMode(m) for m in modes)),
        status=VolumeStatus(
            attachments=entries, attach_generation=counter, conditions=conditions, filesystem=filesystem
        ),
    )


def _attachment(
    node: str = "n1",
    uid: str = "a",
    *,
    deleting: bool = False,
    status: AttachmentStatus | None = None,
    **spec: Any,
) -> Attachment:
    return Attachment(
        metadata=ObjectMeta(name=uid, namespace="d", uid=uid, deletion_timestamp=NOW if deleting else None),
        spec=AttachmentSpec(volume="v", node=node, **spec),
        status=status or AttachmentStatus(),
    )


def _entry(node: str = "n1", uid: str = "a", *, generation: int = 5, **fields: Any) -> VolumeAttachmentEntry:
    values: dict[str, Any] = {"use": Use.BARE, **fields}
    return VolumeAttachmentEntry(
        attachment_uid=uid, attachment=f"d/{uid}", node=node, generation=generation, **values
    )


def _refused(verdict: Admit | Refuse) -> str:
    assert isinstance(verdict, Refuse)
    assert verdict.error.message
    return verdict.error.reason


# admission -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("volume", "node", "reason"),
    [
        (_volume(provisioned=False), NODE, "NotReady"),
        (_volume(deleting=True), NODE, "VolumeDeleting"),
        (_volume(lost=True), NODE, "Lost"),
        (_volume(), NodeFacts(exists=False, storage_node=False), "NotFound"),
        (_volume(), NodeFacts(exists=True, storage_node=False), "NotFound"),
        (_volume(), NodeFacts(exists=True, storage_node=True, same_node=False), "NotReady"),
        (_volume(), NodeFacts(exists=True, storage_node=True, reachable=False), "NotSupported"),
        (_volume(_entry("n2", "b")), NODE, "AttachedElsewhere"),
        (_volume(_entry("n1", "b")), NODE, "IncompatibleExists"),
    ],
)
def test_refusals(volume: Volume, node: NodeFacts, reason: str) -> None:
    assert _refused(judge_admission(volume, _attachment(), node)) == reason


def test_an_admission_draws_the_next_generation() -> None:
    verdict = judge_admission(_volume(), _attachment(read_only=True, use=Use.MOUNT), NODE)
    assert isinstance(verdict, Admit)
    entry = verdict.entry
    assert (entry.attachment_uid, entry.attachment, entry.node) == ("a", "d/a", "n1")
    assert (entry.generation, entry.read_only, entry.use, entry.fenced) == (6, True, Use.MOUNT, False)


def test_a_fenced_entry_makes_room_for_other_nodes_only() -> None:
    assert isinstance(judge_admission(_volume(_entry("n2", "b", fenced=True)), _attachment(), NODE), Admit)
    held = _volume(_entry("n1", "b", fenced=True))
    assert _refused(judge_admission(held, _attachment(), NODE, ["b"])) == "IncompatibleExists"


def test_a_reader_by_access_mode_is_a_reader() -> None:
    assert reads_only(_attachment(access_mode="MULTI_NODE_READER_ONLY"))
    assert not reads_only(_attachment(access_mode="SINGLE_NODE_WRITER"))


@pytest.mark.parametrize(
    ("use", "filesystem", "others", "outcome"),
    [
        (Use.MOUNT, None, (), None),
        (Use.MOUNT, Filesystem(type="ext4", state=FORMATTING), (), "same"),
        (Use.MOUNT, Filesystem(state=FilesystemState.RAW), (), "refused"),
        (Use.BLOCK, None, (), "raw"),
        (Use.BLOCK, Filesystem(type="ext4", state=FORMATTING), (), "raw"),
        (
            Use.BLOCK,
            Filesystem(type="ext4", state=FORMATTING),
            (_entry("n2", "b", use=Use.MOUNT),),
            "refused",
        ),
        (Use.BLOCK, Filesystem(type="ext4", state=FilesystemState.FORMATTED), (), "refused"),
        (Use.BARE, Filesystem(type="ext4", state=FilesystemState.FORMATTED), (), "same"),
        (Use.BARE, Filesystem(state=FilesystemState.RAW), (), "same"),
        (Use.BARE, None, (), None),
        (Use.BARE, None, (_entry("n2", "b", use=Use.MOUNT),), "refused"),
        (Use.BARE, None, (_entry("n2", "b", use=Use.MOUNT, fenced=True),), None),
        (
            Use.BARE,
            Filesystem(type="ext4", state=FORMATTING, permitted=True),
            (_entry("n2", "b", use=Use.MOUNT),),
            "refused",
        ),
    ],
)
def test_how_a_volume_was_first_used_binds_later_uses(
    use: Use, filesystem: Filesystem | None, others: tuple[VolumeAttachmentEntry, ...], outcome: str | None
) -> None:
    volume = _volume(*others, filesystem=filesystem, modes=("ReadWriteMany",))
    verdict = judge_admission(volume, _attachment(use=use), NODE)
    if outcome == "refused":
        assert _refused(verdict) == "InvalidRequest"
        return
    assert isinstance(verdict, Admit)
    expected = Filesystem(state=FilesystemState.RAW) if outcome == "raw" else filesystem
    assert verdict.filesystem == expected


def test_who_writes_to_a_bare_device_may_leave_what_is_no_half_made_filesystem() -> None:
    volume = _volume(filesystem=Filesystem(type="ext4", state=FORMATTING, permitted=True))
    writer = judge_admission(volume, _attachment(use=Use.BARE), NODE)
    reader = judge_admission(volume, _attachment(use=Use.BARE, read_only=True), NODE)
    assert isinstance(writer, Admit)
    assert isinstance(reader, Admit)
    assert writer.filesystem == Filesystem(type="ext4", state=FORMATTING)
    assert reader.filesystem == volume.status.filesystem


def test_a_vanished_attachment_is_followed_by_its_like_on_the_same_node_only() -> None:
    volume = _volume(_entry("n1", "gone"))
    verdict = judge_admission(volume, _attachment(), NODE, ["gone"])
    assert isinstance(verdict, Admit)
    assert verdict.supersedes == "gone"
    status = entry_added(volume.status, verdict.entry, supersedes=verdict.supersedes)
    assert [e.attachment_uid for e in status.attachments] == ["a"]
    assert status.attach_generation == 6
    assert _refused(judge_admission(volume, _attachment("n2"), NODE, ["gone"])) == "AttachedElsewhere"
    unlike = _attachment(use=Use.BLOCK)
    assert _refused(judge_admission(volume, unlike, NODE, ["gone"])) == "IncompatibleExists"


@given(
    modes=st.sampled_from([("ReadWriteOnce",), ("ReadWriteOncePod",), ("ReadOnlyMany",), ("ReadWriteMany",)]),
    asks=st.lists(st.tuples(st.sampled_from(["n1", "n2", "n3"]), st.booleans()), max_size=8),
    fenced=st.sets(st.integers(0, 7)),
)
def test_whatever_is_asked_in_whatever_order_the_access_modes_hold(
    modes: tuple[str, ...], asks: list[tuple[str, bool]], fenced: set[int]
) -> None:
    volume = _volume(modes=modes, counter=0)
    for number, (node, read_only) in enumerate(asks):
        verdict = judge_admission(volume, _attachment(node, f"a{number}", read_only=read_only), NODE)
        if isinstance(verdict, Admit):
            status = entry_added(volume.status, verdict.entry, supersedes=None)
            if number in fenced:
                cut = tuple(
                    e.with_(fenced=True) if e.attachment_uid == f"a{number}" else e
                    for e in status.attachments
                )
                status = status.with_(attachments=cut)
            volume = volume.with_(status=status)
    live = [e for e in volume.status.attachments if not e.fenced]
    assert len({e.node for e in live}) == len(live)
    generations = [e.generation for e in volume.status.attachments]
    assert generations == sorted(set(generations))
    if modes in (("ReadWriteOnce",), ("ReadWriteOncePod",)):
        assert len(live) <= 1
    if modes == ("ReadOnlyMany",) and len(live) > 1:
        assert all(e.read_only for e in live)


# detach --------------------------------------------------------------------------------------------------
CONNECTION = Connection(protocol=ConnectionProtocol.FAKE, generation=5, size_bytes=1)


@pytest.mark.parametrize(
    ("deleting", "published", "released", "fence", "fenced", "verdict"),
    [
        (True, False, 0, None, False, DropEntry),
        (True, True, 0, None, False, KeepEntry),
        (True, True, 4, None, False, KeepEntry),
        (True, True, 5, None, False, DropEntry),
        (True, True, 9, None, False, DropEntry),
        (False, True, 5, None, False, KeepEntry),
        (False, False, 0, None, False, KeepEntry),
        (True, True, 0, 4, False, KeepEntry),
        (True, True, 0, 5, False, FenceEntry),
        (False, True, 0, 5, False, FenceEntry),
        (True, True, 0, 5, True, DropEntry),
        (True, True, 0, None, True, DropEntry),
        (False, True, 0, 5, True, KeepEntry),
    ],
)
def test_only_a_release_or_a_fence_ends_a_published_export(
    deleting: bool, published: bool, released: int, fence: int | None, fenced: bool, verdict: type
) -> None:
    status = AttachmentStatus(
        connection=CONNECTION if published else None,
        released=released,
        fence=Fence(generation=fence, reason="x") if fence else None,
    )
    attachment = _attachment(deleting=deleting, status=status)
    assert isinstance(judge_detach(attachment, _entry(fenced=fenced)), verdict)


def test_an_orphan_is_dropped_only_with_a_proof() -> None:
    for deleting, wanted, can_fence, local, fenced in product([False, True], repeat=5):
        verdict = judge_orphan(
            OrphanView(
                _entry(fenced=fenced),
                volume_deleting=deleting,
                wanted_by_other_node=wanted,
                can_fence=can_fence,
                node_local=local,
            )
        )
        if fenced:
            assert isinstance(verdict, DropEntry)
        elif isinstance(verdict, FenceEntry):
            assert can_fence
            assert deleting or wanted
        elif isinstance(verdict, DropEntry):
            assert local
            assert deleting
        else:
            assert isinstance(verdict, KeepEntry)


# formatting ----------------------------------------------------------------------------------------------
MOUNT = _entry(use=Use.MOUNT)
PLAN = Filesystem(type="ext4", state=FORMATTING)
BEGUN = PLAN.with_(permitted=True)
DONE = Filesystem(type="ext4", state=FilesystemState.FORMATTED)
PERMIT = FormatPermit(generation=5, type="ext4")


def _seen(found: str | None, *, wanted: str = "ext4", generation: int = 5, **status: Any) -> Attachment:
    probe = Probe(wanted_type=wanted, found=found, generation=generation) if found else None
    return _attachment(use=Use.MOUNT, status=AttachmentStatus(probe=probe, **status))


@pytest.mark.parametrize(
    ("filesystem", "attachment", "answer"),
    [
        (None, _seen(None), Nothing()),
        (None, _seen("Blank"), Record(BEGUN)),
        (PLAN, _seen("Blank"), Record(BEGUN)),
        (BEGUN, _seen("Blank"), Permit(PERMIT)),
        (BEGUN, _seen("ext4"), Permit(PERMIT)),  # half-made by an earlier permit, whatever it looks like
        (BEGUN, _seen("Other"), Permit(PERMIT)),
        (BEGUN, _seen(None), Nothing()),
        (BEGUN, _seen("ext4", wanted="xfs"), Object),
        (BEGUN, _seen("ext4", generation=4), Nothing()),
        (PLAN, _seen("Blank", generation=4), Nothing()),  # what the last attachment saw
        (None, _seen("ext4"), Record(DONE)),
        (PLAN, _seen("ext4"), Record(DONE)),
        (None, _seen("xfs"), Object),
        (PLAN, _seen("Other"), Object),
        (PLAN, _seen("Blank", wanted="xfs"), Object),
        (DONE, _seen("Blank"), Nothing()),  # formatted once: a blank device now is a fault, not a reason
        (DONE, _seen("xfs"), Nothing()),
        (Filesystem(state=FilesystemState.RAW), _seen("Blank"), Nothing()),
        (PLAN, _seen("Blank", format_permit=PERMIT), Nothing()),
        (
            PLAN,
            _seen("ext4", format_permit=PERMIT),
            Nothing(),
        ),  # half-made, perhaps: the node reports the end
        (BEGUN, _seen("Blank", format_permit=FormatPermit(generation=4, type="ext4")), Permit(PERMIT)),
        (
            PLAN,
            _seen("Blank", format_permit=PERMIT, formatted=Formatted(type="ext4", generation=5)),
            Record(DONE),
        ),
        (PLAN, _seen("Blank", formatted=Formatted(type="ext4", generation=5)), Object),
        (PLAN, _seen("Blank", format_permit=PERMIT, formatted=Formatted(type="xfs", generation=5)), Object),
        (
            PLAN,
            _seen("Blank", format_permit=PERMIT, formatted=Formatted(type="ext4", generation=4)),
            Nothing(),
        ),
    ],
)
def test_the_formatting_dialogue(filesystem: Filesystem | None, attachment: Attachment, answer: Any) -> None:
    given_answer = judge_filesystem(_volume(MOUNT, filesystem=filesystem), attachment, MOUNT)
    if isinstance(answer, type):
        assert isinstance(given_answer, answer)
        assert isinstance(given_answer, Object)
        assert isinstance(given_answer.error, InvalidRequest)
    else:
        assert given_answer == answer


@pytest.mark.parametrize(
    "entry", [_entry(use=Use.BARE), _entry(use=Use.BLOCK), _entry(use=Use.MOUNT, fenced=True)]
)
def test_no_permit_for_other_uses_or_the_fenced(entry: VolumeAttachmentEntry) -> None:
    assert judge_filesystem(_volume(entry), _seen("Blank"), entry) == Nothing()


def test_no_permit_for_who_leaves_who_reads_or_while_another_may_format() -> None:
    volume = _volume(MOUNT, filesystem=PLAN)
    leaving = _seen("Blank").with_(metadata=_attachment(deleting=True).metadata)
    assert judge_filesystem(volume, leaving, MOUNT) == Nothing()
    assert isinstance(judge_filesystem(volume, _seen("Blank"), MOUNT.with_(read_only=True)), Object)
    assert judge_filesystem(volume, _seen("Blank"), MOUNT, rival=True) == Nothing()
    assert judge_filesystem(volume, _seen("ext4"), MOUNT, rival=True) == Nothing()
    begun = _volume(MOUNT, filesystem=BEGUN)
    assert judge_filesystem(begun, _seen("ext4"), MOUNT, rival=True) == Nothing()
    assert isinstance(judge_filesystem(begun, _seen("ext4"), MOUNT.with_(read_only=True)), Object)


def test_who_may_be_writing() -> None:
    assert may_be_writing(MOUNT, None)  # its Attachment is gone: nobody knows
    assert may_be_writing(MOUNT, _seen("Blank", format_permit=PERMIT))
    assert not may_be_writing(MOUNT, _seen("Blank"))
    assert not may_be_writing(MOUNT.with_(fenced=True), None)
    assert may_be_writing(_entry(use=Use.BARE), None)
    assert may_be_writing(_entry(use=Use.BARE), _attachment())
    assert not may_be_writing(_entry(use=Use.BARE, read_only=True), _attachment())
