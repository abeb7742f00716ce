"""All four processes of one node against a real API server, with the file driver, and no kubelet."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from node_pool import clean
from tools.cluster.control_plane import ControlPlane, temporary_control_plane
from tools.paths import REPOSITORY

T = TypeVar("T")
NODE = "n1"
_OBJECTS = """
{apiVersion: v1, kind: Node, metadata: {name: n1}}
---
{apiVersion: cinderblock.io/v1alpha1, kind: VolumeType, metadata: {name: default}, spec: {isDefault: true}}
---
{apiVersion: cinderblock.io/v1alpha1, kind: Backend, metadata: {name: disk},
 spec: {driver: file, nodeSelector: {}, config: {directory: disk}}}
"""


def wait_for(condition: Callable[[], T], what: str, *, seconds: float = 60) -> T:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)
    return found


class RealStack:
    def __init__(self, root: Path, plane: ControlPlane) -> None:
        self.root = root
        self.plane = plane
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("pools", "controller", "node", "work"):
            (root / name).mkdir()

    @property
    def controller_socket(self) -> Path:
        return self.root / "controller" / "csi.sock"

    @property
    def node_socket(self) -> Path:
        return self.root / "node" / "csi.sock"

    def _arguments(self, name: str) -> list[str]:
        common = [f"--kubeconfig={self.plane.kubeconfig}", "--namespace=default"]
        pools = f"--pools-root={self.root}/pools"
        match name:
            case "leader":
                return ["operator", "--pod=leader", pools, *common]
            case "host":
                return ["operator", "--role=host", f"--node={NODE}", "--pod=host", pools, *common]
            case "controller":
                return ["csi", "controller", f"--endpoint=unix://{self.controller_socket}", *common]
            case _:
                links = f"--links-root={self.root}/links"
                return [
                    *("csi", "node", f"--endpoint=unix://{self.node_socket}", f"--node={NODE}"),
                    *(pools, links, *common),
                ]

    def start(self, name: str) -> None:
        with (self.root / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [
                    *(sys.executable, "-c", "from cinderblock.cli.main import main; main()"),
                    *self._arguments(name),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.root,
            )

    def kill(self, name: str) -> None:
        """kill -9."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def ready(self) -> bool:
        said = self.plane.kubectl(
            "get",
            "pools,storagenodes",
            "-o",
            "jsonpath={.items[*].status.conditions[*].type} {.items[*].status.protocols}",
        )
        return (
            "Ready" in said
            and "Local" in said
            and self.node_socket.exists()
            and self.controller_socket.exists()
        )

    def logs(self) -> str:
        """The ends of all logs, for the message of a failed test."""
        return "\n".join(
            f"== {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in self.root.glob("*.log")
        )


@contextlib.contextmanager
def real_stack(root: Path) -> Iterator[RealStack]:
    """Up and ready; at the end nothing of it may be left in the kernel."""
    with temporary_control_plane(root / "plane") as plane:
        plane.apply_crds(REPOSITORY / "deploy" / "crds")
        plane.kubectl("apply", "-f", "-", stdin=_OBJECTS)
        stack = RealStack(root, plane)
        try:
            for name in ("leader", "host", "controller", "node"):
                stack.start(name)
            wait_for(stack.ready, "the pool, the node and both sockets", seconds=90)
            yield stack
        finally:
            stack.stop()
            left = clean(root)
    assert left == []
