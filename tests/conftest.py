"""What every test area shares: skips that tell why, and one real API server for a whole run."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tools import build
from tools.cluster.control_plane import ControlPlane, temporary_control_plane
from tools.paths import REPOSITORY

_ALL = ("etcd", "kubernetes", "containerd", "csi", "helm")
_NEEDED_BINARIES = {"apiserver": ("etcd", "kubernetes", "csi"), "cluster": _ALL}


@dataclass(frozen=True)
class ApiServer:
    """A running kube-apiserver with etcd, and nothing else: no controllers, no nodes."""

    plane: ControlPlane

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.plane.kubeconfig

    @property
    def url(self) -> str:
        """https://127.0.0.1:<free port>"""
        return self.plane.url

    def apply_crds(self) -> None:
        """Apply deploy/crds and wait until every kind is served. Idempotent."""
        self.plane.apply_crds(REPOSITORY / "deploy" / "crds")

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """stdout of the pinned kubectl as administrator; ToolError with stderr when it fails."""
        return self.plane.kubectl(*arguments, stdin=stdin)


@pytest.fixture(scope="session")
def apiserver() -> Iterator[ApiServer]:
    """One API server for the run; tests keep apart by namespaces and names of their own."""
    parent = Path(tempfile.gettempdir()) / f"cinderblock-test-{os.getuid()}"
    with temporary_control_plane(parent) as plane:
        yield ApiServer(plane)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need root are skipped without it."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root") or item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the binaries that the chosen tests need, before the tests' own deadlines run."""
    if session.config.option.collectonly:
        return
    names: set[str] = set()
    for item in session.items:
        for marker, modules in _NEEDED_BINARIES.items():
            if item.get_closest_marker(marker):
                names.update(modules)
    capture = session.config.pluginmanager.getplugin("capturemanager")
    if names and capture is not None:
        with capture.global_and_fixture_disabled():
            build.ensure(sorted(names))
