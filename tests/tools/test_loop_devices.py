"""Loop devices outlive everything that used them: which ones are ours, and in what order they come off."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.cluster.kernel import Loop, detach, inodes_under, loops, loops_of

_FILE = (8, 1, 100)
_DEVTMPFS = (0, 6)


def _loop(number: int, backing: tuple[int, int, int], path: str = "/somewhere/else") -> Loop:
    return Loop(f"/dev/loop{number}", (7, number), (*_DEVTMPFS, 900 + number), backing, path)


def test_a_chain_comes_off_from_the_top() -> None:
    pool = _loop(0, _FILE)
    volume = _loop(1, (7, 0, 55))  # a file on the filesystem on loop0
    raw = _loop(2, (*_DEVTMPFS, 901))  # the kubelet's, on the device node of loop1
    stranger = _loop(3, (8, 1, 101))
    assert loops_of([pool, volume, raw, stranger], {_FILE}, private=False) == [raw, volume, pool]


def test_paths_that_only_nodes_have_count_only_when_asked() -> None:
    deleted = _loop(0, (8, 1, 7), "/var/lib/cinderblock/no-such-pool.img (deleted)")
    assert loops_of([deleted], set(), private=False) == []
    assert loops_of([deleted], set(), private=True) == [deleted]


def test_a_path_that_this_machine_has_is_not_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: True)
    local = _loop(0, (8, 1, 7), "/var/lib/cinderblock/pool.img")
    assert loops_of([local], set(), private=True) == []


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
    mine = loops_of(loops(), inodes_under(tmp_path), private=False)
    assert [loop.name for loop in mine] == list(reversed(attached))
    detach(mine)
    assert not {loop.name for loop in loops()} & set(attached)
    detach(mine)
