"""A one-node cluster of a test's own, with an audit log, on which the chart lives its life."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import audit_log
from tools import build
from tools.cluster import kernel
from tools.cluster.cluster import Cluster as Machinery
from tools.cluster.layout import Layout
from tools.demo import install
from tools.demo.kubectl import Cluster
from tools.paths import REPOSITORY
from tools.shell import ToolError, run

NAMESPACE, RELEASE, CHART = install.NAMESPACE, install.RELEASE, str(install.CHART)
VOLUMES, BACKENDS, POOLS = "volumes.cinderblock.io", "backends.cinderblock.io", "pools.cinderblock.io"
CUSTOM = "cinderblock.io"
PODS = {"controller": "deployment/cinderblock-controller", "host": "daemonset/cinderblock-host",
        "node": "daemonset/cinderblock-node"}  # fmt: skip


@dataclass(frozen=True)
class ChartWorld:
    machinery: Machinery
    kube: Cluster
    tag: str
    audit: Path

    @classmethod
    def up(cls, state: Path, instance: int, folder: Path) -> ChartWorld:
        """An empty cluster; what an earlier run of the same instance left is removed first."""
        policy, audit = folder / "policy.yaml", folder / "audit.log"
        policy.write_text(audit_log.POLICY)
        args = (f"--audit-policy-file={policy}", f"--audit-log-path={audit}")
        machinery = Machinery(Layout(state, instance), args)
        machinery.down()
        machinery.up(1)
        tag = install.image_tag()
        machinery.build_image(install.image_name(tag), REPOSITORY)
        kube = Cluster(machinery.layout.kubeconfig, build.binary("kubectl"), build.binary("helm"))
        return cls(machinery, kube, tag, audit)

    # helm ----------------------------------------------------------------------------------------------
    def installed(self) -> bool:
        listed: list[Any] = json.loads(self.kube.helm("list", "-n", NAMESPACE, "-o", "json"))
        return bool(listed)

    def install(self, *sets: str) -> None:
        """helm upgrade --install, and wait until it works."""
        install.install(self.kube, self.tag, *(part for value in sets for part in ("--set", value)))

    def ensure_installed(self) -> None:
        if not self.installed():
            self.install()
        install.wait_ready(self.kube)

    def uninstall(self) -> str:
        """What helm says, on either stream; ToolError when it is refused."""
        argv = [self.kube.helm_binary, "--kubeconfig", self.kube.kubeconfig, "uninstall", RELEASE]
        argv += ["-n", NAMESPACE, "--wait", "--timeout", "4m"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise ToolError(done.stdout + done.stderr)
        return done.stdout + done.stderr

    def release(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kube.helm("status", RELEASE, "-n", NAMESPACE, "-o", "json"))[
            "info"
        ]
        return found

    # kubectl -------------------------------------------------------------------------------------------
    def apply(self, *objects: dict[str, Any]) -> None:
        body = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.kube.kubectl("apply", "-f", "-", stdin=body)

    def refused(self, *argv: str, obj: dict[str, Any] | None = None) -> str:
        """What the API server says to something that it must refuse."""
        try:
            self.kube.kubectl(*argv, stdin=json.dumps(obj) if obj else None)
        except ToolError as error:
            return str(error)
        raise AssertionError(f"kubectl {' '.join(argv)} was accepted")

    def items(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.kube.get(kind).get("items", [])
        return found

    def all_items(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.kube.kubectl("get", kind, "-A", "-o", "json"))["items"]
        return found

    def names(self, kind: str) -> set[str]:
        return {item["metadata"]["name"] for item in self.all_items(kind)}

    def wait(self, what: str, check: Callable[[], bool], seconds: float = 60) -> None:
        def report() -> str:
            kinds = f"{VOLUMES},{BACKENDS},{POOLS},pods,pvc,pv"
            return self.kube.kubectl("get", kinds, "-A", "-o", "wide", check=False)

        self.kube.wait(what, check, timeout=seconds, on_fail=report)

    def ready_volume(self, name: str, namespace: str = "default") -> dict[str, Any]:
        self.apply(volume(name, namespace))
        self.kube.kubectl(
            "wait", "-n", namespace, "--for=condition=Ready", f"{VOLUMES}/{name}", "--timeout=60s", timeout=70
        )
        return self.kube.get(VOLUMES, name, namespace=namespace)

    def pod_names(self, component: str) -> list[str]:
        selector = f"app.kubernetes.io/component={component}"
        listed = self.kube.kubectl("get", "pods", "-n", NAMESPACE, "-l", selector, "-o", "name")
        return [line.removeprefix("pod/") for line in listed.split()]

    # the node ------------------------------------------------------------------------------------------
    def on_node(self, script: str) -> str:
        argv = self.machinery.node(1).enter_argv(["sh", "-c", script])
        return run(argv, timeout=60).strip()

    def images(self) -> set[str]:
        """Files of volumes in the pool's folder."""
        return set(self.on_node("ls /var/lib/cinderblock/default/volumes 2>/dev/null || true").split())

    def mounts(self) -> list[str]:
        """Mount points of volumes and pools on the node."""
        points = [line.split()[1] for line in self.on_node("cat /proc/mounts").splitlines()]
        return [p for p in points if p.startswith("/var/lib/cinderblock/") or "csi.cinderblock.io" in p]

    def loops(self) -> int:
        """Loop devices on files of this node; those of other clusters of this machine do not count."""
        files = kernel.inodes_under(self.machinery.layout.node(1).folder)
        return len(kernel.loops_of(kernel.loops(), files))

    def process(self, component: str, *words: str) -> int:
        """The pid, as this machine sees it, of a process of ours in a pod of this cluster."""
        wanted = {item["metadata"]["uid"] for item in self._pods(component)}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                argv = (path / "cmdline").read_text().split("\0")
                group = (path / "cgroup").read_text()
            except OSError:
                continue
            if any(uid in group or uid.replace("-", "_") in group for uid in wanted) and all(
                word in argv for word in words
            ):
                return int(path.name)
        raise AssertionError(f"no process {words} in the pods of {component}")

    def _pods(self, component: str) -> list[dict[str, Any]]:
        selector = f"app.kubernetes.io/component={component}"
        listed = self.kube.kubectl("get", "pods", "-n", NAMESPACE, "-l", selector, "-o", "json")
        found: list[dict[str, Any]] = json.loads(listed)["items"]
        return found

    def clear(self) -> None:
        """Users' objects away, as their owner would do it."""
        self.kube.kubectl("delete", "pod,pvc", "--all", "-n", "default", "--timeout=120s", timeout=130)
        for kind in ("attachments.cinderblock.io", VOLUMES):
            self.kube.kubectl("delete", kind, "--all", "-n", "default", "--timeout=60s", timeout=70)
        self.wait("PersistentVolumes to go", lambda: not self.items("pv"))
        self.wait("Volumes to go", lambda: not self.all_items(VOLUMES))


def volume(name: str, namespace: str = "default", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "cinderblock.io/v1alpha1",
        "kind": "Volume",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"size": "64Mi", **spec},
    }


def claim(name: str, storage_class: str = "cinderblock") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": storage_class,
            "resources": {"requests": {"storage": "64Mi"}},
        },
    }


def pod(name: str, claim_name: str, script: str) -> dict[str, Any]:
    container = {
        "name": "shell",
        "image": "docker.io/library/busybox:1.37",
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", f"trap 'exit 0' TERM; {script}"],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim_name}}],
        },
    }
