"""Attach, stage, publish and back, over a real socket, with real loop devices and filesystems."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from node_harness import NodeHarness, capability, code_of, harness, until
from node_host import NODE
from node_pool import MIB, loops_below, mounts_below

from cinderblock.core.api.node import StorageNode
from cinderblock.core.api.volume import FilesystemState, Use
from cinderblock.core.errors import BackendFault
from cinderblock.csi.connectors.local import LocalConnector
from cinderblock.csi.node import filesystem, stage
from cinderblock.csi.pb import csi_pb2

pytestmark = pytest.mark.root
Code = grpc.StatusCode


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeHarness]:
    async with harness(tmp_path) as made:
        yield made


@pytest.mark.parametrize(("fs_type", "size_bytes"), [("ext4", 64 * MIB), ("xfs", 320 * MIB)])
async def test_data_survives_restarts_between_all_steps_and_a_second_attach(node, fs_type, size_bytes):
    handle = await node.host.volume(size_bytes=size_bytes, fs_type=fs_type)
    cap = capability(fs_type)
    for turn in range(2):
        await node.host.attach(handle)
        for step in (node.stage, node.publish):
            await step(handle, cap)
            await step(handle, cap)  # repeated
            await node.restart()
            await step(handle, cap)  # repeated to a process that knows nothing
        file = Path(node.target(), "file")
        if turn == 0:
            file.write_bytes(b"precious")
        assert file.read_bytes() == b"precious"
        for undo in (node.unpublish, node.unstage):
            await undo(handle)
            await undo(handle)
            await node.restart()
            await undo(handle)
        assert not Path(node.target()).exists()
        assert mounts_below(node.root) == []
        await node.released(handle)
        await until(lambda: loops_below(node.root) == [])
        assert list((node.root / "links").iterdir()) == []
    assert node.runner.count(f"mkfs.{fs_type}") == 1
    volume = await node.host.read_volume()
    assert volume.status.filesystem is not None
    assert volume.status.filesystem.state is FilesystemState.FORMATTED
    assert volume.status.attachments == ()


async def test_block_volume(node):
    handle = await node.host.volume(block=True, fs_type=None)
    await node.host.attach(handle, use=Use.BLOCK)
    cap = capability(None)
    await node.stage(handle, cap)
    await node.restart()
    await node.stage(handle, cap)
    await node.publish(handle, cap)
    await node.publish(handle, cap)
    target = Path(node.target())
    assert target.is_block_device()
    with target.open("r+b", buffering=0) as raw:
        raw.write(b"x" * 4096)
        os.fsync(raw.fileno())
    stats = await node.stub.NodeGetVolumeStats(
        csi_pb2.NodeGetVolumeStatsRequest(volume_id=handle, volume_path=str(target))
    )
    assert [(u.unit, u.total) for u in stats.usage] == [(csi_pb2.VolumeUsage.BYTES, 64 * MIB)]
    await node.restart()
    await node.host.detach(handle)  # asked while staged: the device stays

    async def busy() -> bool:
        conditions = (await node.host.attachment(handle)).status.conditions
        return any(c.type == "DeviceBusy" and c.status == "True" for c in conditions)

    await until(busy)
    await node.unpublish(handle)
    assert not target.exists()
    await node.unstage(handle)
    assert list(Path(node.staging()).iterdir()) == []
    await until(lambda: loops_below(node.root) == [])
    image = node.pool.root / "pool" / "volumes" / f"{handle}-1.img"
    assert image.read_bytes()[:4096] == b"x" * 4096
    assert node.runner.count("mkfs.ext4") == 0


async def test_many_equal_calls_have_one_effect(node):
    handle = await node.host.volume()
    await node.host.attach(handle)
    await asyncio.gather(*(node.stage(handle) for _ in range(12)))
    await asyncio.gather(*(node.publish(handle) for _ in range(12)))
    assert node.runner.count("mkfs.ext4") == 1
    assert node.runner.count("mount", "-t") == 1
    assert node.runner.count("mount", "--bind") == 1
    assert len(loops_below(node.root)) == 1
    await asyncio.gather(*(node.unpublish(handle) for _ in range(12)))
    await asyncio.gather(*(node.unstage(handle) for _ in range(12)))
    assert mounts_below(node.root) == []
    await node.released(handle)


async def test_a_short_deadline_neither_stops_nor_doubles_the_work(node):
    handle = await node.host.volume()
    await node.host.attach(handle)
    slow = asyncio.Event()

    async def before(argv) -> None:
        if argv[0] == "mkfs.ext4":
            await slow.wait()

    node.runner.before = before
    for _ in range(3):
        code, _ = await code_of(node.stage(handle, timeout=0.3))
        assert code in (Code.ABORTED, Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE)
    slow.set()
    await node.stage(handle)
    assert node.runner.count("mkfs.ext4") == 1
    await node.unstage(handle)
    await node.released(handle)


async def test_unstage_takes_back_a_stage_that_still_waits(node):
    node.host.exports = False
    handle = await node.host.volume()
    await node.host.attach(handle)
    staging = asyncio.create_task(code_of(node.stage(handle, timeout=30)))
    await until(lambda: node.plugin.service.stager._tickets)
    await node.unstage(handle)
    code, text = await staging
    assert (code, text) == (Code.ABORTED, "the volume is being unstaged")
    node.host.exports = True
    assert mounts_below(node.root) == []
    await node.released(handle)


async def test_a_wrong_image_is_reported_and_never_used(node):
    handle = await node.host.volume()
    image = node.pool.root / "pool" / "volumes" / f"{handle}-1.img"
    os.setxattr(image, "user.cinderblock.identity", b"somebody-else-7")
    await node.host.attach(handle)

    async def told() -> bool:
        return (await node.host.attachment(handle)).status.node_error is not None

    await until(told)
    attachment = await node.host.attachment(handle)
    assert attachment.status.node_error.reason == "WrongDevice"
    assert attachment.status.device is None
    code, text = await code_of(node.stage(handle, timeout=1))
    assert code is Code.ABORTED
    assert "somebody-else-7" in text
    assert loops_below(node.root) == []
    await node.released(handle)


async def test_a_reboot_voids_the_device_before_anything_is_staged(node):
    handle = await node.host.volume()
    await node.host.attach(handle)
    await node.stage(handle)
    await node.unstage(handle)
    await node.stop()
    for name in loops_below(node.root):  # what a reboot does
        subprocess.run(["losetup", "-d", f"/dev/{name}"], check=True)
    node.kube.writes.clear()
    node.boot_id = "boot-2"
    await node.start()
    await node.stage(handle)
    attachment = await node.host.attachment(handle)
    assert attachment.status.boot_id == "boot-2"
    assert node.runner.count("mkfs.ext4") == 1
    facts = await node.kube.get(StorageNode, NODE)
    assert facts.status.boot_id == "boot-2"
    await node.unstage(handle)
    await node.released(handle)


async def test_a_busy_mount_is_not_torn_down_and_data_is_not_lost(node):
    handle = await node.host.volume()
    await node.host.attach(handle)
    await node.stage(handle)
    await node.publish(handle)
    with Path(node.target(), "file").open("w") as busy:
        busy.write("x")
        code, text = await code_of(node.unpublish(handle))
        assert code is Code.FAILED_PRECONDITION
        assert "busy" in text
        assert Path(node.target(), "file").exists()
    await node.unpublish(handle)
    await node.unstage(handle)
    await node.released(handle)


async def test_detach_waits_for_the_staged_volume(node):
    handle = await node.host.volume()
    await node.host.attach(handle)
    await node.stage(handle)
    await node.host.detach(handle)

    async def busy() -> bool:
        conditions = (await node.host.attachment(handle)).status.conditions
        return any(c.type == "DeviceBusy" and node.staging() in c.message for c in conditions)

    await until(busy)
    assert len(loops_below(node.root)) == 1
    code, _ = await code_of(node.stage(handle, path=node.staging("other"), timeout=5))
    assert code is Code.UNAVAILABLE  # being detached: nothing new
    await node.unstage(handle)
    await until(lambda: loops_below(node.root) == [])


async def test_figures_and_growing(node):
    handle = await node.host.volume(size_bytes=320 * MIB, fs_type="xfs")
    await node.host.attach(handle)
    cap = capability("xfs", mode="SINGLE_NODE_MULTI_WRITER")
    await node.stage(handle, cap)
    await node.publish(handle, cap)

    async def total() -> int:
        answer = await node.stub.NodeGetVolumeStats(
            csi_pb2.NodeGetVolumeStatsRequest(volume_id=handle, volume_path=node.target())
        )
        assert [u.unit for u in answer.usage] == [csi_pb2.VolumeUsage.BYTES, csi_pb2.VolumeUsage.INODES]
        assert all(u.total == u.used + u.available for u in answer.usage)
        return answer.usage[0].total

    before = await total()
    assert 200 * MIB < before < 320 * MIB

    def expand(path: str, volume_id: str = handle) -> csi_pb2.NodeExpandVolumeRequest:
        return csi_pb2.NodeExpandVolumeRequest(
            volume_id=volume_id,
            volume_path=path,
            capacity_range=csi_pb2.CapacityRange(required_bytes=512 * MIB),
        )

    code, text = await code_of(node.stub.NodeExpandVolume(expand(node.target()), timeout=1))
    assert (code, str(320 * MIB) in text) == (Code.UNAVAILABLE, True)  # the backend has not grown yet
    await node.host.extend(handle, 512 * MIB)
    for _ in range(2):
        answer = await node.stub.NodeExpandVolume(expand(node.target()), timeout=20)
        assert answer.capacity_bytes == 512 * MIB
    assert await total() > before + 150 * MIB
    for path, volume_id in (("some/path", handle), ("/nowhere", handle), (node.target(), "unknown")):
        code, _ = await code_of(node.stub.NodeExpandVolume(expand(path, volume_id)))
        assert code is Code.NOT_FOUND
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path=path)
        code, _ = await code_of(node.stub.NodeGetVolumeStats(request))
        assert code is Code.NOT_FOUND
    await node.unpublish(handle)
    await node.unstage(handle)
    await node.released(handle)


async def test_where_a_mounted_ext4_cannot_grow_the_next_stage_grows_it(node, monkeypatch):
    """The kubelet takes FAILED_PRECONDITION as "not on this node, go on mounting": the next stage must do it."""
    for module in (filesystem, stage):
        monkeypatch.setattr(module, "grows_mounted", lambda fs_type: fs_type != "ext4")
    handle = await node.host.volume()
    await node.host.attach(handle)
    await node.stage(handle)
    await node.publish(handle)
    Path(node.target(), "file").write_text("precious")
    request = csi_pb2.NodeExpandVolumeRequest(
        volume_id=handle,
        volume_path=node.target(),
        capacity_range=csi_pb2.CapacityRange(required_bytes=192 * MIB),
    )
    await node.host.extend(handle, 192 * MIB)
    code, text = await code_of(node.stub.NodeExpandVolume(request, timeout=20))
    assert (code, "next staged" in text) == (Code.FAILED_PRECONDITION, True)
    await node.stage(handle)  # the kubelet repeats it while the volume is in use: nothing is done to it
    assert node.runner.count("resize2fs") == node.runner.count("e2fsck") == 0
    await node.unpublish(handle)
    await node.unstage(handle)
    await node.stage(handle)
    await node.publish(handle)
    assert (await node.stub.NodeExpandVolume(request, timeout=20)).capacity_bytes == 192 * MIB
    figures = os.statvfs(node.target())
    assert figures.f_blocks * figures.f_frsize > 150 * MIB
    assert Path(node.target(), "file").read_text() == "precious"
    await node.unpublish(handle)
    await node.unstage(handle)
    await node.released(handle)


async def test_a_fault_of_the_sweep_does_not_end_the_process(node, monkeypatch):
    async def fails(self):
        raise OSError(5, "the device is sick")

    monkeypatch.setattr(LocalConnector, "strays", fails)
    await node.restart()
    handle = await node.host.volume()
    await node.host.attach(handle)
    await node.stage(handle)
    await node.unstage(handle)
    await node.released(handle)


@pytest.mark.parametrize(("fs_type", "size_bytes"), [("ext4", 64 * MIB), ("xfs", 320 * MIB)])
async def test_a_grown_device_is_filled_at_the_next_stage(node, fs_type, size_bytes):
    handle = await node.host.volume(size_bytes=size_bytes, fs_type=fs_type)
    await node.host.attach(handle)
    cap = capability(fs_type)
    await node.stage(handle, cap)
    await node.unstage(handle)
    await node.host.extend(handle, 3 * size_bytes)
    await until(
        lambda: (
            Path("/sys/block", loops_below(node.root)[0], "size").read_text() == f"{3 * size_bytes // 512}\n"
        )
    )

    async def fail(argv) -> None:
        if argv[0] in ("resize2fs", "xfs_growfs"):
            raise BackendFault("injected")

    node.runner.before = fail
    code, _ = await code_of(node.stage(handle, cap))
    assert code is Code.INTERNAL
    assert mounts_below(node.root) == []  # a final error leaves nothing staged
    node.runner.before = None
    await node.stage(handle, cap)
    figures = os.statvfs(node.staging())
    assert figures.f_blocks * figures.f_frsize > 2.4 * size_bytes
    await node.unstage(handle)
    await node.released(handle)


async def test_read_only_publish_and_mount_options(node):
    handle = await node.host.volume()
    await node.host.attach(handle)
    cap = capability(flags=["noatime", "errors=remount-ro"], mode="SINGLE_NODE_MULTI_WRITER")
    await node.stage(handle, cap)
    options = subprocess.run(
        ["findmnt", "-no", "OPTIONS", node.staging()], check=True, capture_output=True, text=True
    ).stdout
    assert "noatime" in options
    await node.publish(handle, cap)
    await node.publish(handle, cap, target=node.target("reader"), readonly=True)
    Path(node.target(), "file").write_text("x")
    with pytest.raises(OSError, match="Read-only"):
        Path(node.target("reader"), "file2").write_text("x")
    assert Path(node.target("reader"), "file").read_text() == "x"
    code, _ = await code_of(node.publish(handle, cap, target=node.target("reader")))
    assert code is Code.ALREADY_EXISTS
    for flags in (["loop"], ["helper=/bin/sh"], ["noatime,bind"], ["-o"], ["commit=5\nuser"]):
        code, _ = await code_of(node.stage(handle, capability(flags=flags)))
        assert code is Code.INVALID_ARGUMENT
    for name in ("pod", "reader"):
        await node.unpublish(handle, target=node.target(name))
    await node.unstage(handle)
    await node.released(handle)


async def test_one_writer_on_one_node_has_one_target(node):
    handle = await node.host.volume()
    await node.host.attach(handle)
    single = capability(mode="SINGLE_NODE_SINGLE_WRITER")
    await node.stage(handle, single)
    await node.publish(handle, single)
    await node.restart()  # who is published is not known from memory
    code, text = await code_of(node.publish(handle, single, target=node.target("second")))
    assert code is Code.FAILED_PRECONDITION
    assert node.target() in text
    assert not Path(node.target("second")).exists()
    code, _ = await code_of(node.stage(handle, capability(mode="SINGLE_NODE_MULTI_WRITER")))
    assert code is Code.ALREADY_EXISTS
    await node.unpublish(handle)
    await node.publish(handle, single, target=node.target("second"))
    await node.unpublish(handle, target=node.target("second"))
    await node.unstage(handle)
    await node.released(handle)


async def test_requests_that_can_never_work(node):
    stub, cap = node.stub, capability()
    for call in (
        stub.NodeStageVolume(csi_pb2.NodeStageVolumeRequest(volume_id="v", staging_target_path="/x")),
        stub.NodeStageVolume(csi_pb2.NodeStageVolumeRequest(volume_id="v", volume_capability=cap)),
        stub.NodeStageVolume(
            csi_pb2.NodeStageVolumeRequest(
                volume_id="v", staging_target_path="/x", volume_capability=capability("btrfs")
            )
        ),
        stub.NodeUnstageVolume(csi_pb2.NodeUnstageVolumeRequest(volume_id="v")),
        stub.NodeUnpublishVolume(csi_pb2.NodeUnpublishVolumeRequest(volume_id="v", target_path="/")),
        stub.NodeUnpublishVolume(csi_pb2.NodeUnpublishVolumeRequest(volume_id="v", target_path="/a/../b")),
        stub.NodeGetVolumeStats(csi_pb2.NodeGetVolumeStatsRequest(volume_id="v")),
        stub.NodeExpandVolume(csi_pb2.NodeExpandVolumeRequest(volume_path="/x")),
    ):
        assert (await code_of(call))[0] is Code.INVALID_ARGUMENT
    request = csi_pb2.NodePublishVolumeRequest(volume_id="v", target_path="/x", volume_capability=cap)
    assert (await code_of(stub.NodePublishVolume(request)))[0] is Code.FAILED_PRECONDITION
    assert (await code_of(node.stage("unknown")))[0] is Code.NOT_FOUND
    assert (await code_of(node.publish("unknown")))[0] is Code.NOT_FOUND
    await node.unpublish("unknown")  # never published, nothing there
    await node.unstage("unknown")


async def test_a_mount_of_somebody_else_is_left_alone(node):
    target = Path(node.target())
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", target], check=True)
    (target / "theirs").write_text("x")
    for call in (node.unpublish("v"), node.unstage("v", path=str(target))):
        assert (await code_of(call))[0] is Code.FAILED_PRECONDITION
    assert (target / "theirs").exists()
    subprocess.run(["umount", target], check=True)


async def test_a_bare_attachment_gives_a_device_and_takes_it_away(node):
    handle = await node.host.volume(fs_type=None)
    attachment = await node.host.attach(handle, use=Use.BARE)
    link = node.root / "links" / attachment.uid

    async def reported() -> bool:
        return (await node.host.attachment(handle)).status.device is not None

    await until(reported)
    assert link.is_block_device()
    node.kube.writes.clear()
    await node.restart()
    assert [w for w in node.kube.writes if w[1] == "Attachment"] == []  # nothing new, nothing written
    await node.released(handle)
    await until(lambda: not link.is_symlink() and loops_below(node.root) == [])


async def test_a_device_without_attachment_goes_once_nothing_holds_it(node):
    handle = await node.host.volume()
    attachment = await node.host.attach(handle)
    await node.stage(handle)
    await node.stop()
    # Somebody dropped the finalizer by hand while the node was down.
    gone = await node.host.attachment(handle)
    node.host.exports = False
    await node.kube.update(gone, gone.with_(metadata=gone.metadata.with_(finalizers=())))
    await node.kube.delete(gone)
    await node.start()
    assert len(loops_below(node.root)) == 1
    assert len(await node.plugin.agent.sweep()) == 1  # still mounted: reported, never torn down
    await node.unstage(handle)  # needs no Attachment
    assert await node.plugin.agent.sweep() == []
    assert loops_below(node.root) == []
    assert not (node.root / "links" / attachment.uid).is_symlink()


async def test_who_we_are(node):
    info = await node.stub.NodeGetInfo(csi_pb2.NodeGetInfoRequest())
    assert info.node_id == NODE
    assert dict(info.accessible_topology.segments) == {"topology.cinderblock.io/node": NODE}
    answer = await node.stub.NodeGetCapabilities(csi_pb2.NodeGetCapabilitiesRequest())
    assert {c.rpc.type for c in answer.capabilities} == {1, 2, 3, 5}
