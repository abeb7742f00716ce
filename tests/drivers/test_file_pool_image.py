"""The pool that brings its own XFS: made once, found again, never on two loop devices, never silently anew."""

import asyncio
import contextlib
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from file_subject import FileSubject
from loop_mount import filesystem, loop_device, loops_on, run, take_down_pool_image

from cinderblock.core.errors import BackendUnavailable, InvalidRequest, Lost, OperationTimeout
from cinderblock.core.process import CommandFailed, Result, SystemRunner
from cinderblock.core.units import MIB
from cinderblock.drivers.base import CreateVolume, VolumeRef
from cinderblock.drivers.file import FileDriver

pytestmark = pytest.mark.root

REF = VolumeRef("5a0d3f5e-0000-4000-8000-000000000001", 1)
CREATE = CreateVolume(ref=REF, pool=None, size_bytes=MIB)
SIZE_MIB = 320


class FaultyRunner(SystemRunner):
    """Runs programs, but fails those named in `fail`, before or after they ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fail: dict[str, Exception] = {}
        self.fail_after: dict[str, Exception] = {}

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        stdin: bytes | None = None,
        ok: Sequence[int] = (0,),
    ) -> Result:
        self.ran.append(argv[0])
        if (error := self.fail.pop(argv[0], None)) is not None:
            raise error
        result = await super().run(argv, timeout=timeout, stdin=stdin, ok=ok)
        if (error := self.fail_after.pop(argv[0], None)) is not None:
            raise error
        return result


@pytest.fixture
def runner() -> FaultyRunner:
    return FaultyRunner()


@pytest.fixture
def subject(tmp_path: Path, runner: FaultyRunner) -> Iterator[FileSubject]:
    yield pool(tmp_path, runner)
    take_down_pool_image(tmp_path, "sub/pool")


def pool(root: Path, runner: FaultyRunner, size_mib: int = SIZE_MIB, **settings: object) -> FileSubject:
    return FileSubject(
        root,
        runner=runner,
        directory="sub/pool",
        poolImage={"size": f"{size_mib}Mi", "preallocate": False, **settings},
    )


def image_of(subject: FileSubject) -> Path:
    return subject.root / ".images" / "sub" / "pool.img"


async def opened(subject: FileSubject, known: dict[str | None, str] | None = None) -> FileDriver:
    driver = subject.new_driver()
    await driver.open(known or {})
    return driver


async def pool_id_of(driver: FileDriver) -> str:
    (report,) = await driver.pools()
    return report.pool_id


def mounts_at(path: Path) -> list[list[str]]:
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [line for line in lines if line[4] == str(path)]


async def test_the_pool_has_its_own_size_and_reflinks(subject: FileSubject) -> None:
    driver = await opened(subject)
    (report,) = await driver.pools()
    assert report.capabilities["reflink"] == "true"
    assert report.capabilities["pool_image"] == "true"
    assert 200 * MIB < report.total_bytes <= SIZE_MIB * MIB
    (mount,) = mounts_at(subject.folder)
    assert {"nodev", "nosuid", "noexec"} <= set(mount[5].split(","))
    assert "nouuid" not in " ".join(mount)
    (device,) = loops_on(image_of(subject))
    assert (Path("/sys/block") / Path(device).name / "loop" / "dio").read_text().strip() == "1"
    await driver.close()
    assert mounts_at(subject.folder), "pods live on it: it stays mounted"


async def test_a_restart_takes_what_is_mounted(subject: FileSubject, runner: FaultyRunner) -> None:
    driver = await opened(subject)
    await driver.create_volume(CREATE)
    known = {None: await pool_id_of(driver)}
    loops = loops_on(image_of(subject))
    await driver.close()
    runner.ran.clear()
    driver = await opened(subject, known)
    assert await driver.get_volume(REF) is not None
    assert loops_on(image_of(subject)) == loops
    assert len(mounts_at(subject.folder)) == 1
    assert not {"mkfs.xfs", "mount"} & set(runner.ran)
    await driver.close()


@pytest.mark.parametrize("keep_loop", [False, True])
async def test_a_reboot_mounts_the_same_filesystem_again(subject: FileSubject, keep_loop: bool) -> None:
    driver = await opened(subject)
    await driver.create_volume(CREATE)
    known = {None: await pool_id_of(driver)}
    await driver.close()
    if keep_loop:  # a crash between losetup and mount
        run("umount", subject.folder)
    else:
        take_down_pool_image(subject.root, "sub/pool")
    driver = await opened(subject, known)
    assert await driver.get_volume(REF) is not None
    assert len(loops_on(image_of(subject))) == 1
    await driver.close()


async def test_a_second_owner_is_refused_before_it_touches_anything(subject: FileSubject) -> None:
    first, second = subject.new_driver(), subject.new_driver()
    answers = await asyncio.gather(first.open({}), second.open({}), return_exceptions=True)
    (refusal,) = [answer for answer in answers if answer is not None]
    assert isinstance(refusal, BackendUnavailable)
    assert refusal.reason == "PoolLocked"
    assert len(loops_on(image_of(subject))) == 1
    assert len(mounts_at(subject.folder)) == 1
    await first.close()
    await second.close()


async def test_a_known_pool_whose_image_is_gone_is_not_made_anew(subject: FileSubject) -> None:
    driver = await opened(subject)
    known = {None: await pool_id_of(driver)}
    await driver.close()
    take_down_pool_image(subject.root, "sub/pool")
    image_of(subject).rename(subject.root / "away.img")
    with pytest.raises(Lost, match="is not there"):
        await opened(subject, known)
    assert not image_of(subject).exists()
    assert list(subject.folder.iterdir()) == []
    (subject.root / "away.img").rename(image_of(subject))
    await (await opened(subject, known)).close()


async def test_the_image_of_another_pool_is_refused(subject: FileSubject) -> None:
    await (await opened(subject)).close()
    with pytest.raises(Lost, match="another pool"):
        await opened(subject, {None: str(uuid.uuid4())})


@pytest.mark.parametrize("step", ["mkfs.xfs", "losetup", "mount", "xfs_growfs"])
@pytest.mark.parametrize("moment", ["fail", "fail_after"])
@pytest.mark.parametrize("error", ["failed", "timeout"])
async def test_whatever_step_fails_the_next_open_finishes(
    subject: FileSubject, runner: FaultyRunner, step: str, moment: str, error: str
) -> None:
    faults = {
        "failed": CommandFailed([step], Result(1, b"", b"no luck")),
        "timeout": OperationTimeout(f"{step} did not end within 1 s"),
    }
    getattr(runner, moment)[step] = faults[error]
    # Never a BackendFault, which would say that nothing is left.
    with pytest.raises((BackendUnavailable, OperationTimeout)) as caught:
        await opened(subject)
    assert step in caught.value.message
    driver = await opened(subject)
    await driver.create_volume(CREATE)
    assert len(loops_on(image_of(subject))) == 1
    assert len(mounts_at(subject.folder)) == 1
    assert sorted(path.name for path in image_of(subject).parent.iterdir()) == [
        "pool.holder",
        "pool.img",
        "pool.lock",
    ]
    await driver.close()


async def test_a_cancelled_open_lets_go(subject: FileSubject, runner: FaultyRunner) -> None:
    for delay in range(6):
        task = asyncio.ensure_future(opened(subject))
        deadline = asyncio.get_running_loop().time() + 10
        while len(runner.ran) < delay and not task.done() and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.001)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await task).close()
        runner.ran.clear()
    driver = await opened(subject)
    await driver.create_volume(CREATE)
    assert len(loops_on(image_of(subject))) == 1
    await driver.close()


async def test_a_folder_with_files_is_not_mounted_over(subject: FileSubject) -> None:
    subject.folder.mkdir(parents=True)
    (subject.folder / "mine").write_text("data")
    with pytest.raises(InvalidRequest, match="empty folder of its own"):
        await opened(subject)
    assert (subject.folder / "mine").read_text() == "data"
    assert not image_of(subject).exists()


async def test_a_plain_pool_does_not_become_an_image_silently(tmp_path: Path, subject: FileSubject) -> None:
    plain = FileSubject(tmp_path, directory="sub/pool")
    driver = await opened(plain)
    await driver.create_volume(CREATE)
    await driver.close()
    with pytest.raises(InvalidRequest, match="remove poolImage"):
        await opened(subject)


async def test_another_filesystem_at_the_folder_is_refused(subject: FileSubject) -> None:
    await (await opened(subject)).close()
    take_down_pool_image(subject.root, "sub/pool")
    run("mount", "-t", "tmpfs", "none", subject.folder)
    try:
        with pytest.raises(BackendUnavailable, match="another filesystem"):
            await opened(subject)
        assert list(subject.folder.iterdir()) == []
    finally:
        run("umount", subject.folder)


async def test_two_loop_devices_on_the_image_are_refused(subject: FileSubject) -> None:
    await (await opened(subject)).close()
    take_down_pool_image(subject.root, "sub/pool")
    image = image_of(subject)
    with loop_device(image, read_only=True):
        with (subject.root / "second").open("w"):
            pass
        second = run("losetup", "--find", "--show", image).strip()
        try:
            with pytest.raises(BackendUnavailable, match="exactly one is right"):
                await opened(subject)
            assert mounts_at(subject.folder) == []
        finally:
            run("losetup", "--detach", second)


async def test_a_larger_setting_grows_the_mounted_pool(
    subject: FileSubject, runner: FaultyRunner, tmp_path: Path
) -> None:
    driver = await opened(subject)
    await driver.create_volume(CREATE)
    (before,) = await driver.pools()
    await driver.close()
    larger = pool(tmp_path, runner, size_mib=SIZE_MIB + 128)
    # Killed between growing the file and telling the device: the next open does the rest.
    runner.fail["losetup"] = CommandFailed(["losetup"], Result(1, b"", b"killed"))
    with pytest.raises(BackendUnavailable):
        await opened(larger)
    for _ in range(2):
        driver = await opened(larger)
        (after,) = await driver.pools()
        assert after.total_bytes - before.total_bytes > 100 * MIB
        assert await driver.get_volume(REF) is not None
        await driver.close()
    driver = await opened(subject)  # a smaller setting shrinks nothing
    assert (await driver.pools())[0].total_bytes == after.total_bytes
    await driver.close()


async def test_a_preallocated_image_owns_its_room(tmp_path: Path, runner: FaultyRunner) -> None:
    with filesystem(tmp_path / "disk", "ext4", size_mib=512) as disk:
        subject = pool(disk, runner, preallocate=True)
        driver = await opened(subject)
        assert image_of(subject).stat().st_blocks * 512 >= SIZE_MIB * MIB
        await driver.close()
        take_down_pool_image(disk, "sub/pool")
        assert image_of(subject).stat().st_blocks * 512 >= SIZE_MIB * MIB


async def test_an_image_that_does_not_fit_says_so(tmp_path: Path, runner: FaultyRunner) -> None:
    with filesystem(tmp_path / "disk", "ext4", size_mib=64) as disk:
        subject = pool(disk, runner, preallocate=True)
        with pytest.raises(BackendUnavailable, match=r"lower poolImage\.size"):
            await opened(subject)
        assert sorted(path.name for path in image_of(subject).parent.iterdir()) == [
            "pool.holder",
            "pool.lock",
        ]
        assert runner.ran == []
