"""Programs are started, bounded and ended for real."""

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cinderblock.core.errors import OperationTimeout
from cinderblock.core.process import CommandFailed, SystemRunner

ROOT = Path(__file__).resolve().parents[2]
SHELL = "/bin/sh"


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the deadline"
        await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether it runs; one that ended and was not reaped yet by whoever inherited it is dead."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def children() -> set[int]:
    """Processes that we started and did not reap."""
    return {int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()}


@pytest.fixture
def runner() -> SystemRunner:
    return SystemRunner()


async def test_output_and_code_come_back(runner: SystemRunner) -> None:
    result = await runner.run([SHELL, "-c", "printf out; printf err >&2; exit 3"], ok=(0, 3))
    assert (result.returncode, result.stdout, result.stderr) == (3, b"out", b"err")


async def test_stdin_is_given_and_is_empty_otherwise(runner: SystemRunner) -> None:
    large = os.urandom(1 << 20)
    assert (await runner.run(["cat"], stdin=large)).stdout == large
    assert (await runner.run(["cat"], timeout=5)).stdout == b"", "a program that reads does not hang"
    assert (await runner.run(["true"], stdin=large)).returncode == 0, "nor must it read all"


async def test_an_unexpected_code_is_an_error_that_says_why(runner: SystemRunner) -> None:
    with pytest.raises(CommandFailed, match="sh ended with 4: no such pool") as caught:
        await runner.run([SHELL, "-c", "echo no such pool >&2; exit 4", "secret-argument"])
    assert caught.value.result.returncode == 4
    assert "secret-argument" not in caught.value.message
    with pytest.raises(CommandFailed, match=r"-9"):
        await runner.run([SHELL, "-c", "kill -9 $$"])


async def test_a_missing_program_is_named(runner: SystemRunner) -> None:
    with pytest.raises(CommandFailed, match="no-such-program: not installed") as caught:
        await runner.run(["no-such-program", "x"])
    assert caught.value.result.returncode == 127


async def test_a_file_that_is_no_program_is_named(runner: SystemRunner, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    with pytest.raises(CommandFailed, match="data: cannot be run") as caught:
        await runner.run([str(tmp_path / "data")])
    assert caught.value.result.returncode == 126


async def test_the_environment_is_small_and_speaks_english(
    runner: SystemRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "hidden")
    said = (await runner.run(["env"])).stdout.decode()
    assert "LC_ALL=C" in said
    assert "A_SECRET" not in said


async def test_a_deadline_kills_and_reaps(runner: SystemRunner, tmp_path: Path) -> None:
    before, started = children(), time.monotonic()
    with pytest.raises(OperationTimeout, match=r"sh did not end within 0\.5 s"):
        await runner.run([SHELL, "-c", f"echo $$ > {tmp_path}/pid; exec sleep 100"], timeout=0.5)
    assert time.monotonic() - started < 10
    assert not alive(int((tmp_path / "pid").read_text()))
    assert children() == before, "reaped, not a zombie"


async def test_a_deadline_ends_what_the_program_had_started_too(runner: SystemRunner, tmp_path: Path) -> None:
    script = f"sleep 100 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(OperationTimeout):
        await runner.run([SHELL, "-c", script], timeout=0.5)
    grandchild = int((tmp_path / "pid").read_text())
    await until(lambda: not alive(grandchild))


async def test_a_program_that_ignores_polite_signals_ends(runner: SystemRunner, tmp_path: Path) -> None:
    script = f"trap '' TERM INT HUP; echo $$ > {tmp_path}/pid; while :; do sleep 1; done"
    with pytest.raises(OperationTimeout):
        await runner.run([SHELL, "-c", script], timeout=0.5)
    assert not alive(int((tmp_path / "pid").read_text()))


async def test_a_cancelled_caller_leaves_nothing_running(runner: SystemRunner, tmp_path: Path) -> None:
    before, pid = children(), tmp_path / "pid"
    task = asyncio.create_task(
        runner.run([SHELL, "-c", f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 100"], timeout=100)
    )
    await until(pid.exists)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(int(pid.read_text()))
    assert children() == before


async def test_a_signal_to_our_group_does_not_reach_a_running_program(runner: SystemRunner) -> None:
    """Ctrl-C in a terminal must not cut a mkfs in two: we end, and decide ourselves what ends with us."""
    result = await runner.run([SHELL, "-c", "ps -o pgid= -p $$; ps -o pgid= -p $PPID"])
    own, parents = result.stdout.split()
    assert own != parents


async def test_a_killed_process_takes_its_programs_along(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    program = (
        "import asyncio; from cinderblock.core.process import SystemRunner\n"
        f"script = 'echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 100'\n"
        "asyncio.run(SystemRunner().run(['/bin/sh', '-c', script], timeout=100))"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=ROOT)
    await until(pid.exists)
    child = int(pid.read_text())
    assert alive(child), "the test shows nothing when it had ended by itself"
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    await until(lambda: not alive(child))


async def test_a_process_that_dies_before_its_program_is_bound_to_it_starts_nothing(tmp_path: Path) -> None:
    """The instant between the fork and PDEATHSIG: a setpriv that kills its parent first stands for it."""
    setpriv = shutil.which("setpriv")
    stand_in = tmp_path / "bin" / "setpriv"
    stand_in.parent.mkdir()
    stand_in.write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/pid\nkill -9 $PPID\n"
        f'while test -d /proc/$PPID; do sleep 0.01; done\nexec {setpriv} "$@"\n'
    )
    stand_in.chmod(0o755)
    program = (
        "import asyncio; from cinderblock.core.process import SystemRunner\n"
        f"asyncio.run(SystemRunner().run(['touch', '{tmp_path}/ran']))"
    )
    environment = os.environ | {"PATH": f"{stand_in.parent}:{os.environ['PATH']}"}
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=ROOT, env=environment)
    assert await parent.wait() == -signal.SIGKILL
    await until(lambda: not alive(int((tmp_path / "pid").read_text())))
    assert not (tmp_path / "ran").exists()


async def test_many_at_once(runner: SystemRunner) -> None:
    results = await asyncio.gather(*(runner.run(["echo", str(n)]) for n in range(30)))
    assert [int(result.stdout) for result in results] == list(range(30))


async def test_a_program_that_went_its_own_way_does_not_hold_the_caller(
    runner: SystemRunner, tmp_path: Path
) -> None:
    """A daemon keeps the pipes open and left our group: the caller still gets its answer at the deadline."""
    pid, started = tmp_path / "pid", time.monotonic()
    script = f"setsid sh -c 'echo $$ > {pid}; exec sleep 100' & while ! test -s {pid}; do sleep 0.05; done"
    try:
        with pytest.raises(OperationTimeout):
            await runner.run([SHELL, "-c", script], timeout=1)
        assert time.monotonic() - started < 10
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)
