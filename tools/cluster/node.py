"""One Kubernetes node in namespaces of this machine: up, kill (a power cut), cut (a broken cable), heal,
down."""

import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tools.cluster import kernel, network, node_config
from tools.cluster.control_plane import ControlPlane
from tools.cluster.layout import NodeLayout
from tools.cluster.processes import Daemon
from tools.debian import sbin_path
from tools.modules import MODULES, binary
from tools.paths import REPOSITORY
from tools.shell import ToolError, run, wait_until

_READY_SECONDS = 90.0
_IMPORT_SECONDS = 300.0


@dataclass(frozen=True)
class Node:
    """A node of the cluster whose control plane is `plane`."""

    layout: NodeLayout
    plane: ControlPlane

    @property
    def daemon(self) -> Daemon:
        """The process whose only child is the node's pid 1; its end is the end of the node."""
        return Daemon(self.layout.name, self.layout.pid_file, self.layout.log)

    def init_pid(self) -> int | None:
        """The node's pid 1 as this machine sees it."""
        identity = self.daemon.running()
        if identity is None:
            return None
        path = Path(f"/proc/{identity.pid}/task/{identity.pid}/children")
        try:
            children = path.read_text().split()
        except FileNotFoundError:
            return None
        return int(children[0]) if children else None

    def is_ready(self) -> bool:
        """Runs, and Kubernetes says Ready."""
        return self.init_pid() is not None and self.plane.client.node_condition(self.layout.name)[0]

    def up(self) -> None:
        """Start the node, or start it again after a kill, and wait until it says Ready by itself."""
        if self.is_ready():
            return
        self.kill()
        self._write_files()
        network.ensure_node(self.layout)
        kernel.remove_cgroup_root(self.layout.kernel_name)
        kernel.make_cgroup_root(self.layout.kernel_name)
        # The API keeps the old answer until the node reports: only a heartbeat after this moment counts.
        since = datetime.now(UTC).replace(microsecond=0).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.daemon.start(self._argv(), env={"PATH": self._path(), "PYTHONPATH": str(REPOSITORY)})
        wait_until(
            f"{self.layout.name} to be Ready", lambda: self._ready_since(since), timeout=_READY_SECONDS
        )

    def _ready_since(self, since: str) -> bool:
        self.daemon.require_running()
        ready, heartbeat = self.plane.client.node_condition(self.layout.name)
        return ready and heartbeat >= since

    def kill(self) -> None:
        """A power cut: SIGKILL to everything in the node; its mounts go with it, its loop devices follow."""
        init = self.init_pid()
        handle = os.pidfd_open(init) if init else None
        before = kernel.loops()
        self.daemon.stop(grace=0)  # unshare --kill-child: the node's pid 1 dies with it
        if handle is not None:
            try:
                _wait_for_end(handle, self.layout.name)
            finally:
                os.close(handle)
        if after := kernel.loops():
            mine = kernel.loops_of(after, kernel.inodes_under(self.layout.folder))
            lost = kernel.lost_with_a_node(before, after)
            kernel.detach([*mine, *(loop for loop in lost if loop not in mine)])

    def cut(self) -> None:
        """A network partition."""
        network.set_cable(self.layout, up=False)

    def heal(self) -> None:
        """The end of a partition."""
        network.set_cable(self.layout, up=True)

    def down(self) -> None:
        """Kill it and take away all that the kernel keeps for it; the folder is left to the caller."""
        self.kill()
        network.remove_node(self.layout)
        kernel.remove_cgroup_root(self.layout.kernel_name)

    def enter_argv(self, argv: Sequence[str]) -> list[str]:
        """How to run a program inside the node."""
        init = self.init_pid()
        if init is None:
            raise ToolError(f"{self.layout.name} is not up")
        return ["nsenter", "-t", str(init), "-m", "-u", "-i", "-n", "-p", "--", *argv]

    def images(self) -> dict[str, str]:
        """name -> manifest digest of what containerd holds."""
        rows = self._ctr("images", "list", timeout=30).splitlines()[1:]
        return {fields[0]: fields[2] for fields in map(str.split, rows) if len(fields) > 2}

    def load(self, archive: Path) -> None:
        """Import an OCI archive."""
        self._ctr("images", "import", "--local", str(archive), timeout=_IMPORT_SECONDS)

    def _ctr(self, *arguments: str, timeout: float) -> str:
        socket = str(self.layout.containerd_socket)
        return run([binary("ctr"), "-a", socket, "-n", "k8s.io", *arguments], timeout=timeout)

    def _argv(self) -> list[str | Path]:
        layout = self.layout
        enter = ["nsenter", f"--net={network.namespace(layout)}"]
        kinds = ["--mount", "--uts", "--ipc", "--pid"]
        apart = ["unshare", *kinds, "--fork", "--kill-child", "--propagation", "private"]
        settings = {
            "name": layout.name,
            "folder": layout.folder,
            "control": self.plane.state_dir,
            "address": layout.address,
            "pod-cidr": layout.cluster.pod_cidr,
        }
        options = [f"--{key}={value}" for key, value in settings.items()]
        return [*enter, *apart, sys.executable, "-m", "tools.cluster.node_init", *options]

    def _path(self) -> str:
        """containerd finds its shim, and the shim runc, in PATH."""
        own = [str(MODULES[name].folder()) for name in ("kubernetes", "containerd")]
        return ":".join([*own, sbin_path()])

    def _write_files(self) -> None:
        layout, plane = self.layout, self.plane
        for name in ("kubelet", "pools", "log", "containerd", "cni", "flex"):
            (layout.folder / name).mkdir(parents=True, exist_ok=True)
        subject = f"/O=system:nodes/CN=system:node:{layout.name}"
        names = [f"DNS:{layout.name}", f"IP:{layout.address}"]
        plane.account(layout.name, subject, names, plane.state_dir / f"{layout.name}.kubeconfig")
        proxy = plane.state_dir / "proxy.kubeconfig"
        plane.account("proxy", "/CN=system:kube-proxy", ["DNS:proxy"], proxy)
        files = {
            "containerd.toml": node_config.containerd_toml(layout),
            "cni/10-cinderblock.conflist": node_config.cni_conflist(layout),
            "kubelet.yaml": node_config.kubelet_yaml(layout, plane.authority.folder),
            "resolv.conf": "# no name server: the local cluster has none\n",
        }
        for name, text in files.items():
            (layout.folder / name).write_text(text)


def _wait_for_end(handle: int, name: str) -> None:
    deadline = time.monotonic() + 30
    if not select.select([handle], [], [], 2)[0]:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        if not select.select([handle], [], [], deadline - time.monotonic())[0]:
            raise ToolError(f"{name} does not end on SIGKILL")
