"""The whole local cluster: what `up`, `down` and the rest of the command line do.

Every step looks at what is there and makes what is missing, so that `up` after a crash of `up` repairs and a
second `up` is quick; `down` goes by names alone, so that it works whatever state it finds.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tools import build
from tools.cluster import image_build, images, kernel, network
from tools.cluster.control_plane import ControlPlane
from tools.cluster.images import Archive
from tools.cluster.layout import API_PORT, Layout
from tools.cluster.node import Node
from tools.cluster.oci import manifest_digest
from tools.debian import CLUSTER_PACKAGES, ensure_packages, require_machine, sbin_path
from tools.golang import ensure_go
from tools.shell import ToolError, say, tail

# Mount points that nodes need in the root that they share with this machine.
_MOUNT_POINTS = (Path("/var/lib/kubelet"), Path("/var/lib/cinderblock"))

# What the machine was like before the first cluster, for the last one's `down`; a reboot forgets both alike.
_FACTS = Path("/run/cinderblock-dev.json")


@dataclass(frozen=True)
class PartStatus:
    """One line of `status`."""

    name: str
    healthy: bool
    detail: str


@dataclass(frozen=True)
class Cluster:
    """The cluster of one state folder."""

    layout: Layout
    apiserver_args: Sequence[str] = ()  # an audit log, say; they count when the API server is started

    @cached_property
    def plane(self) -> ControlPlane:
        """Its control plane, on the bridge's address."""
        return ControlPlane(
            self.layout.control,
            bind_address=self.layout.api_address,
            apiserver_port=API_PORT,
            with_controllers=True,
            apiserver_args=self.apiserver_args,
        )

    def node(self, number: int) -> Node:
        """Node 1 or 2, up or not."""
        return Node(self.layout.node(number), self.plane)

    def nodes_up(self) -> list[Node]:
        """The nodes that run."""
        every = [Node(layout, self.plane) for layout in self.layout.nodes()]
        return [node for node in every if node.init_pid() is not None]

    def up(self, nodes: int = 1) -> None:
        """Bring up the control plane, `nodes` nodes and the standard images."""
        require_machine()
        require_root()
        ensure_packages(CLUSTER_PACKAGES)
        build.ensure(["etcd", "kubernetes", "containerd"])
        with self._locked():
            self._remember_machine()
            network.ensure_bridge(self.layout)
            if not self.plane.healthy():
                say("starting the control plane")
                self.plane.start()
            for number in range(1, nodes + 1):
                node = self.node(number)
                if not node.is_ready():
                    say(f"starting {node.layout.name}")
                    node.up()
            self._load(images.standard())

    def down(self) -> None:
        """Remove everything: processes, mounts, loop devices, namespaces, bridge, cgroups, the state
        folder."""
        require_root()
        with self._locked():
            for layout in self.layout.nodes():
                Node(layout, self.plane).down()
            self.plane.stop()
            network.remove_bridge(self.layout)
            kernel.unmount_under(self.layout.state)
            image_build.clean_up()
            self._restore_machine()
            shutil.rmtree(self.layout.state, ignore_errors=True)
            if self.layout.state.exists():
                raise ToolError(f"{self.layout.state} could not be removed")
        self.layout.lock.unlink(missing_ok=True)

    def load(self, archive: Archive) -> None:
        """Load an archive into every node that runs and does not have it."""
        with self._locked():
            self._load([archive])

    def build_image(self, name: str, context: Path, dockerfile: Path | None = None) -> None:
        """Build a Dockerfile (unless unchanged) and load the image into every node that runs."""
        require_root()
        ensure_packages(CLUSTER_PACKAGES)
        images.folder().mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._load([image_build.build_image(name, context, dockerfile)])

    def apply_snapshot_crds(self) -> None:
        """VolumeSnapshot and its siblings, which no Kubernetes brings by itself."""
        client = "github.com/kubernetes-csi/external-snapshotter/client/v8"
        for path in sorted(
            (ensure_go().module_dir("csi", client) / "config" / "crd").glob("*.storage.k8s.io_*")
        ):
            self.plane.kubectl("apply", "--server-side", "-f", str(path))

    def status(self) -> list[PartStatus]:
        """Every part that is to be seen, healthy or not."""
        rows = []
        for daemon in self.plane.daemons():
            identity = daemon.running()
            rows.append(
                PartStatus(daemon.name, identity is not None, f"pid {identity.pid}" if identity else "down")
            )
        ready = self.plane.kubeconfig.exists() and self.plane.client.ok("/readyz")
        rows.append(PartStatus("readyz", ready, self.plane.url if ready else "no answer"))
        for layout in self.layout.nodes():
            node = Node(layout, self.plane)
            pid = node.init_pid()
            if pid is not None or layout.folder.exists():
                healthy = ready and node.is_ready()
                detail = f"pid {pid}, {'Ready' if healthy else 'not Ready'}" if pid else "down"
                rows.append(PartStatus(layout.name, healthy, detail))
        return rows

    def logs(self) -> dict[str, Path]:
        """Name -> log file of every part."""
        found = {daemon.name: daemon.log for daemon in self.plane.daemons()}
        for layout in self.layout.nodes():
            for path in sorted(layout.folder.glob("*.log")):
                found[f"{layout.name}/{path.stem}"] = path
        return {name: path for name, path in found.items() if path.exists()}

    def tail(self, name: str, lines: int) -> str:
        """The end of one log."""
        logs = self.logs()
        if name not in logs:
            raise ToolError(f"no log {name}; there are: {' '.join(logs) or 'none'}")
        return tail(logs[name], lines)

    def _load(self, archives: Iterable[Archive]) -> None:
        wanted = [(archive, manifest_digest(archive.path)) for archive in archives]
        for node in self.nodes_up():
            held = node.images()
            for archive, digest in wanted:
                if any(held.get(name) != digest for name in archive.names):
                    say(f"loading {archive.names[0]} into {node.layout.name}")
                    node.load(archive.path)

    def _remember_machine(self) -> None:
        """What `down` puts back, written before anything is changed."""
        self.layout.state.mkdir(parents=True, exist_ok=True)
        if _FACTS.exists():
            return
        facts = {
            "ip_forward": network.forwarding(),
            "folders": [str(path) for path in _MOUNT_POINTS if not path.exists()],
            "netns_mounted": network.namespaces_mounted(),
        }
        new = _FACTS.with_suffix(".new")
        new.write_text(json.dumps(facts))
        new.rename(_FACTS)

    def _restore_machine(self) -> None:
        if network.other_clusters(self.layout):
            return  # they need what is there now
        try:
            facts = json.loads(_FACTS.read_text())
        except (FileNotFoundError, ValueError):
            return
        network.set_forwarding(facts["ip_forward"])
        if not facts["netns_mounted"]:
            network.unmount_namespaces()
        for folder in facts["folders"]:
            with contextlib.suppress(OSError):  # not empty: somebody else uses it by now
                Path(folder).rmdir()
        _FACTS.unlink()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One changing command at a time; the lock ends with the process, however that ends."""
        self.layout.lock.parent.mkdir(parents=True, exist_ok=True)
        with self.layout.lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def require_root() -> None:
    """Namespaces, mounts and bridges need it; and the administrators' programs must be found."""
    if os.geteuid() != 0:
        raise ToolError("the local cluster needs root: its nodes are namespaces with mounts of their own")
    os.environ["PATH"] = sbin_path()
