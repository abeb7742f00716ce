"""The cluster, the image and the chart: what must stand before the tour."""

from __future__ import annotations

import sys
from pathlib import Path

from tools.cluster.context import context_hash
from tools.demo.kubectl import Cluster
from tools.paths import REPOSITORY
from tools.shell import ToolError, run, say

RELEASE = "cinderblock"
NAMESPACE = "cinderblock"
CHART = REPOSITORY / "deploy" / "helm" / "cinderblock"
_REPOSITORY_NAME = "ghcr.io/cinderblock/cinderblock"


def tool(*argv: str, timeout: float = 3000.0, quiet: bool = False) -> str:
    """One of our own tools; its progress goes through, unless its answer is wanted."""
    command = [sys.executable, "-m", *argv]
    if quiet:
        return run(command, timeout=timeout, cwd=REPOSITORY)
    import subprocess

    done = subprocess.run(command, cwd=REPOSITORY, timeout=timeout, check=False)
    if done.returncode:
        raise ToolError(f"{' '.join(argv)} ended with {done.returncode}")
    return ""


def image_tag() -> str:
    """A tag that changes with the image's content, so that an upgrade rolls the pods."""
    return f"demo-{context_hash(REPOSITORY, REPOSITORY / 'Dockerfile', '')}"


def image_name(tag: str) -> str:
    return f"{_REPOSITORY_NAME}:{tag}"


def install(cluster: Cluster, tag: str, *extra: str) -> None:
    """helm install, or upgrade; waits until every pod is ready."""
    say("helm upgrade --install cinderblock deploy/helm/cinderblock")
    try:
        cluster.helm(
            "upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--create-namespace",
            "--set", f"image.tag={tag}", "--wait", "--timeout", "5m", *extra,
        )  # fmt: skip
    except ToolError as error:
        pods = cluster.kubectl("-n", NAMESPACE, "get", "pods", "-o", "wide", check=False)
        raise ToolError(f"{error}\n{pods}") from None
    wait_ready(cluster)


def wait_ready(cluster: Cluster) -> None:
    """Pods rolled out and the default pool ready to take Volumes."""
    for workload in (
        "deployment/cinderblock-controller",
        "daemonset/cinderblock-host",
        "daemonset/cinderblock-node",
    ):
        cluster.kubectl("-n", NAMESPACE, "rollout", "status", workload, "--timeout=180s", timeout=200)

    def ready() -> bool:
        return (
            int(cluster.get("backends.cinderblock.io", "default").get("status", {}).get("readyPools", 0)) > 0
        )

    cluster.wait(
        "a ready pool of Backend default",
        ready,
        timeout=90,
        on_fail=lambda: cluster.kubectl(
            "get", "backends.cinderblock.io,pools.cinderblock.io", "-o", "yaml", check=False
        ),
    )


def kubeconfig() -> Path:
    return Path(tool("tools.cluster", "kubeconfig", quiet=True).strip())
