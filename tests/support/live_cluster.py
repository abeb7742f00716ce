"""What a test does with a running cluster: kubectl as a user has it, a look into the node, and violence.

Nothing here knows how the product works inside: objects are read through the API server, the pool by listing its
folder on the node, processes by the cgroup of their container.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tools.cluster import kernel
from tools.cluster.node import Node
from tools.demo.install import NAMESPACE
from tools.demo.kubectl import Cluster
from tools.shell import ToolError, run

T = TypeVar("T")
Object = dict[str, Any]
GROUP = "cinderblock.io/v1alpha1"
VOLUMES, ATTACHMENTS = "volumes.cinderblock.io", "attachments.cinderblock.io"
BACKENDS, POOLS = "backends.cinderblock.io", "pools.cinderblock.io"
POOLS_ROOT = "/var/lib/cinderblock"
BUSYBOX = "docker.io/library/busybox:1.37"
CONTAINERS = {
    # what people call it -> (component label of the pod, container)
    "operator": ("controller", "operator"),
    "csi-controller": ("controller", "csi-controller"),
    "host": ("host", "host"),
    "csi-node": ("node", "csi-node"),
}


@dataclass(frozen=True)
class Process:
    """The first process of a container, as this machine's process table has it."""

    pod: str
    pid: int

    def signal(self, number: signal.Signals) -> None:
        """Gone already is fine."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


@dataclass(frozen=True)
class LiveCluster:
    kube: Cluster
    machine: Node

    @property
    def node(self) -> str:
        return self.machine.layout.name

    # kubectl -------------------------------------------------------------------------------------------
    def kubectl(self, *argv: str, timeout: float = 60, stdin: str | None = None, check: bool = True) -> str:
        return self.kube.kubectl(*argv, timeout=timeout, stdin=stdin, check=check)

    def apply(self, *objects: Object) -> None:
        self.kubectl("apply", "-f", "-", stdin=_list(objects))

    def refused(self, *argv: str, stdin: str | None = None) -> str:
        """What the API server says to a request that it must refuse."""
        try:
            self.kubectl(*argv, stdin=stdin)
        except ToolError as error:
            return str(error)
        raise AssertionError(f"kubectl {' '.join(argv)} was accepted")

    def refused_object(self, obj: Object) -> str:
        return self.refused("apply", "-f", "-", stdin=json.dumps(obj))

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object:
        """{} when it is not there."""
        return self.kube.get(kind, name, namespace=namespace)

    def items(self, kind: str, *argv: str) -> list[Object]:
        found: list[Object] = json.loads(self.kubectl("get", kind, "-o", "json", *argv))["items"]
        return found

    def delete(self, kind: str, *names: str, namespace: str | None = None, wait: float = 60) -> None:
        """Gone at the end; `wait` 0 = only asked for."""
        where = ["-n", namespace] if namespace else []
        how = ["--wait", f"--timeout={wait:.0f}s"] if wait else ["--wait=false"]
        self.kubectl("delete", kind, *names, *where, *how, "--ignore-not-found", timeout=wait + 30)

    def wait(self, what: str, check: Callable[[], T], seconds: float = 60) -> T:
        """The first true answer. A deadline says what the cluster knows."""
        deadline = time.monotonic() + seconds
        while not (found := check()):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds:.0f} s in vain for {what}\n{self.report()}")
            time.sleep(0.2)
        return found

    def report(self) -> str:
        """For the message of a failed test."""
        kinds = f"{VOLUMES},{ATTACHMENTS},{POOLS},{BACKENDS},pods,pvc,volumeattachments"
        shown = self.kubectl("get", kinds, "-A", "-o", "wide", check=False)
        errors = "\n".join(
            f"{v['metadata']['name']}: {json.dumps(v.get('status', {}))[:1500]}"
            for v in (*self.items(VOLUMES, "-A"), *self.items(ATTACHMENTS, "-A"))
            if condition(v, "Ready").get("status") != "True"
            and condition(v, "Connected").get("status") != "True"
        )
        events = self.kubectl(
            "get", "events", "-A", "--sort-by=.lastTimestamp", "-o",
            "custom-columns=T:.lastTimestamp,O:.involvedObject.name,R:.reason,M:.message", check=False,
        ).splitlines()[-25:]  # fmt: skip
        return "\n".join([shown, errors, *events])

    # what users are told ---------------------------------------------------------------------------------
    def condition(
        self,
        kind: str,
        name: str,
        type_: str,
        status: str,
        *,
        namespace: str | None = None,
        seconds: float = 45,
    ) -> Object:
        """The condition, once it has this status."""

        def look() -> Object | None:
            found = condition(self.get(kind, name, namespace), type_)
            return found if found.get("status") == status else None

        return self.wait(f"{kind} {namespace or ''}/{name} to be {type_}={status}", look, seconds)

    def event(self, obj: Object, reason: str, seconds: float = 30) -> Object:
        """A Warning about this very object."""
        meta = obj["metadata"]

        def look() -> Object | None:
            selector = f"involvedObject.uid={meta['uid']},reason={reason},type=Warning"
            where = meta.get("namespace", "default")
            found = self.items("events", "-n", where, f"--field-selector={selector}")
            return found[0] if found else None

        return self.wait(f"event {reason} about {meta['name']}", look, seconds)

    def claim_event(self, claim: str, namespace: str, words: Iterable[str], seconds: float = 60) -> str:
        """A message about a claim that holds all these words."""
        wanted = tuple(words)

        def look() -> str | None:
            selector = f"involvedObject.kind=PersistentVolumeClaim,involvedObject.name={claim}"
            for event in self.items("events", "-n", namespace, f"--field-selector={selector}"):
                message = str(event["message"])
                if all(word in message for word in wanted):
                    return message
            return None

        return self.wait(f"an event about claim {claim} with {wanted}", look, seconds)

    # the node --------------------------------------------------------------------------------------------
    def on_node(self, script: str, timeout: float = 60) -> str:
        return run(self.machine.enter_argv(["sh", "-c", script]), timeout=timeout).strip()

    def images(self) -> set[str]:
        """Every file that any pool folder of the node holds for a volume."""
        listing = self.on_node(f"ls {POOLS_ROOT}/*/volumes 2>/dev/null || true")
        return set(re.findall(r"^\S+\.img\S*$", listing, re.MULTILINE))

    def loops(self) -> set[str]:
        """Images of the node's pools that a loop device holds; found by inode, since paths differ by who asks."""
        held = {loop.backing_inode for loop in kernel.loops()}
        pools = self.machine.layout.folder / "pools"
        found = set()
        for image in pools.rglob("*.img*"):
            with contextlib.suppress(FileNotFoundError):
                facts = image.lstat()
                if (os.major(facts.st_dev), os.minor(facts.st_dev), facts.st_ino) in held:
                    found.add(image.name)
        return found

    # processes -------------------------------------------------------------------------------------------
    def pods(self, component: str) -> list[Object]:
        return self.items("pods", "-n", NAMESPACE, "-l", f"app.kubernetes.io/component={component}")

    def processes(self, name: str) -> list[Process]:
        """One per pod of that part of the product; those that do not run just now are left out."""
        component, container = CONTAINERS[name]
        found = []
        for pod in self.pods(component):
            for status in pod.get("status", {}).get("containerStatuses", []):
                if status["name"] == container and "running" in status["state"]:
                    pid = _first_process(status["containerID"].rpartition("/")[2])
                    if pid is not None:
                        found.append(Process(pod["metadata"]["name"], pid))
        return found

    def leader(self) -> str:
        """The pod of the operator that leads, by its Lease; "" when nobody does."""
        holder = self.get("lease", "cinderblock-operator", NAMESPACE).get("spec", {}).get("holderIdentity")
        return str(holder or "").rpartition("_")[0]

    def kill(self, name: str) -> list[Process]:
        """kill -9 of that process in every pod."""
        struck = self.wait(f"a process of {name}", lambda: self.processes(name))
        for process in struck:
            process.signal(signal.SIGKILL)
        return struck

    def rolled_out(self, seconds: float = 150) -> None:
        """Every container of ours runs and is ready."""

        def ready() -> bool:
            pods = [pod for component in ("controller", "host", "node") for pod in self.pods(component)]
            return len(pods) >= 4 and all(condition(pod, "Ready").get("status") == "True" for pod in pods)

        self.wait("all pods of ours to be ready", ready, seconds)


def condition(obj: Object, type_: str) -> Object:
    """{} when it is not there."""
    for item in obj.get("status", {}).get("conditions", []):
        if item["type"] == type_:
            return dict(item)
    return {}


def _first_process(container: str) -> int | None:
    for cgroup in Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            if container in cgroup.read_text():
                status = (cgroup.parent / "status").read_text()
                inside = re.search(r"^NSpid:.*\s(\d+)$", status, re.MULTILINE)
                if inside is not None and inside[1] == "1":
                    return int(cgroup.parent.name)
    return None


# manifests -----------------------------------------------------------------------------------------------
def _list(objects: Iterable[Object]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})


def _meta(name: str, namespace: str | None) -> Object:
    return {"name": name, "namespace": namespace} if namespace else {"name": name}


def ours(kind: str, name: str, namespace: str | None = None, **spec: Any) -> Object:
    """An object of our group."""
    return {"apiVersion": GROUP, "kind": kind, "metadata": _meta(name, namespace), "spec": spec}


def storage_class(name: str, **parameters: str) -> Object:
    """Binds at once, so that a claim needs no pod."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": "csi.cinderblock.io",
        "parameters": parameters,
        "allowVolumeExpansion": True,
        "volumeBindingMode": "Immediate",
    }


def claim(name: str, namespace: str, size: str = "64Mi", storage_class_name: str = "cinderblock") -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _meta(name, namespace),
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": storage_class_name,
            "resources": {"requests": {"storage": size}},
        },
    }


def pod(name: str, namespace: str, claim_name: str, script: str = "") -> Object:
    """A shell with the claim at /data; `script` runs in it until it is told to end."""
    wait = "trap 'exit 0' TERM; while :; do sleep 1; done"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _meta(name, namespace),
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "shell",
                    "image": BUSYBOX,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", script or wait],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }
            ],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim_name}}],
        },
    }


def disk_scripts(folder: str) -> tuple[str, str]:
    """Shell scripts that mount a filesystem of 96 MiB there, and that take it away for good."""
    image = f"{POOLS_ROOT}/.{folder}.disk"
    where = f"{POOLS_ROOT}/{folder}"
    undo = f"umount -l {where} 2>/dev/null; rm -rf {where} {image}"
    make = f"mkdir {where} && truncate -s 96M {image} && mkfs.ext4 -q -m 0 -b 4096 {image}"
    return f"{undo}; {make} && mount -o loop {image} {where}", f"{undo}; true"
