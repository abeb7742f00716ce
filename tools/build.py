"""Build the pinned Go tools into the cache: `python -m tools.build [module...]`; nothing when they are there.

Builds happen in a folder beside the final one and are renamed when complete, under a lock per module, so
that an interrupted build leaves nothing that looks finished and two builds never mix.
"""

import argparse
import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from tools import modules
from tools.golang import ensure_go
from tools.modules import MODULES, Module
from tools.paths import GO_MODULES
from tools.shell import ToolError, kill_group, main_guard, say

_DEADLINE_SECONDS = 3600.0
_REPORT_EVERY_SECONDS = 20.0


def ensure(names: Iterable[str]) -> None:
    """Build every named module that is not in the cache yet."""
    for name in names:
        if name not in MODULES:
            raise ToolError(f"no module {name} in tools/go; there are: {' '.join(MODULES)}")
        module = MODULES[name]
        if not module.is_built():
            _build_locked(module)


def binary(name: str) -> Path:
    """The path of one pinned binary, built now when it is missing."""
    ensure([modules.module_of(name).name])
    return modules.binary(name)


def _build_locked(module: Module) -> None:
    folder = module.folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not module.is_built():  # somebody else may have built it while we waited
            _build(module, folder)


def _build(module: Module, folder: Path) -> None:
    go = ensure_go()
    partial = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    ldflags = f"-s -w {module.ldflags}".strip()
    argv = ["build", "-trimpath", "-ldflags", ldflags, "-o", f"{partial}/", *module.commands]
    say(f"building {module.name}: {', '.join(module.binaries)} (cold: up to several minutes)")
    log = folder.with_name(f"{folder.name}.log")
    _run_with_progress(module.name, [str(go.command), *argv], go.env(), log)
    for built, wanted in module.renames.items():
        (partial / built).rename(partial / wanted)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    log.unlink()


def _run_with_progress(name: str, argv: list[str], env: dict[str, str], log: Path) -> None:
    """Run one go build; say every 20 s that it goes on and what it said last."""
    started = time.monotonic()
    with log.open("wb") as stream:
        child = subprocess.Popen(
            argv,
            env={**os.environ, **env},
            cwd=GO_MODULES / name,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            process_group=0,
        )
    try:
        while True:
            try:
                code = child.wait(_REPORT_EVERY_SECONDS)
                break
            except subprocess.TimeoutExpired:
                elapsed = time.monotonic() - started
                if elapsed > _DEADLINE_SECONDS:
                    raise ToolError(f"building {name} took over {_DEADLINE_SECONDS:.0f} s") from None
                said = (log.read_text(errors="replace").splitlines() or ["compiling"])[-1]
                say(f"  {name}: {elapsed:.0f} s, {said[:90]}")
    finally:
        if child.poll() is None:
            kill_group(child.pid)
            child.wait()
    if code:
        said = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise ToolError(f"go build of {name} ended with {code}:\n{said}")
    say(f"  {name}: built in {time.monotonic() - started:.0f} s")


def main() -> int:
    """`python -m tools.build [module...]`."""
    parser = argparse.ArgumentParser(
        prog="tools.build", description="build the pinned Go tools into the cache"
    )
    parser.add_argument("modules", nargs="*", help=f"of {' '.join(MODULES)}; all when none is named")
    names = parser.parse_args().modules or list(MODULES)
    ensure(names)
    for name in names:
        say(f"{name}: {MODULES[name].folder()}")
    return 0


if __name__ == "__main__":
    main_guard(main)
