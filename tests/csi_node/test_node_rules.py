"""The node's decisions, without a kernel."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from cinderblock.core.api.attachment import (
    CONNECTED,
    DEVICE_BUSY,
    Attachment,
    AttachmentSpec,
    AttachmentStatus,
    Connection,
    ConnectionProtocol,
    Fence,
    FormatPermit,
    Formatted,
    LocalConnection,
    Probe,
)
from cinderblock.core.api.meta import ErrorRecord, ObjectMeta, find_condition, is_true, set_condition
from cinderblock.core.api.volume import Filesystem, FilesystemState, Use, Volume, VolumeSpec
from cinderblock.core.errors import (
    GrpcCode,
    IncompatibleExists,
    InvalidRequest,
    NotReady,
    PreconditionFailed,
)
from cinderblock.core.units import MIB
from cinderblock.csi.capability import Capability, VolumeMode
from cinderblock.csi.connectors.base import Device, WrongDevice
from cinderblock.csi.connectors.beneath import components
from cinderblock.csi.node import decide as rules
from cinderblock.csi.node.decide import Step
from cinderblock.csi.node.links import DeviceLinks
from cinderblock.csi.node.mountinfo import Mount, device_node_number, mount_at, parse_mountinfo, uses_of
from cinderblock.csi.node.mounts import shows_device
from cinderblock.csi.node.options import check_options
from cinderblock.csi.node.probe import parse_export, probe_ranges
from cinderblock.csi.node.publish_rules import PublishStep, decide_publish
from cinderblock.csi.node.records import Record, RecordKind, Records
from cinderblock.csi.node.stage_rules import StageStep, plan_stage

NOW = datetime(2030, 1, 1, tzinfo=UTC)
NODE, BOOT = "n1", "boot-1"


def connection(generation: int = 3) -> Connection:
    return Connection(
        protocol=ConnectionProtocol.LOCAL,
        generation=generation,
        size_bytes=MIB,
        local=LocalConnection(path="p/x", identity="h-1"),
    )


def attachment(
    *, node: str = NODE, deleting: bool = False, use: Use = Use.MOUNT, **status: object
) -> Attachment:
    meta = ObjectMeta(
        name="a", namespace="ns", uid="uid-1", generation=1, deletion_timestamp=NOW if deleting else None
    )
    values = {"generation": 3, "connection": connection(), **status}
    return Attachment(
        metadata=meta,
        spec=AttachmentSpec(volume="v", node=node, use=use),
        status=AttachmentStatus().with_(**values),
    )


def connected(**status: object) -> Attachment:
    made = attachment(**{"boot_id": BOOT, "device": "/dev/x", **status})
    conditions = set_condition((), CONNECTED, True, reason="Connected", generation=1, now=NOW)
    return made.with_(status=made.status.with_(conditions=conditions))


def volume(filesystem: Filesystem | None = None) -> Volume:
    made = Volume(metadata=ObjectMeta(name="v", namespace="ns"), spec=VolumeSpec(size="1Gi"))
    return made.with_(status=made.status.with_(filesystem=filesystem))


FORMATTING = Filesystem(type="ext4", state=FilesystemState.FORMATTING)
FORMATTED = Filesystem(type="ext4", state=FilesystemState.FORMATTED)
RAW = Filesystem(state=FilesystemState.RAW)


@pytest.mark.parametrize(
    ("seen", "step"),
    [
        (attachment(), Step.CONNECT),
        (connected(), Step.CONNECT),
        (attachment(node="other"), Step.NOTHING),
        (attachment(node="other", deleting=True), Step.NOTHING),
        (attachment(connection=None), Step.NOTHING),
        (attachment(connection=None, deleting=True), Step.NOTHING),
        (attachment(connection=connection(2)), Step.NOTHING),  # of an earlier generation
        (attachment(deleting=True), Step.LET_GO),
        (attachment(deleting=True, boot_id="earlier"), Step.LET_GO),
        (attachment(deleting=True, released=3), Step.NOTHING),
        (attachment(released=3), Step.NOTHING),
        (attachment(released=2), Step.CONNECT),
        (attachment(boot_id="earlier"), Step.VOID),
        (attachment(fence=Fence(generation=3, reason="NodeGone")), Step.LET_GO),
        (attachment(fence=Fence(generation=2, reason="NodeGone")), Step.CONNECT),
    ],
)
def test_what_the_agent_does(seen, step):
    assert rules.decide(seen, node=NODE, boot_id=BOOT) is step


PERMIT, PROBE = (
    FormatPermit(generation=3, type="ext4"),
    Probe(wanted_type="ext4", found="Blank", generation=3),
)


@pytest.mark.parametrize(
    ("seen", "filesystem", "probes"),
    [
        (attachment(), None, True),
        (attachment(), FORMATTING, True),
        (attachment(), FORMATTED, False),
        (attachment(), RAW, False),
        (attachment(use=Use.BLOCK), None, False),
        (attachment(use=Use.BARE), None, False),
        (attachment(probe=PROBE), FORMATTING, False),
        (attachment(probe=PROBE.with_(generation=2)), FORMATTING, True),
        # under a permit the device may be half-made by our own mkfs: never judged again
        (attachment(format_permit=PERMIT), FORMATTING, False),
        (attachment(format_permit=PERMIT.with_(generation=2)), FORMATTING, True),
        (attachment(formatted=Formatted(type="ext4", generation=3)), FORMATTING, False),
    ],
)
def test_when_a_device_is_probed(seen, filesystem, probes):
    assert rules.needs_probe(seen, volume(filesystem)) is probes


def test_reports_change_only_the_nodes_own_fields():
    host = set_condition((), "Exported", True, reason="Exported", generation=1, now=NOW)
    before = attachment(conditions=host, format_permit=PERMIT, admitted=True)
    up = rules.report_connected(
        before, link="/dev/cinderblock/uid-1", size_bytes=MIB, boot_id=BOOT, probe=PROBE, now=NOW
    )
    assert (up.status.device, up.status.device_bytes, up.status.boot_id) == (
        "/dev/cinderblock/uid-1",
        MIB,
        BOOT,
    )
    assert is_true(up.status.conditions, CONNECTED)
    failed = rules.report_failed(up, WrongDevice("another volume"), NOW)
    assert failed.status.node_error.grpc_code is GrpcCode.FAILED_PRECONDITION
    assert not is_true(failed.status.conditions, CONNECTED)
    busy = rules.report_busy(up, ["/a", "/b", "/c", "/d"], NOW)
    assert "and 1 more" in find_condition(busy.status.conditions, DEVICE_BUSY).message
    void = rules.report_voided(up, NOW)
    assert (void.status.device, void.status.boot_id, void.status.probe) == (None, None, None)
    gone = rules.report_released(busy, NOW)
    assert (gone.status.released, gone.status.device) == (3, None)
    assert find_condition(gone.status.conditions, DEVICE_BUSY) is None
    for after in (up, failed, busy, void, gone):
        assert is_true(after.status.conditions, "Exported")
        assert after.status.format_permit == PERMIT
        assert (after.spec, after.metadata) == (before.spec, before.metadata)
    # what says nothing new is the very same object, so nothing is written
    again = rules.report_connected(
        up, link="/dev/cinderblock/uid-1", size_bytes=MIB, boot_id=BOOT, probe=None, now=datetime.now(UTC)
    )
    assert again == up


MOUNT = Capability(VolumeMode.FILESYSTEM, "SINGLE_NODE_WRITER", "ext4")
BLOCK = Capability(VolumeMode.BLOCK, "SINGLE_NODE_WRITER")


def plan(seen: Attachment, filesystem: Filesystem | None, capability: Capability = MOUNT, **options: object):
    values = {"boot_id": BOOT, "read_only": False, **options}
    return plan_stage(seen, volume(filesystem), capability, **values)


def test_mkfs_needs_state_permit_and_generation():
    permitted = connected(format_permit=PERMIT, probe=PROBE)
    assert plan(permitted, FORMATTING).step is StageStep.FORMAT
    for seen, filesystem in (
        (permitted, None),
        (connected(probe=PROBE), FORMATTING),
        (connected(probe=PROBE, format_permit=PERMIT.with_(generation=2)), FORMATTING),
        (connected(probe=PROBE, format_permit=PERMIT.with_(type="xfs")), FORMATTING),
        (
            connected(probe=PROBE, format_permit=PERMIT, formatted=Formatted(type="ext4", generation=3)),
            FORMATTING,
        ),
        (connected(probe=None), FORMATTING),
        (attachment(probe=PROBE, format_permit=PERMIT), FORMATTING),  # not connected
        (connected(boot_id="earlier", probe=PROBE, format_permit=PERMIT), FORMATTING),
    ):
        waiting = plan(seen, filesystem)
        assert waiting.step is StageStep.WAIT
        assert waiting.why
    assert plan(permitted, FORMATTED).step is StageStep.USE


def test_an_old_error_of_the_host_does_not_end_a_stage_that_goes_on():
    old = ErrorRecord(reason="NotReady", message="not provisioned", grpc_code=GrpcCode.UNAVAILABLE)
    assert (
        plan(connected(probe=PROBE, format_permit=PERMIT, last_error=old), FORMATTING).step
        is StageStep.FORMAT
    )
    assert plan(connected(last_error=old), FORMATTED).step is StageStep.USE


def test_a_half_made_filesystem_is_never_mounted():
    assert plan(connected(probe=PROBE.with_(found="ext4")), FORMATTING).step is StageStep.WAIT


@pytest.mark.parametrize(
    ("seen", "filesystem", "capability", "options", "error"),
    [
        (connected(deleting=True), FORMATTED, MOUNT, {}, NotReady),
        (connected(released=3), FORMATTED, MOUNT, {}, NotReady),
        (connected(), RAW, MOUNT, {}, PreconditionFailed),
        (
            connected(),
            FORMATTED,
            Capability(VolumeMode.FILESYSTEM, "SINGLE_NODE_WRITER", "xfs"),
            {},
            PreconditionFailed,
        ),
        (connected(), FORMATTED.with_(type="btrfs"), MOUNT, {}, PreconditionFailed),
        (connected(), FORMATTED, BLOCK, {}, PreconditionFailed),
        (connected(use=Use.BLOCK), FORMATTED, MOUNT, {}, PreconditionFailed),
        (
            connected(probe=PROBE, format_permit=PERMIT),
            FORMATTING,
            MOUNT,
            {"read_only": True},
            PreconditionFailed,
        ),
        (
            connected(
                probe=PROBE.with_(found="Other"),
                last_error=ErrorRecord(
                    reason="InvalidRequest", message="holds Other", grpc_code=GrpcCode.INVALID_ARGUMENT
                ),
            ),
            FORMATTING,
            MOUNT,
            {},
            InvalidRequest,
        ),
    ],
)
def test_what_is_never_staged(seen, filesystem, capability, options, error):
    with pytest.raises(error):
        plan(seen, filesystem, capability, **options)


def test_a_block_volume_asks_for_no_filesystem():
    assert plan(connected(use=Use.BLOCK), RAW, BLOCK).step is StageStep.USE


def record(path: str, mode: str, *, read_only: bool = False) -> Record:
    return Record(
        kind=RecordKind.PUBLISHED,
        volume_id="v",
        path=path,
        volume_mode="Filesystem",
        access_mode=mode,
        read_only=read_only,
    )


# The specification's table: rows by access mode; same target same arguments, same target other arguments,
# other target same arguments, other target other arguments.
_OK, _DONE = PublishStep.BIND, PublishStep.DONE
_SINGLE = (_DONE, IncompatibleExists, PreconditionFailed, PreconditionFailed)
_SEVERAL = (_DONE, IncompatibleExists, _OK, _OK)


@pytest.mark.parametrize(
    ("mode", "row"),
    [
        ("SINGLE_NODE_WRITER", _SINGLE),
        ("SINGLE_NODE_READER_ONLY", _SINGLE),
        ("SINGLE_NODE_SINGLE_WRITER", _SINGLE),
        ("SINGLE_NODE_MULTI_WRITER", _SEVERAL),
        ("MULTI_NODE_READER_ONLY", _SEVERAL),
        ("MULTI_NODE_SINGLE_WRITER", _SEVERAL),
        ("MULTI_NODE_MULTI_WRITER", _SEVERAL),
    ],
)
def test_the_publish_table(mode, row):
    before = [record("/t1", mode)]
    cells = (
        record("/t1", mode),
        record("/t1", mode, read_only=True),
        record("/t2", mode),
        record("/t2", mode, read_only=True),
    )
    for asked, expected in zip(cells, row, strict=True):
        if isinstance(expected, PublishStep):
            assert decide_publish(asked, before) is expected
        else:
            with pytest.raises(expected):
                decide_publish(asked, before)
    assert decide_publish(cells[0], []) is PublishStep.BIND


def test_a_single_writer_keeps_later_callers_out_whatever_they_say():
    with pytest.raises(PreconditionFailed):
        decide_publish(
            record("/t2", "SINGLE_NODE_MULTI_WRITER"), [record("/t1", "SINGLE_NODE_SINGLE_WRITER")]
        )


def test_mountinfo_as_the_kernel_writes_it():
    text = (
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        r"30 22 7:3 / /a\040b\011c\134d ro,nosuid shared:5 master:2 - xfs /dev/loop3 rw,attr2" + "\n"
        "31 22 0:6 /loop3 /dev/x rw - devtmpfs devtmpfs rw,size=1k\n"
        "32 22 7:4 / /stack rw - ext4 /dev/loop4 rw\n"
        "33 32 7:5 / /stack rw - ext4 /dev/loop5 ro\n"
        "broken line\n\n"
    )
    mounts = parse_mountinfo(text)
    assert [m.path for m in mounts] == ["/", "/a b\tc\\d", "/dev/x", "/stack", "/stack"]
    assert mounts[1].device == (7, 3)
    assert mounts[1].read_only
    assert mounts[2].root == "/loop3"
    assert mount_at("/stack", mounts).device == (7, 5)  # the one on top
    assert mount_at("/stack/../stack", mounts).read_only
    assert mount_at("/nowhere", mounts) is None


@pytest.mark.parametrize("fs_type", ["nfs4", "fuse.anything", "ceph", "lustre", "a-filesystem-of-next-year"])
def test_filesystems_that_may_hang_are_not_asked(monkeypatch, fs_type):
    """One dead server below another driver's subPath must not stop this node plugin."""

    def hangs(path):
        raise AssertionError(f"{path} was looked at")

    foreign = Mount((0, 99), "/sub", "/var/lib/kubelet/x", frozenset(), fs_type, "server:/", frozenset())
    monkeypatch.setattr("os.lstat", hangs)
    device = Device(Path("/dev/loop7"), (7, 7), MIB, read_only=False)
    assert not shows_device(foreign, device)
    assert uses_of(device.number, [foreign]) == []
    assert device_node_number(foreign) is None


@pytest.mark.parametrize("size", [1, 512, MIB - 1, MIB, MIB + 1, 8 * MIB, 8 * MIB + 1, 64 * MIB + 7, 1 << 40])
def test_probe_ranges_cover_both_ends_and_stay_inside(size):
    ranges = probe_ranges(size)
    assert all(offset >= 0 and length > 0 and offset + length <= size for offset, length in ranges)
    covered = {b for offset, length in ranges for b in (offset, offset + length - 1)}
    assert {0, size - 1} <= covered
    assert sum(length for _, length in ranges) <= 3 * MIB


def test_blkid_output():
    assert parse_export("DEVNAME=/dev/x\nTYPE=ext4\nLABEL=a=b\nUSAGE=filesystem\n") == {
        "DEVNAME": "/dev/x",
        "TYPE": "ext4",
        "LABEL": "a=b",
        "USAGE": "filesystem",
    }


@pytest.mark.parametrize(
    "flags",
    [
        ["loop=/dev/loop9"],
        ["x-mount.mkdir"],
        ["journal_path=/etc"],
        ["helper=x"],
        ["uid=0"],
        ["ro,bind"],
        ["-o"],
        ["--"],
        [""],
        ["noatime\nsuid"],
        ["noatime,"],
        ["data=ordered;x"],
        ["commit=99999"],
        ["logdev=/dev/vda"],
        ["errors=panic"],
        ["remount"],
        ["context=x"],
        ["norecovery"],
    ],
)
def test_options_off_the_list_are_refused_without_showing_their_value(flags):
    with pytest.raises(InvalidRequest) as caught:
        check_options("ext4", flags)
    assert "/dev/" not in caught.value.message


def test_options_on_the_list_pass_once_each():
    assert check_options("ext4", ["noatime,commit=5", "noatime"]) == ("noatime", "commit=5")
    assert check_options("xfs", ["allocsize=64k", "discard"]) == ("allocsize=64k", "discard")
    with pytest.raises(InvalidRequest, match="btrfs"):
        check_options("btrfs", [])


@pytest.mark.parametrize(
    "path", ["", "/", "/a", "a//b", "a/", "./a", "a/../b", "..", "a\0", "a/" * 3000 + "b"]
)
def test_paths_of_images_stay_below_the_root(path):
    with pytest.raises(InvalidRequest):
        components(path)


def test_records_survive_and_a_torn_one_is_none(tmp_path):
    records = Records(tmp_path)
    one = record(str(tmp_path / "t1"), "SINGLE_NODE_WRITER")
    records.write(one)
    records.write(one)
    assert Records(tmp_path).of_volume(RecordKind.PUBLISHED, "v") == [one]
    assert records.of_volume(RecordKind.PUBLISHED, "w") == []
    assert records.read(RecordKind.STAGED, "v", one.path) is None
    (file,) = (tmp_path / "published").rglob("*.json")
    file.write_text('{"kind": "publ')
    assert records.read(RecordKind.PUBLISHED, "v", one.path) is None
    records.remove(RecordKind.PUBLISHED, "v", one.path)
    records.remove(RecordKind.PUBLISHED, "v", one.path)
    assert list((tmp_path / "published").iterdir()) == []


def test_links_are_replaced_in_one_step_and_hold_uids_only(tmp_path):
    links = DeviceLinks(tmp_path / "links")
    assert links.uids() == []
    links.point("uid-1", tmp_path / "loop1")
    links.point("uid-1", tmp_path / "loop2")
    assert links.target("uid-1") == tmp_path / "loop2"
    (tmp_path / "links" / "by-hand").write_text("not a link")
    assert links.uids() == ["uid-1"]
    links.remove("uid-1")
    links.remove("uid-1")
    assert links.target("uid-1") is None
    for name in ("../x", "", "a/b", "x" * 65):
        with pytest.raises(ValueError, match="no UID"):
            links.path(name)
