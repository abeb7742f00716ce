"""Real filesystems in image files, and loop devices, for tests as root. Whatever happens, nothing is left behind."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

_MAKE = {
    "xfs": (320, ["mkfs.xfs", "-q"]),
    "btrfs": (160, ["mkfs.btrfs", "-q"]),
    "ext4": (96, ["mkfs.ext4", "-q", "-F"]),
}


def run(*argv: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in argv], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{argv[0]} ended with {done.returncode}: {done.stderr}")
    return done.stdout


@contextlib.contextmanager
def filesystem(folder: Path, kind: str, *, size_mib: int | None = None) -> Iterator[Path]:
    """A fresh filesystem of this kind, mounted at folder/mount."""
    default_mib, mkfs = _MAKE[kind]
    image, mount_point = folder / f"{kind}.img", folder / "mount"
    folder.mkdir(parents=True, exist_ok=True)
    mount_point.mkdir()
    with image.open("w") as file:
        file.truncate((size_mib or default_mib) * 1024 * 1024)
    run(*mkfs, image)
    run("mount", "-o", "loop", image, mount_point)
    try:
        yield mount_point
    finally:
        try:
            run("umount", mount_point)
        except RuntimeError:
            run("umount", "--lazy", mount_point)  # a failing test still holds it open
            raise
        finally:
            image.unlink()


@contextlib.contextmanager
def loop_device(image: Path, *, read_only: bool = False) -> Iterator[Path]:
    """`image` on a loop device, as a node would use it."""
    options = ["--read-only"] if read_only else []
    device = run("losetup", "--find", "--show", *options, image).strip()
    try:
        yield Path(device)
    finally:
        run("losetup", "--detach", device)
        wait_detached(image)


def loops_on(image: Path) -> list[str]:
    """Devices that hold this file, asked of losetup."""
    found = run("losetup", "--noheadings", "--list", "--output", "NAME", "--associated", image)
    return found.split()


def wait_detached(image: Path) -> None:
    """The kernel lets go at the last close, which udev may have a moment after us."""
    deadline = os.times().elapsed + 10
    while loops_on(image):
        if os.times().elapsed > deadline:
            raise RuntimeError(f"{image} is still on {loops_on(image)}")
        with contextlib.suppress(OSError):
            os.sched_yield()


def take_down_pool_image(pools_root: Path, directory: str) -> None:
    """Undo what the file driver does for a pool with an image: it never does so itself."""
    mount_point, image = pools_root / directory, pools_root / ".images" / f"{directory}.img"
    while os.path.ismount(mount_point):
        run("umount", mount_point)
    if image.exists():
        for device in loops_on(image):
            run("losetup", "--detach", device)
        wait_detached(image)
