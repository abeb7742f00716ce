"""`python -m tools.demo [up|down]`."""

from __future__ import annotations

import argparse
import time

from rich.console import Console
from rich.table import Table

from tools import build, debian
from tools.demo import install, tour
from tools.demo.kubectl import Cluster
from tools.shell import main_guard, say


def connect() -> Cluster:
    return Cluster(install.kubeconfig(), build.binary("kubectl"), build.binary("helm"))


def on_node(node: str, script: str) -> str:
    """A shell command in the node's own namespaces."""
    return install.tool("tools.cluster", "enter", node.removeprefix("node"), "sh", "-c", script, quiet=True)


def up() -> int:
    started = time.monotonic()

    def step(title: str) -> None:
        say(f"\n[{time.monotonic() - started:5.0f} s] {title}")

    step("Kubernetes: one node on this machine")
    debian.require_machine()
    install.tool("tools.cluster", "up", "--nodes", "1")
    step("Image: built from the Dockerfile")
    tag = install.image_tag()
    install.tool("tools.cluster", "build-image", install.image_name(tag), ".")
    cluster = connect()
    step("Chart: installed as on any cluster")
    install.install(cluster, tag)
    say(cluster.kubectl("-n", install.NAMESPACE, "get", "pods"))
    proofs = []
    step("(a) a bare Volume")
    proofs.append(tour.bare_volume(cluster))
    step("(b) a claim with a filesystem, and a pod")
    proofs.append(tour.filesystem_claim(cluster))
    step("(c) a claim for a raw block device, and a pod")
    proofs.append(tour.block_claim(cluster))
    step("(d) a standalone Attachment")
    proofs.append(tour.standalone_attachment(cluster, on_node))

    table = Table(title="Proved", title_justify="left")
    for name in ("what", "evidence", "seconds"):
        table.add_column(name, justify="right" if name == "seconds" else "left")
    for proof in proofs:
        table.add_row(proof.claim, proof.evidence, f"{proof.seconds:.1f}")
    say("")
    Console().print(table)
    say(f"All of it in {time.monotonic() - started:.0f} s. Look around:")
    say(f"  export KUBECONFIG={cluster.kubeconfig} PATH={cluster.kubectl_binary.parent}:$PATH")
    say("  kubectl get volumes.cinderblock.io -A")
    say("Remove everything: make demo-down")
    return 0


def down() -> int:
    install.tool("tools.cluster", "down")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument("action", nargs="?", choices=["up", "down"], default="up")
    return up() if parser.parse_args().action == "up" else down()


if __name__ == "__main__":
    main_guard(main)
