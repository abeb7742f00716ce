"""The benchmark ended by Ctrl-C: no process, no loop device, no folder stays."""

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.shell import wait_until

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.root, pytest.mark.apiserver, pytest.mark.timeout(180)]


@pytest.fixture
def short_path() -> Iterator[Path]:
    """The path of a Unix socket ends at 107 bytes; pytest's own folders are long."""
    with tempfile.TemporaryDirectory(prefix="cbb-", dir="/tmp") as folder:
        yield Path(folder)


def processes_that_name(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words:
            found.append(words)
    return found


def read_until(child: subprocess.Popen[bytes], wanted: bytes, seconds: float) -> bytes:
    assert child.stdout is not None
    said, deadline = b"", time.monotonic() + seconds
    while wanted not in said:
        left = deadline - time.monotonic()
        assert left > 0, said.decode()
        if select.select([child.stdout], [], [], left)[0]:
            chunk = os.read(child.stdout.fileno(), 65536)
            assert chunk, said.decode()
            said += chunk
    return said


def test_ctrl_c_in_the_middle_of_a_measurement_leaves_nothing(short_path):
    argv = [sys.executable, "-m", "tools.bench", "--quick", "--only", "attach", "--only", "memory"]
    with subprocess.Popen(
        argv,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(short_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as child:
        try:
            read_until(child, b"attach and detach", 120)
            assert len(processes_that_name(short_path)) >= 6, "API server, etcd, operator, host, two of CSI"
            os.killpg(child.pid, signal.SIGINT)  # as a terminal does
            wait_until(
                "the first process to end", lambda: len(processes_that_name(short_path)) < 6, timeout=60
            )
            os.killpg(child.pid, signal.SIGINT)  # once more, by somebody impatient
            said = read_until(child, b"memory, 0 Volumes", 60)
            assert child.wait(60) != 0
        finally:
            if child.poll() is None:
                child.kill()
    assert b"Traceback" not in said, said.decode()
    assert processes_that_name(short_path) == []
    loops = subprocess.run(["losetup", "--list"], capture_output=True, text=True, check=True).stdout
    assert str(short_path) not in loops
    left = {path.name for path in (short_path / f"cinderblock-bench-{os.geteuid()}").iterdir()}
    assert left == {"lock", ".lock"}, "only the locks"
