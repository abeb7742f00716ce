"""Pid files: found again, never believed about a pid that belongs to somebody else."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from tools.cluster.processes import Daemon, Identity, is_running, parse_pid_file, parse_stat
from tools.shell import ToolError, run, wait_until


def _daemon(folder: Path) -> Daemon:
    return Daemon("sleeper", folder / "sleeper.pid", folder / "sleeper.log")


def test_starts_once_stops_and_leaves_no_pid_file(tmp_path: Path) -> None:
    daemon = _daemon(tmp_path)
    identity = daemon.start(["sleep", "600"])
    try:
        assert daemon.running() == identity
        assert _daemon(tmp_path).start(["sleep", "600"]) == identity, "a second start made a second process"
        assert os.getsid(identity.pid) == identity.pid, "it would die with the terminal"
    finally:
        daemon.stop(grace=5)
    assert not is_running(identity)
    assert not daemon.pid_file.exists()
    daemon.stop(grace=5)


def test_a_process_that_ignores_the_polite_signal_is_killed(tmp_path: Path) -> None:
    daemon = _daemon(tmp_path)
    ready = tmp_path / "ready"
    identity = daemon.start(["sh", "-c", f"trap '' TERM; touch {ready}; while :; do sleep 0.05; done"])
    wait_until("the trap to be set", ready.exists, timeout=10)
    daemon.stop(grace=0.2)
    assert not is_running(identity)


def test_a_reused_pid_is_never_signalled(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as stranger:
        try:
            daemon = _daemon(tmp_path)
            stat = Path(f"/proc/{stranger.pid}/stat").read_text()
            _, _, start = parse_stat(stat)
            boot = Path("/proc/sys/kernel/random/boot_id").read_text()
            daemon.pid_file.write_text(stat.replace(f" {start} ", f" {start - 1} ") + boot)
            assert daemon.identity() is not None
            assert daemon.running() is None
            daemon.stop(grace=0)
            assert stranger.poll() is None, "a stranger with the old pid was killed"
            daemon.pid_file.write_text(f"{stat}another-boot\n")
            daemon.stop(grace=0)
            assert stranger.poll() is None, "a pid file of another boot was believed"
        finally:
            stranger.kill()


def test_a_dead_daemon_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    daemon = _daemon(tmp_path)
    identity = daemon.start(["sh", "-c", "echo the disk is on fire; exit 3"])
    wait_until("its end", lambda: not is_running(identity), timeout=10)
    with pytest.raises(ToolError, match="the disk is on fire"):
        daemon.require_running()
    daemon.stop(grace=0)


@pytest.mark.parametrize("text", ["", "12", "garbage\nboot", "1 (a) S\nboot\n", "x (a) S 1 1\nboot"])
def test_a_torn_pid_file_names_nobody(text: str) -> None:
    assert parse_pid_file(text) is None


def test_program_names_with_brackets_and_spaces_are_understood() -> None:
    fields = " ".join(["S", *(str(number) for number in range(4, 40))])
    assert parse_stat(f"77 (a) S (b c)) {fields}\n") == (77, "S", 22)


def test_a_zombie_does_not_run() -> None:
    with subprocess.Popen(["true"]) as child:
        stat = Path(f"/proc/{child.pid}/stat")
        deadline = time.monotonic() + 10
        while parse_stat(stat.read_text())[1] != "Z":
            assert time.monotonic() < deadline
        _, _, start = parse_stat(stat.read_text())
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert not is_running(Identity(child.pid, start, boot))


def test_a_program_that_outlives_its_deadline_is_killed_with_its_children(tmp_path: Path) -> None:
    pid_file = tmp_path / "child"
    with pytest.raises(ToolError, match="did not end"):
        run(["sh", "-c", f"sleep 600 & echo $! > {pid_file}; wait"], timeout=0.5)
    pid = int(pid_file.read_text())

    def gone() -> bool:
        try:
            os.kill(pid, 0)
            return parse_stat(Path(f"/proc/{pid}/stat").read_text())[1] == "Z"
        except (ProcessLookupError, FileNotFoundError):
            return True

    wait_until("the child to be killed", gone, timeout=10)


def test_a_missing_program_and_a_failing_one_say_so() -> None:
    with pytest.raises(ToolError, match="is not installed"):
        run(["no-such-program-here"], timeout=5)
    with pytest.raises(ToolError, match=r"ended with 7:\nbecause"):
        run(["sh", "-c", "echo because >&2; exit 7"], timeout=5)
