"""When a node makes a filesystem, and when it keeps what lies on the device."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from node_harness import NodeHarness, capability, code_of, harness, until_gone
from node_pool import MIB, mounts_below

from cinderblock.core.api.attachment import FormatPermit, Probe
from cinderblock.core.api.volume import Filesystem, FilesystemState
from cinderblock.core.names import FINALIZER_PROTECT

pytestmark = pytest.mark.root
Code = grpc.StatusCode


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeHarness]:
    async with harness(tmp_path) as made:
        yield made


async def test_death_in_the_middle_of_mkfs_is_made_good(node):
    handle = await node.host.volume()
    await node.host.attach(handle)
    reached, died = asyncio.Event(), False

    async def before(argv) -> None:
        nonlocal died
        if argv[0] == "mkfs.ext4" and not died:
            died = True
            # half a filesystem: what a killed mkfs may leave
            with Path(argv[-1]).open("r+b", buffering=0) as raw:
                raw.seek(8 * MIB)
                raw.write(b"half" * 1024)
            reached.set()
            await asyncio.Event().wait()

    node.runner.before = before
    staging = asyncio.create_task(node.stage(handle))
    await asyncio.wait_for(reached.wait(), 10)
    await node.restart()
    await asyncio.gather(staging, return_exceptions=True)
    await node.stage(handle)
    await node.publish(handle)
    Path(node.target(), "file").write_text("ok")
    assert node.runner.count("mkfs.ext4") == 2
    await node.unpublish(handle)
    await node.unstage(handle)
    await node.released(handle)


async def test_a_cluster_set_back_to_before_the_format_does_not_lose_the_data(node):
    """An API server restored from an old backup says again that the filesystem is to be made."""
    handle = await node.host.volume()
    await node.host.attach(handle)
    await node.stage(handle)
    Path(node.staging(), "file").write_text("precious")
    await node.unstage(handle)
    attachment, volume = await node.host.attachment(handle), await node.host.read_volume()
    blank = Probe(wanted_type="ext4", found="Blank", generation=attachment.status.generation)
    permit = FormatPermit(type="ext4", generation=attachment.status.generation)
    old = attachment.status.with_(formatted=None, probe=blank, format_permit=permit)
    to_be_made = Filesystem(type="ext4", state=FilesystemState.FORMATTING)
    await node.kube.update_status(volume, volume.with_(status=volume.status.with_(filesystem=to_be_made)))
    await node.kube.update_status(attachment, attachment.with_(status=old))
    await node.stage(handle)
    assert Path(node.staging(), "file").read_text() == "precious"
    assert node.runner.count("mkfs.ext4") == 1
    await node.unstage(handle)
    await node.released(handle)


async def test_what_is_recognised_on_the_device_is_not_formatted_whatever_the_permit(node):
    handle = await node.host.volume()
    await node.host.attach(handle)
    permitted = asyncio.Event()

    async def before(argv) -> None:
        if argv[0] == "blkid" and await _has_permit(node, handle):
            permitted.set()
            image = node.pool.root / "pool" / "volumes" / f"{handle}-1.img"
            with image.open("r+b") as raw:
                raw.write(b"LUKS\xba\xbe\x00\x01" + bytes(4096))

    node.runner.before = before
    code, message = await code_of(node.stage(handle))
    assert permitted.is_set()
    assert code is Code.FAILED_PRECONDITION
    assert "crypto_LUKS" in message
    assert node.runner.count("mkfs.ext4") == 0
    await node.released(handle)


async def _has_permit(node, handle) -> bool:
    return (await node.host.attachment(handle)).status.format_permit is not None


async def test_a_namesake_of_the_volume_says_nothing_about_this_one(node):
    handle = await node.host.volume()
    await node.host.attach(handle)
    volume = await node.host.read_volume()
    await node.kube.delete(await node.kube.update(volume, volume.without_finalizer(FINALIZER_PROTECT)))
    another = await node.host.volume()  # under the same name, to be formatted
    code, message = await code_of(node.stage(handle, timeout=3))
    assert (code, another in message) == (Code.UNAVAILABLE, True)
    assert node.runner.count("mkfs.ext4") == node.runner.count("mount") == 0
    await node.released(handle)


async def test_a_permit_that_ends_while_the_device_is_looked_at_is_not_used(node):
    handle = await node.host.volume()
    await node.host.attach(handle)
    volumes, ended = node.plugin.service.volumes, False
    prove = volumes.prove

    async def slow(attachment):
        nonlocal ended
        device = await prove(attachment)
        if attachment.status.format_permit is not None and not ended:
            ended = True
            await node.host.detach(handle)
        return device

    volumes.prove = slow
    code, _ = await code_of(node.stage(handle))
    assert ended
    assert code is Code.UNAVAILABLE
    assert node.runner.count("mkfs.ext4") == 0
    await until_gone(node.host, handle)


async def test_a_device_that_holds_something_is_never_formatted(node):
    handle = await node.host.volume()
    image = node.pool.root / "pool" / "volumes" / f"{handle}-1.img"
    with image.open("r+b") as raw:
        raw.seek(63 * MIB)
        raw.write(b"precious")
    before = image.read_bytes()
    await node.host.attach(handle)
    code, text = await code_of(node.stage(handle))
    assert (code, text) == (Code.INVALID_ARGUMENT, "the volume holds Other")
    assert node.runner.count("mkfs.ext4") == 0
    assert image.read_bytes() == before
    assert mounts_below(node.root) == []
    await node.released(handle)


async def test_without_a_permit_nothing_is_formatted_and_the_answer_is_not_final(node):
    node.host.permits = False
    handle = await node.host.volume()
    await node.host.attach(handle)
    code, text = await code_of(node.stage(handle, timeout=2))
    assert code is Code.ABORTED
    assert "not permitted" in text
    assert node.runner.count("mkfs.ext4") == 0
    node.host.permits = True
    await node.stage(handle)
    await node.unstage(handle)
    await node.released(handle)


async def test_a_filesystem_of_the_wanted_type_is_kept(node):
    handle = await node.host.volume(fs_type=None)
    image = node.pool.root / "pool" / "volumes" / f"{handle}-1.img"
    subprocess.run(["mkfs.ext4", "-q", "-L", "mine", image], check=True)
    await node.host.attach(handle)
    await node.stage(handle, capability(""))
    assert node.runner.count("mkfs.ext4") == 0
    await node.unstage(handle)
    await node.released(handle)
