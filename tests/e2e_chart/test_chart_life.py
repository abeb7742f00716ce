"""The chart's life on a real cluster: installed, upgraded under load, refused to go, removed, installed again.

The tests follow each other as an administrator's days do; each makes what it needs where an earlier one did not run.
"""

from __future__ import annotations

import itertools
import json

import pytest
from chart_world import BACKENDS, CHART, CUSTOM, NAMESPACE, POOLS, RELEASE, VOLUMES, ChartWorld, claim, pod
from tools.demo import tour
from tools.demo.kubectl import Cluster
from tools.shell import ToolError

pytestmark = [pytest.mark.cluster, pytest.mark.root, pytest.mark.timeout(900)]

_CRD = "volumes.cinderblock.io"
_BEATS = "while :; do cut -d' ' -f1 /proc/uptime >> /data/beats; sync -d /data/beats; sleep 0.1; done"
_LONGEST_PAUSE_SECONDS = 5.0  # of a writer on a machine that starts five processes meanwhile


def columns(kube: Cluster) -> list[str]:
    version = kube.get("crd", _CRD)["spec"]["versions"][0]
    return [column["name"] for column in version.get("additionalPrinterColumns", [])]


def writer(world: ChartWorld) -> str:
    """UID of a pod that writes to its volume all the time."""
    world.apply(claim("beats"), pod("beats", "beats", _BEATS))
    world.kube.kubectl("wait", "--for=condition=Ready", "pod/beats", "--timeout=120s", timeout=130)
    return str(world.kube.get("pod", "beats")["metadata"]["uid"])


def beats(world: ChartWorld) -> list[float]:
    return [float(line) for line in world.kube.exec_shell("beats", "cat /data/beats").split()]


def noticed_nothing(world: ChartWorld, uid: str) -> None:
    now = world.kube.get("pod", "beats")
    assert now["metadata"]["uid"] == uid
    assert now["status"]["containerStatuses"][0]["restartCount"] == 0
    written = beats(world)
    world.wait("the writer to go on", lambda: len(beats(world)) > len(written), 15)
    pauses = [after - before for before, after in itertools.pairwise(written)]
    assert max(pauses) < _LONGEST_PAUSE_SECONDS, f"the writer stood still for {max(pauses):.1f} s"


def test_installs_into_an_empty_cluster_without_any_values(world: ChartWorld) -> None:
    assert not world.installed()
    assert not [name for name in world.names("crd") if name.endswith(CUSTOM)]
    world.install()
    assert world.release()["status"] == "deployed"
    restarts = {
        (p["metadata"]["name"], c["name"]): c["restartCount"]
        for p in world.all_items("pods")
        if p["metadata"]["namespace"] == NAMESPACE
        for c in p["status"]["containerStatuses"]
    }
    assert restarts
    assert not any(restarts.values()), restarts


def test_the_quickstart_works_on_it(world: ChartWorld) -> None:
    world.ensure_installed()
    tour.bare_volume(world.kube)
    tour.filesystem_claim(world.kube)
    tour.block_claim(world.kube)
    tour.standalone_attachment(world.kube, lambda node, script: world.on_node(script))
    world.kube.kubectl("delete", "pod", "blocks", "files", "--timeout=60s", timeout=70)


def test_an_upgrade_brings_its_crds_and_no_pod_notices(world: ChartWorld) -> None:
    world.ensure_installed()
    uid = writer(world)
    whole = columns(world.kube)
    world.kube.kubectl(
        "patch", "crd", _CRD, "--type=json", "-p",
        json.dumps([{"op": "remove", "path": "/spec/versions/0/additionalPrinterColumns/0"}]),
    )  # fmt: skip
    world.kube.kubectl("label", "crd", _CRD, "example.com/team=storage", "--overwrite")
    assert columns(world.kube) == whole[1:], "the older CRD stands"
    before = {c: set(world.pod_names(c)) for c in ("controller", "host", "node")}
    world.install("logLevel=debug")
    assert columns(world.kube) == whole, "the hook applied the image's CRDs"
    assert world.kube.get("crd", _CRD)["metadata"]["labels"]["example.com/team"] == "storage"
    for component, names in before.items():
        # helm waits for the new pods, not for the end of the old ones.
        world.wait(
            f"{component} to be rolled", lambda c=component, n=names: not n & set(world.pod_names(c)), 60
        )
    noticed_nothing(world, uid)


def test_uninstall_is_refused_while_volumes_exist_and_harms_nothing(world: ChartWorld) -> None:
    world.ensure_installed()
    uid = writer(world)
    world.ready_volume("kept")
    with pytest.raises(ToolError) as refused:
        world.uninstall()
    assert "refusing to uninstall while data exists" in str(refused.value), "the user is told by helm itself"
    assert "Volume default/kept" in str(refused.value)
    assert world.release()["status"] == "deployed"
    assert not any("deletionTimestamp" in b["metadata"] for b in world.items(BACKENDS))
    world.ready_volume("made-after-the-refusal")
    world.install("logLevel=info")
    assert world.release()["status"] == "deployed"
    world.ready_volume("made-after-the-upgrade")
    noticed_nothing(world, uid)
    with pytest.raises(ToolError, match="refusing to uninstall"):
        world.uninstall()


def test_uninstall_leaves_the_machine_as_it_was_and_a_new_one_adopts_the_pool(world: ChartWorld) -> None:
    world.ensure_installed()
    pool_id = world.items(POOLS)[0]["status"]["poolID"]
    assert pool_id
    world.clear()
    world.wait("the pool to be empty", lambda: not world.images())
    world.uninstall()
    assert not world.installed()
    for kind in (BACKENDS, POOLS, "volumetypes.cinderblock.io"):
        assert not world.items(kind), kind
    assert _CRD in world.names("crd"), "CRDs hold users' objects: they stay"
    assert "csi.cinderblock.io" not in world.names("csidriver")
    world.wait("the pods to end", lambda: not world.pod_names("node") and not world.pod_names("host"))
    ours = [
        name
        for kind in ("clusterrole", "clusterrolebinding", "validatingadmissionpolicy", "storageclass")
        for name in world.names(kind)
        if name.startswith("cinderblock")
    ]
    assert not ours
    assert world.mounts() == []
    assert world.loops() == 0

    world.install()
    assert world.items(POOLS)[0]["status"]["poolID"] == pool_id, "the folder's marker was adopted"
    world.ready_volume("after-the-return")
    uid = writer(world)
    noticed_nothing(world, uid)


def test_a_forced_uninstall_leaves_the_data_and_a_new_one_reports_it(world: ChartWorld) -> None:
    world.ensure_installed()
    kept = world.ready_volume("kept")
    uid = writer(world)
    named = {
        f"{v['status']['handle']}-{v['status']['allocation']['grant']}" for v in world.all_items(VOLUMES)
    }
    world.kube.helm(
        "upgrade",
        RELEASE,
        CHART,
        "-n",
        NAMESPACE,
        "--reuse-values",
        "--set",
        "uninstall.force=true",
        "--wait",
    )
    said = world.uninstall()
    assert f"left on disk: {kept['status']['handle']}-" in said, "the user is told by helm itself"
    assert all(name in said for name in named)
    assert not world.installed()
    for kind in (VOLUMES, BACKENDS, POOLS):
        assert not world.all_items(kind), kind
    images = {f"{name}.img" for name in named}
    assert images <= world.images()
    noticed_nothing(world, uid)

    world.install()
    world.wait("the report of what nobody knows", lambda: _reported_unknown(world, len(named)), 90)
    fresh = world.ready_volume("beside-the-unknown")
    assert images <= world.images(), "the inventory that reported them deletes before it reports"
    assert f"{fresh['status']['handle']}-{fresh['status']['allocation']['grant']}.img" in world.images()


def _reported_unknown(world: ChartWorld, count: int) -> bool:
    return any(
        event["reason"] == "UnknownObjects"
        and f"holds {count} volumes that no Volume names" in event["message"]
        for event in world.all_items("events")
    )


def test_the_release_can_go_after_all_that(world: ChartWorld) -> None:
    world.ensure_installed()
    world.clear()  # a pod and a claim whose Volume a forced uninstall took away among them
    world.uninstall()
    assert not world.items(POOLS)
    assert not world.installed()
