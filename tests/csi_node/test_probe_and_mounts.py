"""What is on a device, filesystems and mounts, on real loop devices."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from node_pool import MIB, NodePool, clean

from cinderblock.core.errors import BackendUnavailable, InvalidRequest, PreconditionFailed, VolumeInUse
from cinderblock.core.process import CommandFailed, SystemRunner
from cinderblock.csi.connectors.base import Device
from cinderblock.csi.connectors.local import LocalConnector
from cinderblock.csi.connectors.loop import KernelLoopDevices
from cinderblock.csi.node import mounts
from cinderblock.csi.node.filesystem import (
    MKFS,
    filesystem_bytes,
    grow_filesystem,
    grow_unmounted,
    grows_mounted,
    make_filesystem,
)
from cinderblock.csi.node.mountinfo import mount_at, uses_of
from cinderblock.csi.node.mounts import Mounter
from cinderblock.csi.node.probe import probe_device, recognised

pytestmark = pytest.mark.root
ID = "aaaaaaaa-1111-2222-3333-444455556666-1"
RUNNER = SystemRunner()


class Bench:
    """One image, connected."""

    def __init__(self, pool: NodePool) -> None:
        self.pool = pool
        self.connector = LocalConnector(pool.root, KernelLoopDevices())
        self.image = pool.image(ID)

    async def connect(self, size_bytes: int = 320 * MIB) -> Device:
        os.truncate(self.image, size_bytes)
        return await self.connector.connect(self.pool.connection(self.image, ID))

    async def probe(self, size_bytes: int = 320 * MIB) -> str:
        device = await self.connect(size_bytes)
        return await probe_device(RUNNER, device.path, device.size_bytes)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(NodePool(tmp_path))
    yield bench
    with contextlib.suppress(VolumeInUse):  # a failed test left it mounted: cleaned, and told below
        await bench.connector.disconnect(bench.pool.connection(bench.image, ID))
    assert clean(tmp_path) == []


@pytest.mark.parametrize("size_bytes", [512, 64 * 1024, MIB, 2 * MIB, 9 * MIB, 320 * MIB])
async def test_a_new_device_is_blank_at_any_size(bench, size_bytes):
    assert await bench.probe(size_bytes) == "Blank"


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_a_filesystem_is_found_by_its_type(bench, fs_type):
    device = await bench.connect()
    await make_filesystem(RUNNER, device, fs_type)
    assert await bench.probe() == fs_type


@pytest.mark.parametrize(
    "offset",
    [0, 1024, 65536, MIB - 1, 8 * MIB + 1024, 64 * MIB + 64, 128 * MIB, 319 * MIB, 320 * MIB - 1],
)
async def test_one_foreign_byte_where_it_matters_is_never_blank(bench, offset):
    with bench.image.open("r+b") as image:
        os.truncate(bench.image, 320 * MIB)
        image.seek(offset)
        image.write(b"\x01")
    assert await bench.probe() == "Other"


async def test_a_partition_table_is_other(bench):
    entry = bytes([0, 0, 2, 0, 0x83, 0, 2, 0]) + (2048).to_bytes(4, "little") + (8192).to_bytes(4, "little")
    with bench.image.open("r+b") as image:
        image.seek(446)
        image.write(entry + bytes(48) + b"\x55\xaa")
    assert await bench.probe() == "Other"


async def test_an_unfinished_xfs_is_not_taken_for_one(bench):
    device = await bench.connect()
    await make_filesystem(RUNNER, device, "xfs")
    with device.path.open("r+b") as raw:
        raw.seek(126)
        raw.write(b"\x01")
    assert await bench.probe() == "Other"


async def test_an_unreadable_device_is_an_error_and_never_blank(bench):
    device = await bench.connect()
    os.truncate(bench.image, 160 * MIB)  # what lies behind cannot be read any more
    with pytest.raises(BackendUnavailable, match="cannot be read"):
        await probe_device(RUNNER, device.path, device.size_bytes)
    os.truncate(bench.image, 320 * MIB)


async def _extend(bench: Bench, size_bytes: int) -> Device:
    os.truncate(bench.image, size_bytes)
    return await bench.connector.resize(bench.pool.connection(bench.image, ID, size_bytes=size_bytes))


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
async def test_a_filesystem_grows_with_its_device_and_keeps_its_data(bench, tmp_path, fs_type):
    device = await bench.connect()
    await make_filesystem(RUNNER, device, fs_type)
    mounter, target = Mounter(RUNNER), str(tmp_path / "mnt")
    await mounter.mount(device, fs_type, target, ["rw"])
    Path(target, "file").write_bytes(b"data")
    assert not await grow_filesystem(RUNNER, device, fs_type, target)
    device = await _extend(bench, 512 * MIB)
    if grows_mounted(fs_type):
        assert await grow_filesystem(RUNNER, device, fs_type, target)
    else:
        with pytest.raises(PreconditionFailed, match="next staged"):
            await grow_filesystem(RUNNER, device, fs_type, target)
        await mounter.unmount(target)
        await grow_unmounted(RUNNER, device, fs_type)
        await mounter.mount(device, fs_type, target, ["rw"])
    assert os.statvfs(target).f_blocks * os.statvfs(target).f_frsize > 400 * MIB
    subprocess.run(["sync", "-f", target], check=True)
    await mounter.unmount(target)
    assert await filesystem_bytes(device, fs_type) > 511 * MIB
    await mounter.mount(device, fs_type, target, ["ro"])
    assert Path(target, "file").read_bytes() == b"data"
    await mounter.unmount(target)


async def test_a_device_too_small_for_xfs_is_a_clear_error(bench):
    with pytest.raises(InvalidRequest, match="xfs needs at least 300 MiB"):
        await make_filesystem(RUNNER, await bench.connect(64 * MIB), "xfs")


async def test_a_failed_mount_leaves_nothing(bench, tmp_path):
    device = await bench.connect()
    with pytest.raises(CommandFailed):
        await Mounter(RUNNER).mount(device, "ext4", str(tmp_path / "mnt"), ["rw"])
    assert mount_at(tmp_path / "mnt") is None


async def test_unmount_waits_for_nobody_but_says_who_is_busy_and_takes_stacks_down(bench, tmp_path):
    device = await bench.connect()
    await make_filesystem(RUNNER, device, "ext4")
    mounter, target = Mounter(RUNNER), str(tmp_path / "mnt")
    await mounter.mount(device, "ext4", target, ["rw"])
    for _ in range(2):
        await mounter.bind(target, target, read_only=False)
    assert uses_of(device.number) == [target] * 3
    with Path(target, "open").open("w"), pytest.raises(VolumeInUse, match="busy"):
        await mounter.unmount(target)
    assert mount_at(target) is not None
    with pytest.raises(VolumeInUse, match="still mounted"):
        mounts.remove_place(target)
    await mounter.unmount(target)
    assert mount_at(target) is None
    await mounter.unmount(target)
    mounts.remove_place(target)
    mounts.remove_place(target)


async def test_a_path_with_spaces_and_odd_letters_is_found_again(bench, tmp_path):
    device = await bench.connect()
    await make_filesystem(RUNNER, device, "ext4")
    target = str(tmp_path / "a b\tc\\d ä")
    mounter = Mounter(RUNNER)
    await mounter.mount(device, "ext4", target, ["rw"])
    assert mount_at(target) is not None
    await mounter.unmount(target)
    assert mount_at(target) is None


async def test_a_link_at_the_target_is_never_followed(bench, tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    device = await bench.connect()
    await make_filesystem(RUNNER, device, "ext4")
    with pytest.raises(InvalidRequest, match="not a folder"):
        await Mounter(RUNNER).mount(device, "ext4", str(tmp_path / "link"), ["rw"])
    with pytest.raises(InvalidRequest, match="not a plain file"):
        mounts.ensure_file(str(tmp_path / "link"))
    with pytest.raises(InvalidRequest):
        mounts.remove_place(str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()


def test_a_folder_or_file_with_content_is_never_removed(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    for path in (tmp_path / "full", tmp_path / "full" / "precious"):
        with pytest.raises(InvalidRequest, match="left alone"):
            mounts.remove_place(str(path))
    assert (tmp_path / "full" / "precious").read_text() == "x"


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(("fs_type", "size_bytes"), [("ext4", 64 * MIB), ("xfs", 320 * MIB)])
async def test_a_mkfs_that_is_killed_leaves_nothing_that_looks_whole(tmp_path, fs_type, size_bytes):
    """What is recognised on a device under a permit is kept and mounted, so it must have been finished."""
    image, trace = tmp_path / "image", tmp_path / "trace"

    def traced(*options):
        image.write_bytes(b"")
        os.truncate(image, size_bytes)
        argv = ["strace", "-f", "-o", trace, "-e", "trace=pwrite64", *options, *MKFS[fs_type], "--", image]
        return subprocess.run(argv, capture_output=True, check=False, timeout=60).returncode

    assert traced() == 0
    assert await recognised(RUNNER, image) == fs_type
    writes = trace.read_text().count("pwrite64(")
    assert writes > 10
    for at in (1, writes // 4, writes // 2, writes - 3, writes - 2, writes - 1, writes):
        assert traced("-e", f"inject=pwrite64:signal=KILL:when={at}") != 0
        assert await recognised(RUNNER, image) == "", f"killed at write {at} of {writes}"
