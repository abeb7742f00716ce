"""The pool's folder: one owner, its marker, no links, and never a write under an unmounted disk."""

import json
import uuid
from pathlib import Path

import pytest
from file_subject import FileSubject
from hypothesis import given
from hypothesis import strategies as st
from loop_mount import filesystem, run
from pydantic import ValidationError

from cinderblock.core.errors import BackendUnavailable, InvalidRequest, Lost
from cinderblock.core.process import SystemRunner
from cinderblock.core.units import MIB
from cinderblock.drivers.base import CreateVolume, DriverContext, VolumeRef
from cinderblock.drivers.file import FileConfig, FileDriver
from cinderblock.drivers.registry import Registry

REF = VolumeRef("0b9d2f0e-1111-4222-8333-444455556666", 1)
CREATE = CreateVolume(ref=REF, pool=None, size_bytes=MIB)


@pytest.fixture
def subject(tmp_path: Path) -> FileSubject:
    return FileSubject(tmp_path)


async def pool_id_of(driver: FileDriver) -> str:
    (report,) = await driver.pools()
    return report.pool_id


async def test_a_second_process_is_told_who_owns_the_pool(subject: FileSubject) -> None:
    first, second = subject.new_driver(), subject.new_driver()
    await first.open({})
    with pytest.raises(BackendUnavailable, match=r"in use by process \d+ on ") as caught:
        await second.open({})
    assert caught.value.reason == "PoolLocked"
    await first.close()
    await second.open({})
    await second.close()


async def test_two_backends_cannot_share_a_folder_or_nest(tmp_path: Path) -> None:
    outer = FileSubject(tmp_path, directory="a").new_driver()
    await outer.open({})
    with pytest.raises(InvalidRequest, match="inside another pool, a"):
        await FileSubject(tmp_path, directory="a/volumes/b").new_driver().open({})
    await outer.close()


async def test_the_marker_is_written_once(subject: FileSubject) -> None:
    driver = subject.new_driver()
    await driver.open({})
    marker = json.loads((subject.folder / ".cinderblock-pool").read_text())
    assert marker["poolID"] == await pool_id_of(driver)
    assert uuid.UUID(marker["poolID"]).version == 4
    await driver.close()
    leftover = subject.folder / ".cinderblock-pool.0123"  # of a process that was killed
    leftover.write_text("{}")
    await driver.open({None: marker["poolID"]})
    assert json.loads((subject.folder / ".cinderblock-pool").read_text()) == marker
    assert not leftover.exists()
    await driver.close()


@pytest.mark.parametrize("content", ["", "{", "{}", '{"poolID": 7}', '{"poolID": "../x"}', "[]"])
async def test_a_damaged_marker_is_lost_and_stays_as_it_is(subject: FileSubject, content: str) -> None:
    subject.folder.mkdir()
    marker = subject.folder / ".cinderblock-pool"
    marker.write_text(content)
    with pytest.raises(Lost, match="damaged"):
        await subject.new_driver().open({})
    assert marker.read_text() == content


async def test_volumes_without_a_marker_are_not_taken_over(subject: FileSubject) -> None:
    (subject.folder / "volumes").mkdir(parents=True)
    (subject.folder / "volumes" / "x-1.img").touch()
    with pytest.raises(Lost, match="no marker"):
        await subject.new_driver().open({})
    assert not (subject.folder / ".cinderblock-pool").exists()


async def test_a_known_pool_whose_folder_is_gone_is_not_made_anew(subject: FileSubject) -> None:
    with pytest.raises(Lost, match="is its disk mounted"):
        await subject.new_driver().open({None: str(uuid.uuid4())})
    assert not subject.folder.exists()


async def test_the_pools_root_must_exist(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="No such file"):
        await FileSubject(tmp_path / "missing").new_driver().open({})


async def test_links_are_not_followed(tmp_path: Path, subject: FileSubject) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "default").symlink_to("elsewhere")
    with pytest.raises(InvalidRequest, match="bind mount"):
        await subject.new_driver().open({})
    assert list((tmp_path / "elsewhere").iterdir()) == []


async def test_a_file_in_the_place_of_the_folder(tmp_path: Path, subject: FileSubject) -> None:
    (tmp_path / "default").touch()
    with pytest.raises(InvalidRequest, match="no folder"):
        await subject.new_driver().open({})


async def test_nothing_works_before_open_and_after_close(subject: FileSubject) -> None:
    driver = subject.new_driver()
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match="not open"):
            await driver.get_volume(REF)
        await driver.open({})
        await driver.close()


async def test_a_driver_without_a_node_does_not_open(tmp_path: Path, subject: FileSubject) -> None:
    context = DriverContext(
        backend="b", node=None, pools_root=tmp_path, runner=SystemRunner(), clock=subject.context.clock
    )
    with pytest.raises(InvalidRequest, match="nodeSelector"):
        await FileDriver(subject.config, context).open({})


async def test_no_absence_is_believed_when_the_marker_went(subject: FileSubject) -> None:
    driver = subject.new_driver()
    await driver.open({})
    await driver.create_volume(CREATE)
    subject.hide_marker()
    for call in (
        driver.get_volume(REF),
        driver.delete_volume(REF),
        driver.create_volume(CREATE),
        driver.inventory(),
        driver.pools(),
    ):
        with pytest.raises(BackendUnavailable):
            await call
    subject.show_marker()
    assert await driver.get_volume(REF) is not None
    await driver.close()


@pytest.mark.root
async def test_a_mount_over_or_away_under_the_open_pool_is_noticed(tmp_path: Path) -> None:
    with filesystem(tmp_path / "disk", "ext4") as mount_point:
        subject = FileSubject(mount_point.parent, directory="mount")
        driver = subject.new_driver()
        await driver.open({})
        await driver.create_volume(CREATE)
        run("mount", "-t", "tmpfs", "none", mount_point)
        try:
            with pytest.raises(BackendUnavailable, match="mounted or unmounted"):
                await driver.get_volume(REF)
        finally:
            run("umount", mount_point)
        assert await driver.get_volume(REF) is not None
        await driver.close()


@pytest.mark.root
async def test_an_unmounted_disk_is_not_written_under(tmp_path: Path) -> None:
    with filesystem(tmp_path / "disk", "ext4") as mount_point:
        subject = FileSubject(mount_point.parent, directory="mount")
        driver = subject.new_driver()
        await driver.open({})
        await driver.create_volume(CREATE)
        known = {None: await pool_id_of(driver)}
        await driver.close()
        image = tmp_path / "disk" / "ext4.img"
        run("umount", mount_point)
        try:
            with pytest.raises(Lost, match="is its disk mounted"):
                await driver.open(known)
            assert list(mount_point.iterdir()) == []
        finally:
            run("mount", "-o", "loop", image, mount_point)
        await driver.open(known)
        assert await driver.get_volume(REF) is not None
        await driver.close()


@pytest.mark.root
async def test_a_read_only_disk_says_what_to_do(tmp_path: Path) -> None:
    with filesystem(tmp_path / "disk", "ext4") as mount_point:
        subject = FileSubject(mount_point)
        driver = subject.new_driver()
        await driver.open({})
        run("mount", "-o", "remount,ro", mount_point)
        with pytest.raises(
            BackendUnavailable, match="Read-only file system; make the folder writable"
        ) as caught:
            await driver.create_volume(CREATE)
        assert str(subject.folder) in caught.value.message
        assert caught.value.reason == "PoolNotWritable"
        assert await driver.get_volume(REF) is None
        await driver.close()
        with pytest.raises(BackendUnavailable, match="Read-only file system"):
            await driver.open({})


@pytest.mark.root
async def test_a_filesystem_without_attributes_is_refused(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    run("mount", "-t", "ramfs", "none", disk)
    try:
        with pytest.raises(BackendUnavailable):
            await FileSubject(disk).new_driver().open({})
    finally:
        run("umount", disk)


GOOD_PART = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9._-]{0,20}\Z")


@given(st.lists(GOOD_PART, min_size=1, max_size=4))
def test_a_plain_path_is_a_directory(parts: list[str]) -> None:
    assert FileConfig.model_validate({"directory": "/".join(parts)}).directory == "/".join(parts)


@given(
    st.text(max_size=40)
    | st.lists(st.sampled_from(["..", ".", "", "a", ".images", "\0", "\\", "a\n"])).map("/".join)
)
def test_whatever_is_accepted_stays_below_the_root(directory: str) -> None:
    try:
        accepted = FileConfig.model_validate({"directory": directory}).directory
    except ValidationError:
        return
    parts = accepted.split("/")
    assert all(part and not part.startswith(".") and part.isascii() and part.isprintable() for part in parts)
    assert not accepted.startswith("/")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"directory": "../etc"}, "spec.config.directory"),
        ({"directory": "/srv"}, "spec.config.directory"),
        ({"directory": ".images"}, "starts with a dot"),
        ({"poolImage": {"size": "10"}}, "spec.config.poolImage.size: XFS needs at least 320Mi"),
        ({"poolImage": {}}, "spec.config.poolImage.size"),
        ({"poolImage": {"size": "1Gi", "fs": "xfs"}}, "spec.config.poolImage.fs is not a setting"),
        ({"dir": "a"}, "known settings: directory, poolImage"),
    ],
)
def test_a_bad_configuration_is_refused_with_what_to_fix(config: dict, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Registry.load().judge("file", config, {})
    assert words in caught.value.message
