"""Where the tools keep things: the checkout, the cache that outlives it, the state of a running cluster."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
GO_MODULES = REPOSITORY / "tools" / "go"


def cache_dir() -> Path:
    """The folder for built binaries, base images and package downloads; safe to delete at any time."""
    named = os.environ.get("CINDERBLOCK_CACHE")
    return Path(named).absolute() if named else Path.home() / ".cache" / "cinderblock"


def instance() -> int:
    """Which of several clusters on this machine: 0 unless CINDERBLOCK_INSTANCE says 1 to 9."""
    said = os.environ.get("CINDERBLOCK_INSTANCE") or "0"
    return int(said) if said.isdecimal() else -1


def state_dir() -> Path:
    """The folder of the running local cluster; short, since the paths of Unix sockets end at 107 bytes."""
    usual = f"/var/lib/cinderblock-dev{instance() or ''}"
    return Path(os.environ.get("CINDERBLOCK_STATE") or usual).absolute()
