"""One real cluster with the chart installed for all tests of this folder, and a proof that they leave nothing.

A cluster that runs already is used and left running, so that repeated runs are quick; one that these tests
started is taken down again.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_cluster import VOLUMES, LiveCluster
from tools.cluster.cluster import Cluster as Machinery
from tools.cluster.layout import Layout
from tools.demo import install
from tools.demo.__main__ import connect
from tools.paths import REPOSITORY, instance, state_dir
from tools.shell import run

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The demo comes first among our tests: it is what brings the cluster up for the others."""
    places = [position for position, item in enumerate(items) if item.path.parent == _HERE]
    own = sorted((items[p] for p in places), key=lambda item: item.path.name != "test_demo.py")
    for position, item in zip(places, own, strict=True):
        items[position] = item


def _command(*argv: str) -> None:
    run([sys.executable, "-m", *argv], timeout=600, cwd=REPOSITORY)


@pytest.fixture(scope="session")
def machinery() -> Iterator[Machinery]:
    """The cluster's own controls, for power cuts; takes down what was not up before."""
    machinery = Machinery(Layout(state_dir(), instance()))
    was_up = bool(machinery.nodes_up())
    yield machinery
    if not was_up:
        _command("tools.cluster", "down")


@pytest.fixture(scope="session")
def cluster(machinery: Machinery) -> Iterator[LiveCluster]:
    """Up, with this checkout's image and chart; whoever uses it leaves no Volume, image or loop device."""
    _command("tools.cluster", "up", "--nodes", "1")
    tag = install.image_tag()
    _command("tools.cluster", "build-image", install.image_name(tag), ".")
    kube = connect()
    if not _runs(kube.get("deployment", "cinderblock-controller", namespace=install.NAMESPACE), tag):
        install.install(kube, tag)
    install.wait_ready(kube)
    node = machinery.node(1)
    live = LiveCluster(kube, node)
    before = _held(live)
    yield live
    live.rolled_out()

    def clean() -> bool:
        return _held(live) <= before

    with contextlib.suppress(AssertionError):
        live.wait("nothing to be left", clean)
    assert _held(live) - before == set()


def _runs(deployment: dict, tag: str) -> bool:
    pod = deployment.get("spec", {}).get("template", {}).get("spec", {})
    return any(c["image"] == install.image_name(tag) for c in pod.get("containers", []))


def _held(live: LiveCluster) -> set[str]:
    """All that volumes leave traces in: objects, images in the pools, loop devices on them, PVs."""
    names = {f"{v['metadata']['namespace']}/{v['metadata']['name']}" for v in live.items(VOLUMES, "-A")}
    pvs = {f"pv {pv['metadata']['name']}" for pv in live.items("pv")}
    return names | pvs | live.images() | {f"loop on {image}" for image in live.loops()}


@pytest.fixture(scope="module")
def space(request: pytest.FixtureRequest, cluster: LiveCluster) -> Iterator[str]:
    """A namespace of this module's own, gone at its end."""
    name = request.module.__name__.rpartition(".")[2].replace("_", "-")
    cluster.delete("namespace", name, wait=120)
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.delete("namespace", name, wait=180)
