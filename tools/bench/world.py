"""Where it is measured: a real API server, and our processes as the console script starts them.

Everything lies in one folder and ends with the benchmark, also on Ctrl-C; what a killed one left behind is
removed by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cinderblock.core.crd.manifest import manifest
from tools.bench.kinds import BareVolume
from tools.bench.programs import Program, compile_once
from tools.cluster.control_plane import ControlPlane, free_ports, temporary_control_plane
from tools.cluster.kernel import detach, inodes_under, loops, loops_of, unmount_under
from tools.paths import REPOSITORY
from tools.shell import ToolError, say, tail, wait_until

RELEASE_NAMESPACE = "cinderblock"
NAMESPACE = "bench"
NODE = "bench-node"
FAKE, FILE = "fake", "file"
_API = "/apis/cinderblock.io/v1alpha1"

# Enough for every part at once; the file pool is as the chart's default Backend has it.
_OBJECTS: list[dict[str, Any]] = [
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    for name in (RELEASE_NAMESPACE, NAMESPACE)
] + [
    {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE, "labels": {"topology.cinderblock.io/node": NODE}},
    },
]
_BACKENDS: list[dict[str, Any]] = [
    {
        "apiVersion": "cinderblock.io/v1alpha1",
        "kind": "Backend",
        "metadata": {"name": name},
        "spec": {"driver": name, **spec},
    }
    for name, spec in (
        (FAKE, {"config": {"totalSize": "100Ti"}}),
        (FILE, {"config": {"directory": FILE}, "nodeSelector": {}, "overSubscriptionRatio": "100"}),
    )
] + [
    {
        "apiVersion": "cinderblock.io/v1alpha1",
        "kind": "VolumeType",
        "metadata": {"name": name},
        "spec": {"extraSpecs": {"driver": name}},
    }
    for name in (FAKE, FILE)
]


@dataclass
class World:
    """Made by `world`. Programs are found by the names that the figures use."""

    folder: Path
    plane: ControlPlane
    programs: dict[str, Program] = field(default_factory=dict)

    @property
    def pools_root(self) -> Path:
        return self.folder / "pools"

    @property
    def csi_socket(self) -> str:
        return f"unix://{self.folder / 'csi.sock'}"

    def pid(self, name: str) -> int:
        """Of a program of ours or of a part of the control plane."""
        if name in self.programs:
            return self.programs[name].pid
        identity = self.plane.daemon(name).running()
        if identity is None:
            raise ToolError(f"{name} does not run:\n{tail(self.plane.daemon(name).log)}")
        return identity.pid

    def start(self, name: str, argv: Sequence[str | Path]) -> Program:
        program = Program.start(name, argv, self.folder / f"{name}.log")
        self.programs[name] = program
        return program

    def stop(self, name: str) -> None:
        self.programs.pop(name).stop()

    def ours(self, name: str, *argv: str | Path) -> None:
        """One process of the console script, until its health endpoint answers."""
        (port,) = free_ports(1)
        script = Path(sys.executable).with_name("cinderblock")
        program = self.start(
            name,
            [
                script,
                *argv,
                f"--namespace={RELEASE_NAMESPACE}",
                f"--kubeconfig={self.plane.kubeconfig}",
                f"--metrics-port={port}",
                "--log-level=warning",
            ],
        )
        program.wait_http(f"http://127.0.0.1:{port}/healthz")

    def operator(self, name: str = "operator") -> None:
        self.ours(name, "operator", f"--pools-root={self.pools_root}")

    def host(self) -> None:
        self.ours("host", "operator", "--role=host", f"--node={NODE}", f"--pools-root={self.pools_root}")

    def csi_controller(self, name: str = "csi-controller", socket: str | None = None) -> None:
        self.ours(name, "csi", "controller", f"--endpoint={socket or self.csi_socket}")

    def csi_node(self) -> None:
        registry = self.folder / "registry"
        registry.mkdir(exist_ok=True)
        self.ours(
            "csi-node",
            "csi",
            "node",
            f"--endpoint=unix://{self.folder / 'node.sock'}",
            f"--node={NODE}",
            f"--pools-root={self.pools_root}",
            f"--registration-dir={registry}",
            f"--links-root={self.folder / 'links'}",
        )

        def reported() -> bool:
            self.programs["csi-node"].require_running()
            return self.plane.client.ok(f"{_API}/storagenodes/{NODE}")

        wait_until("the StorageNode", reported, timeout=30)

    def apply(self, objects: Sequence[dict[str, Any]]) -> None:
        self.plane.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def wait_pools(self) -> None:
        """Both Backends have a pool that can be granted."""

        def ready() -> bool:
            for program in self.programs.values():
                program.require_running()
            return {FAKE, FILE} <= self._ready_backends()

        try:
            wait_until("ready pools", ready, timeout=60)
        except ToolError as error:
            raise ToolError(f"{error}\n{self.plane.kubectl('get', 'pools', '-o', 'yaml')}") from None

    def _ready_backends(self) -> set[str]:
        _, body = self.plane.client.get(f"{_API}/pools")
        found = set()
        for pool in json.loads(body or b"{}").get("items", []):
            conditions = {c["type"]: c["status"] for c in pool.get("status", {}).get("conditions", [])}
            if conditions.get("Ready") == "True" and conditions.get("HostAlive") == "True":
                found.add(pool["spec"]["backend"])
        return found

    def install(self) -> None:
        """Kinds and objects that everything needs."""
        self.plane.apply_crds(REPOSITORY / "deploy" / "crds")
        self.apply([manifest(BareVolume)])
        self.plane.kubectl(
            "wait", "--for=condition=Established", "--timeout=30s", "crd/barevolumes.cinderblock.io"
        )
        self.apply(_OBJECTS)
        self.apply(_BACKENDS)

    def close(self) -> None:
        """End every program, then take away what the kernel keeps for them."""
        for name in reversed(list(self.programs)):
            self.stop(name)
        remove(self.folder)


def remove(folder: Path) -> None:
    """A folder with the mounts below it and the loop devices on its files."""
    if not folder.exists():
        return
    unmount_under(folder)
    detach(loops_of(loops(), inodes_under(folder)))
    shutil.rmtree(folder)


@contextlib.contextmanager
def world() -> Iterator[World]:
    """One at a time on a machine: two would measure each other."""
    parent = Path(tempfile.gettempdir()) / f"cinderblock-bench-{os.getuid()}"
    parent.mkdir(exist_ok=True, mode=0o700)
    with (parent / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ToolError("another benchmark is running") from None
        folder = parent / "run"
        remove(folder)
        compile_once()
        say("starting the control plane")
        with temporary_control_plane(parent, with_controllers=True) as plane:
            folder.mkdir()
            (folder / "pools").mkdir()
            made = World(folder, plane)
            try:
                made.install()
                yield made
            finally:
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it behind
                made.close()
