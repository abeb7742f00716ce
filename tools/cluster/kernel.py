"""What the kernel keeps for a node beyond its processes: cgroups, loop devices, mounts. Found by name,
removed by name."""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.shell import ToolError, run

CGROUPS = Path("/sys/fs/cgroup")
_PRIVATE_TO_NODES = ("/var/lib/kubelet/", "/var/lib/cinderblock/")


def cgroup_parents() -> list[Path]:
    """Where a node's root cgroup is made: the one tree of version 2, or every hierarchy of version 1."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [path for path in sorted(CGROUPS.iterdir()) if (path / "cgroup.procs").exists()]


def make_cgroup_root(name: str) -> None:
    """A cgroup root of the node's own: in a shared one, each kubelet takes the other's pods for orphans."""
    for parent in cgroup_parents():
        folder = parent / name
        if parent == CGROUPS:
            _delegate(parent)
        folder.mkdir(exist_ok=True)
        if parent == CGROUPS:
            _delegate(folder)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            # Version 1 starts a cpuset empty, and nothing can be put into an empty one.
            if (parent / setting).exists() and not (folder / setting).read_text().strip():
                (folder / setting).write_text((parent / setting).read_text())


def _delegate(folder: Path) -> None:
    """Version 2: let children of `folder` use its controllers, each where the kernel allows it."""
    for controller in (folder / "cgroup.controllers").read_text().split():
        with contextlib.suppress(OSError):
            (folder / "cgroup.subtree_control").write_text(f"+{controller}")


def remove_cgroup_root(name: str) -> None:
    """Remove the node's cgroups, deepest first; its processes are dead, but may take a moment to leave."""
    deadline = time.monotonic() + 10
    while left := [parent / name for parent in cgroup_parents() if (parent / name).exists()]:
        for root in left:
            for folder, _, _ in os.walk(root, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
        if time.monotonic() > deadline:
            raise ToolError(f"cgroups do not go: {', '.join(map(str, left))}")
        time.sleep(0.02)


@dataclass(frozen=True)
class Loop:
    """An attached loop device: its own number, what backs it, and the path as the kernel tells it."""

    name: str
    own_device: tuple[int, int]
    own_inode: tuple[int, int, int]
    backing_inode: tuple[int, int, int]  # major, minor, inode
    backing_path: str


def loops() -> list[Loop]:
    """Every attached loop device."""
    columns = "NAME,BACK-INO,BACK-MAJ:MIN,BACK-FILE"
    said = run(["losetup", "--list", "--json", "--output", columns], timeout=30)
    rows = json.loads(said)["loopdevices"] if said.strip() else []
    found = []
    for row in rows:
        try:
            node = Path(row["name"]).stat()
        except FileNotFoundError:
            continue
        major, minor = str(row["back-maj:min"]).split(":")
        found.append(
            Loop(
                name=row["name"],
                own_device=(os.major(node.st_rdev), os.minor(node.st_rdev)),
                own_inode=(os.major(node.st_dev), os.minor(node.st_dev), node.st_ino),
                backing_inode=(int(major), int(minor), int(row["back-ino"])),
                backing_path=str(row["back-file"] or ""),
            )
        )
    return found


def inodes_under(folder: Path) -> set[tuple[int, int, int]]:
    """(major, minor, inode) of every regular file below; what vanishes meanwhile is left out."""
    found = set()
    for path, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                facts = (Path(path) / name).lstat()
                found.add((os.major(facts.st_dev), os.minor(facts.st_dev), facts.st_ino))
    return found


def loops_of(all_loops: Sequence[Loop], files: set[tuple[int, int, int]]) -> list[Loop]:
    """The loop devices that stand on these files, directly or through other loop devices of the list.

    The last to be attached comes first: that is the order in which they can be detached.
    """
    mine: list[Loop] = []
    rest = list(all_loops)
    while True:
        devices = {loop.own_device for loop in mine}
        nodes = {loop.own_inode for loop in mine}
        more = [
            loop
            for loop in rest
            if loop.backing_inode in files
            or loop.backing_inode[:2] in devices  # a file on a filesystem on one of ours
            or loop.backing_inode in nodes  # the device itself, as the kubelet does for raw block volumes
        ]
        if not more:
            return mine
        mine = [*more, *mine]
        rest = [loop for loop in rest if loop not in more]


def lost_with_a_node(before: Sequence[Loop], after: Sequence[Loop]) -> list[Loop]:
    """The loop devices of a node that died between the two looks, whose files may be deleted already.

    All nodes have the same paths, but those of a dead one no longer lead through its mount points.
    """
    inside = {(loop.name, loop.backing_inode) for loop in before if _is_private(loop)}
    return [loop for loop in after if (loop.name, loop.backing_inode) in inside and not _is_private(loop)]


def _is_private(loop: Loop) -> bool:
    return loop.backing_path.startswith(_PRIVATE_TO_NODES)


def detach(devices: Iterable[Loop]) -> None:
    """Detach in the given order and wait until the kernel agrees; a number with another file by now is left
    alone."""
    wanted = {(loop.name, loop.backing_inode): loop for loop in devices}
    deadline = time.monotonic() + 10
    while wanted:
        present = {(loop.name, loop.backing_inode) for loop in loops()}
        left = [loop for key, loop in wanted.items() if key in present]
        if not left:
            return
        if time.monotonic() > deadline:
            raise ToolError(f"loop devices stay attached: {', '.join(loop.name for loop in left)}")
        for loop in left:
            run(["losetup", "--detach", loop.name], timeout=30, check=False)
        time.sleep(0.02)


def unmount_under(folder: Path) -> None:
    """Unmount whatever this machine's own namespace shows below `folder`; ToolError where something stays."""
    for point in reversed(mounts_under(folder)):
        run(["umount", "--lazy", point], timeout=60, check=False)
    if left := mounts_under(folder):
        raise ToolError(f"still mounted below {folder}: {', '.join(left)}")


def mounts_under(folder: Path) -> list[str]:
    """Mount points strictly below `folder`, in the order of mounting."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split(" ")[4].encode().decode("unicode_escape")
        if point.startswith(f"{folder}/"):
            points.append(point)
    return points
