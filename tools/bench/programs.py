"""The processes under test: started by argv, logged, and ended with us whatever happens to us."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.paths import REPOSITORY, cache_dir
from tools.shell import ToolError, kill_group, run, tail, wait_until

_WHAT_RUNS = (
    "cinderblock.cli.main",
    "cinderblock.operator.main",
    "cinderblock.csi.controller_main",
    "cinderblock.csi.node_main",
    "cinderblock.drivers.file",
    "cinderblock.drivers.fake",
    "tools.bench.bare_pipeline",
)
_START_SECONDS = 30.0
_STOP_SECONDS = 12.0


def environment() -> dict[str, str]:
    """Bytecode in a folder that outlives us: a process that compiles at its start keeps more memory, and the
    image is compiled when it is built."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONUNBUFFERED": "1", "PYTHONPYCACHEPREFIX": str(cache_dir() / "bench-bytecode")}


def compile_once() -> None:
    """Write the bytecode of all that will run, so that no measured process does."""
    argv = ["env", "-u", "PYTHONDONTWRITEBYTECODE", sys.executable, "-c", f"import {', '.join(_WHAT_RUNS)}"]
    run(argv, timeout=120, env=environment(), cwd=REPOSITORY)


@dataclass(frozen=True)
class Program:
    """A running program. It gets no Ctrl-C of the terminal (a session of its own), and dies when we are killed."""

    name: str
    child: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, name: str, argv: Sequence[str | Path], log: Path) -> Program:
        with log.open("ab") as stream:
            child = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *map(str, argv)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                cwd=REPOSITORY,
                env=environment(),
            )
        return cls(name, child, log)

    @property
    def pid(self) -> int:
        return self.child.pid

    def require_running(self) -> None:
        """ToolError with the end of its log where it has ended."""
        if self.child.poll() is not None:
            raise ToolError(f"{self.name} ended with {self.child.returncode}:\n{tail(self.log)}")

    def wait_http(self, url: str) -> None:
        """Until that address answers 200."""

        def answers() -> bool:
            self.require_running()
            try:
                with urllib.request.urlopen(url, timeout=2) as answer:
                    return bool(answer.status == 200)
            except (urllib.error.URLError, OSError):
                return False

        try:
            wait_until(f"{self.name} at {url}", answers, timeout=_START_SECONDS)
        except ToolError as error:
            raise ToolError(f"{error}\n{tail(self.log)}") from None

    def stop(self) -> None:
        """SIGTERM, after a while SIGKILL to all that it started; may be repeated."""
        if self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                kill_group(self.child.pid)
                self.child.wait(_STOP_SECONDS)
        kill_group(self.child.pid)
