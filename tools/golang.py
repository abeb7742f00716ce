"""Find a Go that can build the pinned modules, or get one.

The modules need Go >= 1.26. Any Go >= 1.21 will do as a start: with GOTOOLCHAIN=auto it fetches the
toolchain that a go.mod asks for as a module, verified by the checksum database. Debian 12 has 1.19, its
backports have 1.23.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from tools import debian
from tools.paths import GO_MODULES, cache_dir
from tools.shell import ToolError, run

_OLDEST = (1, 21)  # the first that can switch toolchains
_USUAL_PLACES = "/usr/local/go/bin:/usr/lib/go/bin"


@dataclass(frozen=True)
class Go:
    """One usable `go` command."""

    command: Path

    def env(self) -> dict[str, str]:
        """What every call gets: no cgo, go.sum as it is, the toolchain that go.mod asks for."""
        return {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "auto", "GOWORK": "off"}

    def run(self, module: str, *args: str, timeout: float) -> str:
        """`go ARGS` in tools/go/<module>."""
        return run([self.command, *args], timeout=timeout, env=self.env(), cwd=GO_MODULES / module)

    def module_dir(self, module: str, dependency: str) -> Path:
        """Where the sources of a dependency lie; downloaded and verified against go.sum when missing."""
        self.run(module, "mod", "download", dependency, timeout=600)
        found = self.run(module, "list", "-m", "-f", "{{.Dir}}", dependency, timeout=600).strip()
        if not found:
            raise ToolError(f"go.mod of tools/go/{module} does not lead to {dependency}")
        return Path(found)


def parse_version(text: str) -> tuple[int, int] | None:
    """`go version go1.26.8 linux/amd64` -> (1, 26); None for what is no such line."""
    match = re.search(r"\bgo(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def find_go() -> Go | None:
    """The first good `go` in PATH or the usual places."""
    for folder in f"{os.environ.get('PATH', '')}:{_USUAL_PLACES}".split(":"):
        command = shutil.which("go", path=folder) if folder else None
        if command is None:
            continue
        # Asked outside any module, so that no toolchain is fetched only to tell a version.
        said = run([command, "version"], timeout=60, env={"GOTOOLCHAIN": "local"}, cwd=Path("/"), check=False)
        version = parse_version(said)
        if version is not None and version >= _OLDEST:
            return Go(Path(command))
    return None


def ensure_go() -> Go:
    """A usable Go, installed from Debian's backports when there is none."""
    if go := find_go():
        return go
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise ToolError(
            "no Go >= 1.21 here: install Go 1.26 or newer and put it in PATH (as root on Debian we would)"
        )
    debian.install_from_backports(["golang-go"], cache_dir() / "apt-backports")
    if go := find_go():
        return go
    raise ToolError(
        "golang-go is installed from backports, but no Go >= 1.21 is in PATH; install Go 1.26 by hand"
    )
