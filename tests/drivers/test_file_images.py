"""The image files: full disks, foreign files, loop devices, and nothing outside the folder."""

import os
import stat
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from file_subject import FileSubject
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loop_mount import filesystem, loop_device, run

from cinderblock.core.api.attachment import ConnectionProtocol
from cinderblock.core.errors import (
    BackendUnavailable,
    InvalidRequest,
    NotFound,
    OutOfCapacity,
    StorageError,
    VolumeInUse,
)
from cinderblock.core.units import GIB, KIB, MIB
from cinderblock.drivers.base import CreateVolume, ExportRequest, InitiatorFacts, VolumeRef
from cinderblock.drivers.file import FileDriver
from cinderblock.drivers.file.images import Images


@pytest.fixture
def subject(tmp_path: Path) -> FileSubject:
    return FileSubject(tmp_path / "pools")


@pytest.fixture
async def driver(subject: FileSubject) -> AsyncIterator[FileDriver]:
    subject.root.mkdir(exist_ok=True)
    driver = subject.new_driver()
    await driver.open({})
    yield driver
    await driver.close()


@pytest.fixture
def ref() -> VolumeRef:
    return VolumeRef(str(uuid.uuid4()), 1)


def create(ref: VolumeRef, size_bytes: int = MIB, *, thick: bool = False) -> CreateVolume:
    return CreateVolume(ref=ref, pool=None, size_bytes=size_bytes, thick=thick)


def names(subject: FileSubject) -> list[str]:
    return sorted(path.name for path in (subject.folder / "volumes").iterdir())


async def test_an_image_carries_its_identity(
    subject: FileSubject, driver: FileDriver, ref: VolumeRef
) -> None:
    await driver.create_volume(create(ref))
    image = subject.image(ref)
    assert os.getxattr(image, "user.cinderblock.identity").decode() == ref.object_name
    assert image.stat().st_mode & 0o777 == 0o600
    request = ExportRequest(InitiatorFacts(node="n1"), generation=3, read_only=True)
    connection = await driver.export(ref, request)
    assert connection.protocol is ConnectionProtocol.LOCAL
    assert connection.local is not None
    assert subject.root / connection.local.path == image
    assert connection.local.identity == ref.object_name
    assert (connection.generation, connection.read_only) == (3, True)


@pytest.mark.parametrize("size_bytes", [1, 511, 4096, 4097, GIB])
async def test_sizes_are_whole_blocks(driver: FileDriver, ref: VolumeRef, size_bytes: int) -> None:
    made = await driver.create_volume(create(ref, size_bytes))
    assert made.size_bytes >= size_bytes
    assert made.size_bytes % 4096 == 0
    assert made.size_bytes - size_bytes < 4096


@pytest.mark.parametrize("size_bytes", [0, -1])
async def test_no_size_is_no_volume(driver: FileDriver, ref: VolumeRef, size_bytes: int) -> None:
    with pytest.raises(InvalidRequest):
        await driver.create_volume(create(ref, size_bytes))


async def test_thin_holds_nothing_and_thick_holds_all(
    subject: FileSubject, driver: FileDriver, ref: VolumeRef
) -> None:
    thick = VolumeRef(ref.handle, 2)
    await driver.create_volume(create(ref, 8 * MIB))
    await driver.create_volume(create(thick, 8 * MIB, thick=True))
    assert subject.image(ref).stat().st_blocks * 512 < 64 * KIB
    assert subject.image(thick).stat().st_blocks * 512 >= 8 * MIB
    await driver.extend_volume(thick, 16 * MIB)
    assert subject.image(thick).stat().st_blocks * 512 >= 16 * MIB


@given(
    handle=st.text(max_size=30)
    | st.sampled_from(["..", "a\n", "../x", "a/b", ".", "", "a\0b", "\\", "-", ".hidden"])
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_handle_leads_out_of_the_folder(
    tmp_path_factory: pytest.TempPathFactory, handle: str
) -> None:
    root = tmp_path_factory.mktemp("fuzz")
    (root / "pools").mkdir()
    sentinel = root / "pools" / "x-1.img"
    sentinel.touch()
    subject = FileSubject(root / "pools")
    driver = subject.new_driver()
    await driver.open({})
    ref = VolumeRef(handle, 1)
    try:
        made = await driver.create_volume(create(ref, 4096))
    except (InvalidRequest, BackendUnavailable):
        assert names(subject) == []
        for call in (driver.delete_volume(ref), driver.get_volume(ref), driver.seal_volume(ref)):
            with pytest.raises(InvalidRequest):
                await call
    else:
        assert names(subject) == [f"{handle}-1.img"]
        assert await driver.inventory() == [made]
        await driver.delete_volume(ref)
        assert names(subject) == []
    finally:
        await driver.close()
    assert sentinel.exists()
    assert [path.name for path in root.iterdir()] == ["pools"]


async def test_an_image_is_durable_before_it_has_its_name_and_the_name_before_the_answer(
    driver: FileDriver, ref: VolumeRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def noted(name: str) -> None:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            what = "folder" if name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode) else ""
            calls.append(f"{name} {what}".strip())
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in ("setxattr", "posix_fallocate", "ftruncate", "fsync", "rename", "unlink"):
        noted(name)
    await driver.create_volume(create(ref, thick=True))
    data = ["setxattr", "setxattr", "setxattr", "posix_fallocate", "ftruncate", "fsync"]
    assert calls[-8:] == [*data, "rename", "fsync folder"]
    calls.clear()
    await driver.seal_volume(ref)
    assert calls == ["setxattr", "fsync"]
    calls.clear()
    await driver.extend_volume(ref, 2 * MIB)
    assert calls[-2:] == ["ftruncate", "fsync"]
    calls.clear()
    await driver.delete_volume(ref)
    assert calls[-2:] == ["unlink", "fsync folder"]


# foreign things in the folder


async def test_an_image_copied_without_its_attributes_is_neither_used_nor_deleted(
    subject: FileSubject, driver: FileDriver, ref: VolumeRef
) -> None:
    subject.image(ref).write_bytes(bytes(MIB))
    for call in (
        driver.get_volume(ref),
        driver.create_volume(create(ref)),
        driver.extend_volume(ref, 2 * MIB),
        driver.seal_volume(ref),
    ):
        with pytest.raises(BackendUnavailable, match=r"user\.cinderblock\.identity"):
            await call
    # The inventory must not call it unsealed: that would have it deleted as an orphan.
    (listed,) = await driver.inventory()
    assert (listed.ref, listed.sealed) == (ref, True)


async def test_an_image_under_another_volumes_name_is_refused(
    subject: FileSubject, driver: FileDriver, ref: VolumeRef
) -> None:
    other = VolumeRef(str(uuid.uuid4()), 1)
    await driver.create_volume(create(ref))
    subject.image(ref).rename(subject.image(other))
    with pytest.raises(BackendUnavailable, match=ref.object_name):
        await driver.get_volume(other)


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
async def test_what_is_no_plain_file_is_never_opened(
    subject: FileSubject, driver: FileDriver, ref: VolumeRef, kind: str
) -> None:
    path = subject.image(ref)
    secret = subject.root / "secret"
    secret.write_text("keep me")
    if kind == "link":
        path.symlink_to(secret)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    for call in (
        driver.get_volume(ref),
        driver.create_volume(create(ref)),
        driver.extend_volume(ref, 2 * MIB),
    ):
        with pytest.raises(BackendUnavailable, match="no plain file"):
            await call
    assert await driver.inventory() == []
    assert secret.read_text() == "keep me"


async def test_the_inventory_leaves_other_files_out(
    subject: FileSubject, driver: FileDriver, ref: VolumeRef
) -> None:
    for name in (
        "lost+found",
        "notes.txt",
        "x.img",
        "-1.img",
        "x-01.img",
        "x-1.qcow2",
        ".img",
        "x-y.img.new",
    ):
        (subject.folder / "volumes" / name).touch()
    made = await driver.create_volume(create(ref))
    assert await driver.inventory() == [made]


# no room


@pytest.fixture
def tight(tmp_path: Path) -> Iterator[FileSubject]:
    """A pool on a small ext4 of its own."""
    with filesystem(tmp_path / "disk", "ext4", size_mib=32) as mount_point:
        yield FileSubject(mount_point)


@pytest.mark.root
class TestFullDisk:
    @pytest.fixture
    def subject(self, tight: FileSubject) -> FileSubject:
        return tight

    async def test_a_thick_volume_that_runs_out_on_the_way_leaves_nothing(
        self,
        subject: FileSubject,
        driver: FileDriver,
        ref: VolumeRef,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(Images, "_check_room", lambda self, size_bytes: None)  # as if another was faster
        (before,) = await driver.pools()
        with pytest.raises(OutOfCapacity, match="No space left"):
            await driver.create_volume(create(ref, 64 * MIB, thick=True))
        assert names(subject) == []
        assert await driver.get_volume(ref) is None
        (after,) = await driver.pools()
        assert after.free_bytes == before.free_bytes

        made = await driver.create_volume(create(ref, MIB, thick=True))
        with pytest.raises(OutOfCapacity):
            await driver.extend_volume(ref, 64 * MIB)
        assert await driver.get_volume(ref) == made
        (after,) = await driver.pools()
        assert before.free_bytes - after.free_bytes < 2 * MIB

    async def test_without_a_free_inode(
        self, subject: FileSubject, driver: FileDriver, ref: VolumeRef
    ) -> None:
        filler = subject.root / "filler"
        filler.mkdir()
        for number in range(os.statvfs(subject.root).f_favail):
            (filler / str(number)).touch()
        with pytest.raises(OutOfCapacity):
            await driver.create_volume(create(ref))
        assert names(subject) == []
        for file in filler.iterdir():
            file.unlink()
        await driver.create_volume(create(ref))

    async def test_a_file_beyond_the_filesystem(self, driver: FileDriver, ref: VolumeRef) -> None:
        for size_bytes in (1 << 50, 1 << 62, 1 << 70):
            with pytest.raises(OutOfCapacity):
                await driver.create_volume(create(ref, size_bytes))
        assert await driver.inventory() == []

    async def test_a_full_pool_still_opens_and_deletes(
        self, subject: FileSubject, driver: FileDriver, ref: VolumeRef
    ) -> None:
        await driver.create_volume(create(ref))
        filler = subject.root / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(64 * KIB))
            except OSError:
                pass
        await driver.close()
        await driver.open({})
        await driver.delete_volume(ref)
        assert await driver.inventory() == []


# loop devices


@pytest.mark.root
class TestLoopDevices:
    async def test_a_loop_device_under_another_name_of_the_file_counts(
        self, subject: FileSubject, driver: FileDriver, ref: VolumeRef
    ) -> None:
        await driver.create_volume(create(ref))
        alias = subject.root / "alias"
        os.link(subject.image(ref), alias)
        with loop_device(alias) as device:
            with pytest.raises(VolumeInUse, match=device.name):
                await driver.delete_volume(ref)
            assert subject.image(ref).exists()
        await driver.delete_volume(ref)

    async def test_bytes_on_the_device_survive_an_online_extend(
        self, subject: FileSubject, driver: FileDriver, ref: VolumeRef
    ) -> None:
        await driver.create_volume(create(ref, 4 * MIB))
        with loop_device(subject.image(ref)) as device:
            with device.open("r+b") as file:
                file.seek(4 * MIB - 4096)
                file.write(b"x" * 4096)
                file.flush()
                os.fsync(file.fileno())
            await driver.extend_volume(ref, 8 * MIB)
            run("losetup", "--set-capacity", device)
            with device.open("rb") as file:
                assert file.seek(0, os.SEEK_END) == 8 * MIB
                file.seek(4 * MIB - 4096)
                assert file.read() == b"x" * 4096 + bytes(4 * MIB)


async def test_errors_are_only_of_our_tree(
    subject: FileSubject, driver: FileDriver, ref: VolumeRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    await driver.create_volume(create(ref))
    monkeypatch.setattr(os, "fsync", failing)
    fresh = VolumeRef(str(uuid.uuid4()), 1)
    for call in (driver.create_volume(create(fresh)), driver.seal_volume(ref), driver.delete_volume(ref)):
        with pytest.raises(StorageError) as caught:
            await call
        assert type(caught.value) is BackendUnavailable
    monkeypatch.undo()
    await driver.delete_volume(ref)
    await driver.delete_volume(fresh)
    with pytest.raises(NotFound):
        await driver.seal_volume(ref)
    assert await driver.inventory() == []
