"""The connector for image files, on real loop devices."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_pool import MIB, NodePool, clean, loops_below

from cinderblock.core.errors import BackendUnavailable, InvalidRequest, VolumeInUse
from cinderblock.csi.connectors.base import WrongDevice
from cinderblock.csi.connectors.local import LocalConnector
from cinderblock.csi.connectors.loop import KernelLoopDevices

pytestmark = pytest.mark.root
ID = "0f1e2d3c-1111-2222-3333-444455556666-1"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[NodePool]:
    pool = NodePool(tmp_path)
    yield pool
    assert clean(tmp_path) == []


@pytest.fixture
def connector(pool: NodePool) -> LocalConnector:
    return LocalConnector(pool.root, KernelLoopDevices())


async def test_connects_once_however_often_and_by_whomever_it_is_asked(pool, connector):
    image = pool.image(ID)
    connection = pool.connection(image, ID)
    first = await connector.connect(connection)
    again = await LocalConnector(pool.root, KernelLoopDevices()).connect(connection)  # after a restart
    assert first == again
    assert first.size_bytes == 64 * MIB
    assert not first.read_only
    assert len(loops_below(pool.root)) == 1
    assert await connector.find(connection) == first
    sector = Path("/sys/block", first.path.name, "queue/logical_block_size").read_text().strip()
    assert sector == "512"
    await connector.disconnect(connection)
    assert await connector.find(connection) is None
    await connector.disconnect(connection)  # not connected = success


async def test_direct_io_is_on_where_the_filesystem_has_it(pool, connector):
    device = await connector.connect(pool.connection(pool.image(ID), ID))
    assert Path("/sys/block", device.path.name, "loop/dio").read_text().strip() == "1"
    await connector.disconnect(pool.connection(pool.image(ID), ID))


async def test_concurrent_connects_end_in_one_device(pool, connector):
    connection = pool.connection(pool.image(ID), ID)
    first = await connector.connect(connection)
    devices = await asyncio.gather(*(connector.connect(connection) for _ in range(8)))
    assert set(devices) == {first}
    assert len(loops_below(pool.root)) == 1
    await connector.disconnect(connection)


async def test_an_image_that_says_it_is_another_volume_is_refused(pool, connector):
    image = pool.image("another-volume-1", name="x.img")
    with pytest.raises(WrongDevice, match="says it is 'another-volume-1'"):
        await connector.connect(pool.connection(image, ID))
    assert loops_below(pool.root) == []


async def test_an_image_without_identity_is_refused(pool, connector):
    image = pool.image(ID)
    os.removexattr(image, "user.cinderblock.identity")
    with pytest.raises(WrongDevice, match="no identity"):
        await connector.connect(pool.connection(image, ID))


async def test_a_file_swapped_under_a_connected_device_is_noticed(pool, connector):
    image = pool.image(ID)
    connection = pool.connection(image, ID)
    await connector.connect(connection)
    image.unlink()
    pool.image(ID)  # same name, same identity, another inode: not the data that is connected
    with pytest.raises(WrongDevice, match="another file"):
        await connector.connect(connection)
    await connector.disconnect(connection)  # by its name, though its file is gone
    assert loops_below(pool.root) == []


async def test_a_device_smaller_than_promised_is_refused(pool, connector):
    image = pool.image(ID)
    with pytest.raises(WrongDevice, match="fewer than"):
        await connector.connect(pool.connection(image, ID, size_bytes=65 * MIB))


async def test_follows_an_extend(pool, connector):
    image = pool.image(ID)
    first = await connector.connect(pool.connection(image, ID))
    os.truncate(image, 96 * MIB)
    grown = await connector.resize(pool.connection(image, ID, size_bytes=96 * MIB))
    assert grown.path == first.path
    assert grown.size_bytes == 96 * MIB
    await connector.disconnect(pool.connection(image, ID))


async def test_read_only_connections_cannot_be_written(pool, connector):
    image = pool.image(ID)
    device = await connector.connect(pool.connection(image, ID, read_only=True))
    assert device.read_only
    with pytest.raises(PermissionError), device.path.open("r+b", buffering=0) as raw:
        raw.write(bytes(512))
    # the next attachment may be for writing: an unused device is changed over
    writable = await connector.connect(pool.connection(image, ID))
    assert not writable.read_only
    assert len(loops_below(pool.root)) == 1
    await connector.disconnect(pool.connection(image, ID))


async def test_a_mounted_device_is_not_let_go(pool, connector, tmp_path):
    image = pool.image(ID)
    connection = pool.connection(image, ID)
    device = await connector.connect(connection)
    subprocess.run(["mkfs.ext4", "-q", device.path], check=True)
    target = tmp_path / "mnt"
    target.mkdir()
    subprocess.run(["mount", device.path, target], check=True)
    with pytest.raises(VolumeInUse):
        await connector.disconnect(connection)
    subprocess.run(["umount", target], check=True)
    await connector.disconnect(connection)


async def test_an_open_device_is_reported_as_busy_until_its_last_close(pool, connector):
    connection = pool.connection(pool.image(ID), ID)
    device = await connector.connect(connection)
    reader = os.open(device.path, os.O_RDONLY)
    with pytest.raises(VolumeInUse, match="still open"):
        await connector.disconnect(connection)
    with pytest.raises(VolumeInUse, match="let go of"):  # nobody new builds on what is about to end
        await connector.connect(connection)
    os.close(reader)
    await connector.disconnect(connection)
    assert await connector.find(connection) is None


async def test_a_loop_device_of_somebody_else_on_the_image_is_left_alone(pool, connector):
    image = pool.image(ID)
    found = subprocess.run(["losetup", "-f", "--show", image], check=True, capture_output=True, text=True)
    with pytest.raises(VolumeInUse, match="not of our making"):
        await connector.connect(pool.connection(image, ID))
    assert len(loops_below(pool.root)) == 1
    subprocess.run(["losetup", "-d", found.stdout.strip()], check=True)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "pool/../../x", "", ".", "pool//x", "pool/volumes/", "a\0b"]
)
async def test_paths_that_leave_the_root_are_refused(pool, connector, path):
    image = pool.image(ID)
    connection = pool.connection(image, ID)
    assert connection.local is not None
    with pytest.raises(InvalidRequest):
        await connector.connect(connection.with_(local=connection.local.with_(path=path)))


@pytest.mark.parametrize("what", ["file", "folder"])
async def test_links_are_never_followed(pool, connector, tmp_path, what):
    image = pool.image(ID)
    if what == "file":
        link = image.with_name("link.img")
        link.symlink_to(image)
    else:
        (tmp_path / "other").symlink_to(image.parent)
        link = tmp_path / "other" / image.name
    with pytest.raises(InvalidRequest, match="plain file"):
        await connector.connect(pool.connection(link, ID, size_bytes=1))
    assert loops_below(pool.root) == []


async def test_a_fifo_or_a_folder_is_no_image(pool, connector):
    image = pool.image(ID)
    os.mkfifo(image.with_name("fifo"))
    for name in ("fifo", ""):
        other = image.with_name("fifo") if name else image.parent
        with pytest.raises(InvalidRequest):
            await connector.connect(pool.connection(other, ID, size_bytes=1))


async def test_a_missing_image_may_come_back(pool, connector):
    image = pool.image(ID)
    connection = pool.connection(image, ID)
    image.unlink()
    with pytest.raises(BackendUnavailable):
        await connector.connect(connection)


async def test_strays_are_ours_alone(pool, connector, tmp_path):
    connection = pool.connection(pool.image(ID), ID)
    device = await connector.connect(connection)
    (tmp_path / "second").mkdir()
    foreign = LocalConnector(tmp_path / "second", KernelLoopDevices())
    assert [d for _, d in await foreign.strays()] == []
    ((name, stray),) = await connector.strays()
    assert (name, stray) == (connector.stray_name(connection), device)
    await connector.disconnect_stray(name, stray)
    assert await connector.find(connection) is None
