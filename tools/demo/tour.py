"""The four proofs of the quickstart. Each leaves its objects in place, so that a person can look around."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from tools.demo.kubectl import Cluster, condition
from tools.paths import REPOSITORY
from tools.shell import ToolError, say

QUICKSTART = REPOSITORY / "examples" / "quickstart"
VOLUMES = "volumes.cinderblock.io"
ATTACHMENTS = "attachments.cinderblock.io"


@dataclass(frozen=True)
class Proof:
    claim: str
    evidence: str
    seconds: float


def bare_volume(cluster: Cluster) -> Proof:
    """(a) A Volume becomes Available, and kubectl shows what a person wants to know."""
    started = time.monotonic()
    cluster.apply(QUICKSTART / "1-volume.yaml")
    cluster.kubectl("wait", "--for=condition=Ready", f"{VOLUMES}/first", "--timeout=60s", timeout=70)
    seconds = time.monotonic() - started
    table = cluster.kubectl("get", VOLUMES, "first")
    say(_indent(table))
    header, row = (line.split() for line in table.strip().splitlines())
    for column in ("PHASE", "SIZE", "TYPE", "POOL", "NODE", "AGE"):
        if column not in header:
            raise ToolError(f"kubectl get {VOLUMES} has no column {column}:\n{table}")
    if "Available" not in row:
        raise ToolError(f"the Volume is not Available:\n{table}")
    pool = cluster.get(VOLUMES, "first")["status"]["allocation"]["pool"]
    return Proof("a bare Volume becomes Available", f"granted in pool {pool}", seconds)


def _pod_running(cluster: Cluster, pod: str) -> None:
    def running() -> bool:
        statuses = cluster.get("pod", pod).get("status", {}).get("containerStatuses", [])
        return bool(statuses) and all(status["ready"] for status in statuses)

    seconds = cluster.wait(
        f"pod {pod} to run",
        running,
        timeout=180,
        on_fail=lambda: cluster.kubectl("describe", "pod,pvc", "-n", "default", check=False),
    )
    say(f"  pod {pod} runs after {seconds:.1f} s")


def _recreate(cluster: Cluster, manifest: str, pod: str) -> None:
    before = cluster.get("pod", pod)["metadata"]["uid"]
    cluster.kubectl("delete", "pod", pod, "--wait", "--timeout=120s", timeout=130)
    cluster.apply(QUICKSTART / manifest)
    _pod_running(cluster, pod)
    if cluster.get("pod", pod)["metadata"]["uid"] == before:
        raise ToolError(f"pod {pod} was not made again")


def filesystem_claim(cluster: Cluster) -> Proof:
    """(b) A file and its checksum outlive the pod that wrote them."""
    started = time.monotonic()
    cluster.apply(QUICKSTART / "2-filesystem.yaml")
    _pod_running(cluster, "files")
    name = f"proof-{secrets.token_hex(4)}"
    wrote = cluster.exec_shell(
        "files",
        f"dd if=/dev/urandom of=/data/{name} bs=1M count=8 2>/dev/null && sync && sha256sum /data/{name}",
    ).split()[0]
    say(f"  wrote 8 MiB, sha256 {wrote[:16]}...; now the pod goes and comes back")
    _recreate(cluster, "2-filesystem.yaml", "files")
    read = cluster.exec_shell("files", f"sha256sum /data/{name}").split()[0]
    if read != wrote:
        raise ToolError(f"the file changed: wrote {wrote}, read {read}")
    kind = cluster.exec_shell("files", "awk '$2 == \"/data\" {print $3}' /proc/mounts")
    cluster.exec_shell("files", f"rm /data/{name} && sync")
    return Proof(
        "a file outlives its pod", f"{kind}, sha256 {read[:12]} before and after", time.monotonic() - started
    )


def block_claim(cluster: Cluster) -> Proof:
    """(c) The same with a raw device."""
    started = time.monotonic()
    cluster.apply(QUICKSTART / "3-block.yaml")
    _pod_running(cluster, "blocks")
    seed = secrets.token_hex(512)
    cluster.kubectl(
        "exec", "-i", "blocks", "--", "sh", "-c", "dd of=/dev/data bs=1024 seek=100 conv=notrunc 2>/dev/null; sync",
        stdin=seed,
    )  # fmt: skip
    say("  wrote 1 KiB at offset 100 KiB of the device; now the pod goes and comes back")
    _recreate(cluster, "3-block.yaml", "blocks")
    read = cluster.exec_shell("blocks", "dd if=/dev/data bs=1024 skip=100 count=1 2>/dev/null")
    if read != seed:
        raise ToolError("the block device's content changed")
    zeros = cluster.exec_shell(
        "blocks", "dd if=/dev/data bs=1024 count=100 2>/dev/null | tr -d '\\000' | wc -c"
    )
    if zeros != "0":
        raise ToolError(f"{zeros} bytes that nobody wrote are not zero")
    return Proof(
        "a raw device outlives its pod",
        "1 KiB read back, the bytes before it are zeros",
        time.monotonic() - started,
    )


def standalone_attachment(cluster: Cluster, on_node: Callable[[str, str], str]) -> Proof:
    """(d) An Attachment puts the device on the node, its removal takes it away. `on_node` runs a shell
    there."""
    started = time.monotonic()
    cluster.apply(QUICKSTART / "4-attachment.yaml")
    cluster.kubectl("wait", "--for=condition=Connected", f"{ATTACHMENTS}/first", "--timeout=60s", timeout=70)
    status = cluster.get(ATTACHMENTS, "first")["status"]
    link = status["device"]
    size = on_node("node1", f"blockdev --getsize64 $(readlink -f {link})").strip()
    say(f"  {link} on node1, {size} bytes")
    if int(size) != 1 << 30:
        raise ToolError(f"the device has {size} bytes instead of {1 << 30}")
    cluster.kubectl("delete", ATTACHMENTS, "first", "--wait", "--timeout=60s", timeout=70)
    left = on_node("node1", f"test -e {link} && echo still there || echo gone").strip()
    if left != "gone":
        raise ToolError(f"{link} is {left} after the Attachment was deleted")
    if condition(cluster.get(VOLUMES, "first"), "Ready") != "True":
        raise ToolError("the Volume is not Ready after its detach")
    return Proof(
        "an Attachment brings the device and takes it away",
        f"{int(size) >> 20} MiB at {link[:24]}...",
        time.monotonic() - started,
    )


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.rstrip().splitlines())
