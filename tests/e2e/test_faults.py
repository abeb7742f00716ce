"""Violence on a real cluster: processes killed and stopped, power cut, namespaces deleted over everything."""

from __future__ import annotations

import hashlib
import itertools
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from live_cluster import (
    ATTACHMENTS,
    BACKENDS,
    POOLS,
    POOLS_ROOT,
    VOLUMES,
    LiveCluster,
    claim,
    condition,
    disk_scripts,
    ours,
    pod,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
BURST = 4
MAX_PAUSE_SECONDS = 20
WRITER = """
n=0
while :; do
  n=$((n+1)); f=/data/f$((n%8))
  dd if=/dev/urandom of=/tmp/new bs=32k count=1 2>/dev/null
  dd if=/tmp/new of=$f bs=32k conv=fsync 2>/dev/null || echo "FAIL write $n"
  cmp -s /tmp/new $f || echo "FAIL compare $n"
  echo "$n $(date +%s) $(sha256sum < $f)" >> /data/journal || echo "FAIL append $n"
  echo "$n $(date +%s)"
  sleep 0.1
done
"""


# helpers -------------------------------------------------------------------------------------------------
def running(cluster: LiveCluster, name: str, space: str) -> bool:
    return condition(cluster.get("pod", name, space), "Ready").get("status") == "True"


def handles(cluster: LiveCluster) -> dict[str, str]:
    """handle -> name of every Volume that has one."""
    found = cluster.items(VOLUMES, "-A")
    return {v["status"]["handle"]: v["metadata"]["name"] for v in found if "handle" in v.get("status", {})}


def once_each(images: set[str]) -> None:
    """No Volume has two objects in the pool."""
    owners = [image[:36] for image in images]
    assert sorted(owners) == sorted(set(owners)), images


def progress(cluster: LiveCluster, space: str) -> int:
    lines = cluster.kubectl("logs", "writer", "-n", space, "--tail=1").split()
    return int(lines[0]) if lines and lines[0].isdigit() else 0


@pytest.fixture(scope="module")
def writer(cluster: LiveCluster, space: str) -> Iterator[str]:
    """A pod that writes, flushes and compares all the time, from before the first blow to after the last."""
    cluster.apply(claim("writer", space), pod("writer", space, "writer", WRITER))
    cluster.wait("the writer to run", lambda: running(cluster, "writer", space), 120)
    cluster.wait("its first writes", lambda: progress(cluster, space) > 2)
    yield "writer"
    cluster.delete("pod", "writer", namespace=space)
    cluster.delete("pvc", "writer", namespace=space)


def noticed_nothing(cluster: LiveCluster, space: str) -> None:
    """The writer went on all the time: no fault, no restart, no step left out, no long pause."""
    reached = progress(cluster, space)
    cluster.wait("the writer to go on", lambda: progress(cluster, space) > reached)
    status = cluster.get("pod", "writer", space)["status"]["containerStatuses"][0]
    assert status["restartCount"] == 0
    log = cluster.kubectl("logs", "writer", "-n", space)
    assert "FAIL" not in log
    steps = [(int(n), int(at)) for n, at in re.findall(r"^(\d+) (\d+)$", log, re.MULTILINE)]
    assert [n for n, _ in steps] == list(range(steps[0][0], steps[0][0] + len(steps)))
    assert max(b - a for (_, a), (_, b) in itertools.pairwise(steps)) < MAX_PAUSE_SECONDS
    journal = cluster.kubectl("exec", "writer", "-n", space, "--", "cat", "/data/journal").splitlines()
    assert [int(line.split()[0]) for line in journal] == list(range(1, len(journal) + 1))


# kill -9 -------------------------------------------------------------------------------------------------
def count(cluster: LiveCluster, kind: str) -> int:
    return len(cluster.items(kind, "-A"))


def going(cluster: LiveCluster, attachments: int) -> bool:
    """One Attachment is being taken away, or was."""
    found = cluster.items(ATTACHMENTS, "-A")
    return len(found) < attachments or any("deletionTimestamp" in item["metadata"] for item in found)


def strikes(cluster: LiveCluster, name: str, moments: dict[str, Callable[[], bool]]) -> None:
    """kill -9 at each of these moments, one after the other."""
    for what, moment in moments.items():
        cluster.wait(what, moment)
        cluster.kill(name)


@pytest.mark.parametrize("name", ["operator", "host", "csi-controller", "csi-node"])
def test_a_burst_survives_the_kill_of(cluster, space, writer, name):
    """Killed while Volumes are made, again while they are attached and formatted, and again while all of it goes."""
    before = cluster.images()
    names = [f"{name}-{number}" for number in range(BURST)]
    with ThreadPoolExecutor(1) as beside:
        volumes, attachments = count(cluster, VOLUMES), count(cluster, ATTACHMENTS)
        moments = {
            "the first Volume of the burst": lambda: count(cluster, VOLUMES) > volumes,
            "its first Attachment": lambda: count(cluster, ATTACHMENTS) > attachments,
        }
        blows = beside.submit(strikes, cluster, name, moments)
        cluster.apply(*(claim(n, space) for n in names), *(pod(n, space, n) for n in names))
        blows.result()
    cluster.wait("all pods to run", lambda: all(running(cluster, n, space) for n in names), 150)
    during = cluster.images()
    assert len(during) == len(before) + BURST
    once_each(during)
    for n in names:
        cluster.kubectl("exec", n, "-n", space, "--", "sh", "-c", "echo kept > /data/file && sync")
    noticed_nothing(cluster, space)
    with ThreadPoolExecutor(1) as beside:
        attached = count(cluster, ATTACHMENTS)
        blows = beside.submit(strikes, cluster, name, {"a detach": lambda: going(cluster, attached)})
        cluster.delete("pod", *names, namespace=space, wait=0)
        cluster.delete("pvc", *names, namespace=space, wait=0)
        blows.result()
    cluster.wait("all claims to go", lambda: not set(names) & claims(cluster, space), 120)
    cluster.wait("their images to go", lambda: cluster.images() == before, 120)
    cluster.wait("their Volumes to go", lambda: len(handles(cluster)) == len(before))
    noticed_nothing(cluster, space)
    cluster.rolled_out()


def claims(cluster: LiveCluster, space: str) -> set[str]:
    return {c["metadata"]["name"] for c in cluster.items("pvc", "-n", space)}


# a leader that sleeps ------------------------------------------------------------------------------------
@pytest.fixture
def last_room(cluster: LiveCluster) -> Iterator[str]:
    """A pool that takes one volume of 60 MiB, not two."""
    name = "e2e-last"
    mount, unmount = disk_scripts(name)
    cluster.on_node(mount)
    room = {"overSubscriptionRatio": "1", "physicalFloorPercent": 0}
    cluster.apply(
        ours("Backend", name, driver="file", nodeSelector={}, config={"directory": name}, **room),
        ours("VolumeType", name, extraSpecs={"backend": name}),
    )
    cluster.condition(POOLS, f"{name}-{cluster.node}", "Ready", "True")
    yield name
    cluster.delete(BACKENDS, name)
    cluster.delete("volumetypes.cinderblock.io", name)
    cluster.on_node(unmount)


@pytest.mark.parametrize("lead_seconds", [0.0, 0.25])
def test_a_leader_that_slept_past_its_lease_gives_nothing_twice(cluster, space, last_room, lead_seconds):
    old = cluster.wait("a leader", cluster.leader)
    asleep = next(p for p in cluster.processes("operator") if p.pod == old)
    pair = ("before", "after")
    objects = {n: ours("Volume", n, space, size="60Mi", volumeType=last_room) for n in pair}
    try:
        stop = threading.Timer(0.15 + lead_seconds, asleep.signal, [signal.SIGSTOP])
        stop.start()
        cluster.apply(objects["before"])
        stop.join()
        cluster.wait("another leader", lambda: cluster.leader() not in ("", old), 60)
        cluster.apply(objects["after"])
    finally:
        asleep.signal(signal.SIGCONT)

    def verdicts() -> list[str]:
        found = [condition(cluster.get(VOLUMES, n, space), "Scheduled") for n in pair]
        return sorted(f"{c['status']} {c['reason']}" for c in found if c)

    cluster.wait("a verdict on both", lambda: len(verdicts()) == 2, 60)
    cluster.wait("the sleeper to end", lambda: asleep not in cluster.processes("operator"), 60)
    cluster.rolled_out()
    assert verdicts() == ["False OutOfCapacity", "True Granted"]
    winner = next(
        n for n in pair if condition(cluster.get(VOLUMES, n, space), "Scheduled")["status"] == "True"
    )
    cluster.condition(VOLUMES, winner, "Ready", "True", namespace=space)
    assert len(cluster.on_node(f"ls {POOLS_ROOT}/{last_room}/volumes").split()) == 1
    # the loser gets the room as soon as it is there
    loser = next(n for n in pair if n != winner)
    cluster.delete(VOLUMES, winner, namespace=space)
    cluster.condition(VOLUMES, loser, "Ready", "True", namespace=space, seconds=90)
    cluster.delete(VOLUMES, loser, namespace=space)


# deletions -----------------------------------------------------------------------------------------------
def test_a_namespace_with_everything_inside_ends(cluster, space):
    doomed = f"{space}-doomed"
    before, volumes = cluster.images(), set(handles(cluster))
    cluster.kubectl("create", "namespace", doomed)
    cluster.apply(
        claim("bound", doomed),
        pod("user", doomed, "bound"),
        claim("waits", doomed, "6Ei"),
        pod("hopes", doomed, "waits"),
        ours("Volume", "bare", doomed, size="64Mi"),
        ours("Volume", "nowhere", doomed, size="64Mi", volumeType="nosuch"),
        ours("Attachment", "held", doomed, volume="bare", node=cluster.node),
        ours("Attachment", "never", doomed, volume="nowhere", node=cluster.node),
    )
    cluster.wait("the pod to run", lambda: running(cluster, "user", doomed), 120)
    cluster.condition(ATTACHMENTS, "held", "Connected", "True", namespace=doomed)
    cluster.delete("namespace", doomed, wait=120)
    cluster.wait("its images to go", lambda: cluster.images() == before, 60)
    cluster.wait("its Volumes to go", lambda: set(handles(cluster)) == volumes)
    assert not cluster.items("pv") or all(
        pv["spec"]["claimRef"]["namespace"] != doomed for pv in cluster.items("pv")
    )


# power ---------------------------------------------------------------------------------------------------
def test_data_is_there_after_a_power_cut(cluster, space, machinery):
    """The node dies with everything on it and starts again: the same pod finds what it had flushed."""
    cluster.apply(claim("kept", space), pod("kept", space, "kept"))
    cluster.wait("the pod to run", lambda: running(cluster, "kept", space), 120)
    script = "dd if=/dev/urandom of=/data/file bs=1M count=4 conv=fsync 2>/dev/null; sha256sum < /data/file"
    wrote = cluster.kubectl("exec", "kept", "-n", space, "--", "sh", "-c", script).split()[0]
    assert wrote != hashlib.sha256(b"").hexdigest()
    node = machinery.node(1)
    since = cluster.get("pod", "kept", space)["status"]["containerStatuses"][0]["containerID"]
    node.kill()
    node.up()

    def back() -> bool:
        statuses = cluster.get("pod", "kept", space)["status"]["containerStatuses"]
        return running(cluster, "kept", space) and statuses[0]["containerID"] != since

    cluster.wait("the pod to run again", back, 200)
    read = cluster.kubectl("exec", "kept", "-n", space, "--", "sh", "-c", "sha256sum < /data/file").split()[0]
    assert read == wrote
    cluster.rolled_out()
    cluster.delete("pod", "kept", namespace=space)
    cluster.delete("pvc", "kept", namespace=space)
