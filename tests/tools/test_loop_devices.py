"""Loop devices outlive everything that used them: which ones are ours, and in what order they come off."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tools.cluster.kernel import Loop, detach, inodes_under, loops, loops_of, lost_with_a_node

_FILE = (8, 1, 100)
_DEVTMPFS = (0, 6)


def _loop(number: int, backing: tuple[int, int, int], path: str = "/somewhere/else") -> Loop:
    return Loop(f"/dev/loop{number}", (7, number), (*_DEVTMPFS, 900 + number), backing, path)


def test_a_chain_comes_off_from_the_top() -> None:
    pool = _loop(0, _FILE)
    volume = _loop(1, (7, 0, 55))  # a file on the filesystem on loop0
    raw = _loop(2, (*_DEVTMPFS, 901))  # the kubelet's, on the device node of loop1
    stranger = _loop(3, (8, 1, 101))
    assert loops_of([pool, volume, raw, stranger], {_FILE}) == [raw, volume, pool]


def test_devices_on_deleted_files_go_with_their_own_node() -> None:
    path = "/var/lib/cinderblock/pool.img (deleted)"
    dead, living = _loop(0, (8, 1, 7), path), _loop(1, (8, 1, 8), path)
    after = replace(dead, backing_path="/pool.img (deleted)")
    stranger = _loop(2, (8, 1, 9), "/pool.img (deleted)")
    assert lost_with_a_node([dead, living, stranger], [after, living, stranger]) == [after]


def test_a_number_that_was_taken_by_another_file_meanwhile_is_left_alone() -> None:
    before = _loop(0, (8, 1, 7), "/var/lib/kubelet/x")
    assert lost_with_a_node([before], [_loop(0, (8, 1, 99), "/home/x")]) == []


@pytest.fixture
def attached(tmp_path: Path) -> Iterator[list[str]]:
    """A loop device on a file, and one on that device."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    names: list[str] = []
    try:
        for backing in (str(image), None):
            argv = ["losetup", "--find", "--show", backing or names[0]]
            done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30)
            names.append(done.stdout.strip())
        yield names
    finally:
        for name in reversed(names):
            subprocess.run(["losetup", "--detach", name], check=False, capture_output=True, timeout=30)


@pytest.mark.root
def test_real_devices_are_found_by_inode_and_detached(attached: list[str], tmp_path: Path) -> None:
    mine = loops_of(loops(), inodes_under(tmp_path))
    assert [loop.name for loop in mine] == list(reversed(attached))
    detach(mine)
    assert not {loop.name for loop in loops()} & set(attached)
    detach(mine)
