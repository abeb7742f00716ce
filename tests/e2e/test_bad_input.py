"""What people get wrong, on a real cluster: each ends in words that say what to do, and nothing is made of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

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
    storage_class,
)
from tools.demo.install import NAMESPACE

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(480)]
FILE_BACKEND = {"driver": "file", "nodeSelector": {}}


def volume(name: str, space: str, size: str = "64Mi", **spec):
    return ours("Volume", name, space, size=size, **spec)


def attachment(name: str, space: str, volume_name: str, node: str):
    return ours("Attachment", name, space, volume=volume_name, node=node)


def type_for(backend: str, **spec):
    """A VolumeType that fits one Backend alone."""
    return ours("VolumeType", backend, extraSpecs={"backend": backend}, **spec)


@pytest.fixture
def made(cluster: LiveCluster) -> Iterator[list[tuple[str, str]]]:
    """(kind, name) of what is not in the namespace; removed in the reverse order."""
    kept: list[tuple[str, str]] = []
    yield kept
    for kind, name in reversed(kept):
        cluster.delete(kind, name)


# what the API server itself refuses ----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"size": "0"}, "size must be above 0"),
        ({"size": "-1Gi"}, "spec.size"),
        ({"size": "lots"}, "spec.size"),
        ({"size": "9Ei"}, "size must be above 0 and below 8Ei"),
        (
            {"size": "1Gi", "source": {"volume": "a", "snapshot": "b"}},
            "at most one of snapshot, volume and image",
        ),
        ({"size": "1Gi", "volumeType": ""}, "spec.volumeType"),
    ],
)
def test_a_volume_that_cannot_be_meant_is_refused_at_once(cluster, space, spec, words):
    said = cluster.refused_object(ours("Volume", "refused", space, **spec))
    assert words in said
    assert cluster.get(VOLUMES, "refused", space) == {}


def test_a_volume_never_shrinks(cluster, space):
    cluster.apply(volume("shrinks", space))
    cluster.condition(VOLUMES, "shrinks", "Ready", "True", namespace=space)
    grow = ("patch", VOLUMES, "shrinks", "-n", space, "--type=merge", "-p")
    cluster.kubectl(*grow, '{"spec": {"size": "128Mi"}}')
    cluster.wait(
        "128 MiB", lambda: cluster.get(VOLUMES, "shrinks", space)["status"]["capacityBytes"] == 128 << 20
    )
    said = cluster.refused(*grow, '{"spec": {"size": "64Mi"}}')
    assert "a volume never shrinks" in said
    cluster.delete(VOLUMES, "shrinks", namespace=space)


# what nothing can be made of -----------------------------------------------------------------------------
def test_volumes_that_cannot_be_placed_say_why(cluster, space):
    before = cluster.images()
    cases = {
        "unknown-type": (
            {"volumeType": "nosuch"},
            "VolumeTypeNotFound",
            "VolumeType 'nosuch' does not exist",
        ),
        "too-large": ({"size": "7Ei"}, "OutOfCapacity", "no pool can take 7Ei; Capacity refused"),
        "no-source": (
            {"source": {"volume": "nobody"}},
            "NotFound",
            f"Volume {space}/nobody named in spec.source",
        ),
        "no-zone": ({"availabilityZone": "mars"}, "NoValidBackend", "AvailabilityZone refused"),
    }
    cluster.apply(*(volume(name, space, **spec) for name, (spec, _, _) in cases.items()))
    for name, (_, reason, words) in cases.items():
        found = cluster.condition(VOLUMES, name, "Scheduled", "False", namespace=space)
        assert found["reason"] == reason
        assert words in found["message"]
        stands = cluster.get(VOLUMES, name, space)
        assert cluster.event(stands, reason)["message"] == found["message"]
        assert "allocation" not in stands["status"]
    assert cluster.images() <= before
    cluster.delete(VOLUMES, *cases, namespace=space, wait=20)


def test_an_unknown_type_that_comes_into_being_helps_at_once(cluster, space, made):
    cluster.apply(volume("early", space, volumeType="late"))
    cluster.condition(VOLUMES, "early", "Scheduled", "False", namespace=space)
    made.append(("volumetypes.cinderblock.io", "late"))
    cluster.apply(ours("VolumeType", "late"))
    cluster.condition(VOLUMES, "early", "Ready", "True", namespace=space)
    cluster.delete(VOLUMES, "early", namespace=space)


def test_claims_that_cannot_be_served_get_the_code_and_leave_nothing(cluster, space, made):
    """By CSI, as the provisioner tells it on the claim; a claim that goes meanwhile leaves nothing."""
    before = {v["metadata"]["name"] for v in cluster.items(VOLUMES, "-A")}
    made += [("storageclass", "e2e-unknown"), ("storageclass", "e2e-plain"), ("storageclass", "e2e-odd")]
    cluster.apply(
        storage_class("e2e-unknown", volumeType="nosuch"),
        storage_class("e2e-plain"),
        storage_class("e2e-odd", colour="red"),
        claim("unknown", space, "64Mi", "e2e-unknown"),
        claim("huge", space, "6Ei", "e2e-plain"),
        claim("odd", space, "64Mi", "e2e-odd"),
    )
    said = {
        "unknown": cluster.claim_event("unknown", space, ["code = Unavailable", "'nosuch' does not exist"]),
        "huge": cluster.claim_event("huge", space, ["code = ResourceExhausted", "no pool can take 6Ei"]),
        "odd": cluster.claim_event("odd", space, ["code = InvalidArgument", "colour"]),
    }
    for name in said:
        assert cluster.get("pvc", name, space)["status"]["phase"] == "Pending"
    cluster.delete("pvc", *said, namespace=space)
    cluster.wait(
        "no Volume of these claims",
        lambda: {v["metadata"]["name"] for v in cluster.items(VOLUMES, "-A")} <= before,
    )


# backends ------------------------------------------------------------------------------------------------
def test_a_wrong_backend_says_what_is_wrong_and_its_neighbour_serves_on(cluster, space, made):
    cases = {
        "e2e-key": (
            {**FILE_BACKEND, "config": {"directory": "e2e-key", "colour": "red"}},
            "InvalidConfig",
            "spec.config.colour is not a setting; known settings: directory, poolImage",
        ),
        "e2e-dots": (
            {**FILE_BACKEND, "config": {"directory": "../elsewhere"}},
            "InvalidConfig",
            "spec.config.directory: write a folder relative to the pools' root",
        ),
        "e2e-network": (
            {"driver": "file", "config": {"directory": "e2e-network"}},
            "InvalidConfig",
            "set spec.nodeSelector",
        ),
        "e2e-driver": (
            {"driver": "nosuch"},
            "UnknownDriver",
            "driver 'nosuch' is not installed; installed drivers: fake, file",
        ),
    }
    made += [(BACKENDS, name) for name in cases]
    cluster.apply(*(ours("Backend", name, **spec) for name, (spec, _, _) in cases.items()))
    for name, (_, reason, words) in cases.items():
        found = cluster.condition(BACKENDS, name, "Accepted", "False")
        assert found["reason"] == reason
        assert words in found["message"]
        assert words in cluster.event(cluster.get(BACKENDS, name), reason)["message"]
    cluster.apply(volume("neighbour", space))
    cluster.condition(VOLUMES, "neighbour", "Ready", "True", namespace=space)
    cluster.delete(VOLUMES, "neighbour", namespace=space)
    assert "e2e-key" not in cluster.on_node(f"ls -A {POOLS_ROOT}")
    fix = '{"spec": {"config": {"directory": "e2e-key", "colour": null}}}'
    cluster.kubectl("patch", BACKENDS, "e2e-key", "--type=merge", "-p", fix)
    cluster.condition(POOLS, f"e2e-key-{cluster.node}", "Ready", "True")
    cluster.delete(BACKENDS, *cases)
    cluster.on_node(f"rm -r {POOLS_ROOT}/e2e-key")


@pytest.fixture
def bad_folders(cluster: LiveCluster) -> Iterator[None]:
    """A disk that is mounted read-only, and a file where a folder should be."""
    mount, unmount = disk_scripts("e2e-readonly")
    cluster.on_node(
        f"{mount} && mount -o remount,ro {POOLS_ROOT}/e2e-readonly && touch {POOLS_ROOT}/e2e-blocked"
    )
    yield
    cluster.on_node(f"{unmount}; rm -rf {POOLS_ROOT}/e2e-blocked")


def test_a_pool_folder_that_cannot_be_written_takes_nothing(cluster, space, bad_folders, made):
    cases = {
        "e2e-readonly": ("PoolNotWritable", "make the folder writable for the volume host"),
        "e2e-blocked": ("InvalidRequest", "something that is no folder"),
    }
    for name in cases:
        made += [(BACKENDS, name), ("volumetypes.cinderblock.io", name)]
        cluster.apply(ours("Backend", name, **FILE_BACKEND, config={"directory": name}), type_for(name))
    cluster.apply(*(volume(name, space, volumeType=name) for name in cases))
    for name, (reason, words) in cases.items():
        found = cluster.condition(POOLS, f"{name}-{cluster.node}", "Ready", "False")
        assert found["reason"] == reason
        assert words in found["message"]
        assert words in cluster.event(cluster.get(BACKENDS, name), reason)["message"]

        def told(name: str = name, words: str = words) -> bool:
            scheduling = cluster.get(VOLUMES, name, space).get("status", {}).get("scheduling", {})
            refused = {r["filter"]: r["examples"] for r in scheduling.get("rejections", [])}
            return any(name in example and words[:20] in example for example in refused.get("Readiness", []))

        cluster.wait(f"Volume {name} to say so as well", told)
    cluster.on_node(f"mount -o remount,rw {POOLS_ROOT}/e2e-readonly")
    cluster.condition(VOLUMES, "e2e-readonly", "Ready", "True", namespace=space, seconds=90)
    cluster.delete(VOLUMES, *cases, namespace=space)
    cluster.delete(BACKENDS, *cases)


@pytest.fixture
def small_disk(cluster: LiveCluster) -> Iterator[str]:
    mount, unmount = disk_scripts("e2e-full")
    cluster.on_node(mount)
    yield f"{POOLS_ROOT}/e2e-full"
    cluster.on_node(unmount)


def test_a_full_pool_takes_nothing_until_there_is_room(cluster, space, small_disk, made):
    name = "e2e-full"
    fill = f"dd if=/dev/zero of={small_disk}/filler bs=4k 2>/dev/null; sync; df {small_disk} | tail -1"
    assert "100%" in cluster.on_node(fill)
    made += [(BACKENDS, name), ("volumetypes.cinderblock.io", name)]
    config = {"directory": name}
    cluster.apply(
        ours("Backend", name, **FILE_BACKEND, config=config, physicalFloorPercent=0),
        type_for(name, provisioning="Thick"),
        volume("full", space, "48Mi", volumeType=name),
    )
    found = cluster.condition(POOLS, f"{name}-{cluster.node}", "Ready", "False")
    assert "No space left" in found["message"]
    cluster.event(cluster.get(BACKENDS, name), found["reason"])
    # with some room, the pool opens; too little for the volume, it is refused by the figures
    cluster.on_node(f"truncate -s 60M {small_disk}/filler; sync")
    cluster.condition(POOLS, f"{name}-{cluster.node}", "Ready", "True", seconds=90)

    def told(volume_name: str) -> str | None:
        said = condition(cluster.get(VOLUMES, volume_name, space), "Scheduled")
        full = said.get("status") == "False" and said.get("reason") == "OutOfCapacity"
        return said["message"] if full else None

    assert f"{name}-{cluster.node}" in cluster.wait("the full pool to be told", lambda: told("full"))
    full = cluster.get(VOLUMES, "full", space)
    cluster.event(full, "OutOfCapacity")
    # room that the figures do not know to be gone: the driver refuses, and leaves nothing
    cluster.on_node(f"truncate -s 0 {small_disk}/filler; sync")
    cluster.condition(VOLUMES, "full", "Ready", "True", namespace=space, seconds=90)
    cluster.delete(VOLUMES, "full", namespace=space)
    cluster.wait(
        "the room to be reported",
        lambda: cluster.get(POOLS, f"{name}-{cluster.node}")["status"]["freeBytes"] > 60 << 20,
    )
    cluster.on_node(fill)
    cluster.apply(volume("again", space, "48Mi", volumeType=name))
    assert cluster.wait("the driver's refusal, or the new figures", lambda: told("again"))
    assert cluster.on_node(f"ls -A {small_disk}/volumes") == ""
    cluster.delete(VOLUMES, "again", namespace=space, wait=20)
    cluster.delete(BACKENDS, name)


def test_a_backend_in_use_stays_until_its_last_volume_went(cluster, space, made):
    name = "e2e-used"
    made += [(BACKENDS, name), ("volumetypes.cinderblock.io", name)]
    cluster.apply(
        ours("Backend", name, **FILE_BACKEND, config={"directory": name}),
        type_for(name),
        volume("holds", space, volumeType=name),
    )
    cluster.condition(VOLUMES, "holds", "Ready", "True", namespace=space)
    cluster.delete(BACKENDS, name, wait=0)
    found = cluster.condition(BACKENDS, name, "InUse", "True")
    assert found["reason"] == "VolumesExist"
    assert f"{space}/holds" in found["message"]
    assert "delete them, and the Backend goes" in found["message"]
    cluster.event(cluster.get(BACKENDS, name), "VolumesExist")
    cluster.apply(volume("late", space, volumeType=name))
    late = cluster.condition(VOLUMES, "late", "Scheduled", "False", namespace=space)
    assert "being deleted" in late["message"]
    # what is in it stays usable
    cluster.apply(attachment("use", space, "holds", cluster.node))
    cluster.condition(ATTACHMENTS, "use", "Connected", "True", namespace=space)
    cluster.delete(ATTACHMENTS, "use", namespace=space)
    assert cluster.get(BACKENDS, name)
    cluster.delete(VOLUMES, "holds", "late", namespace=space)
    gone = lambda: not cluster.get(BACKENDS, name) and not cluster.get(POOLS, f"{name}-{cluster.node}")  # noqa: E731
    cluster.wait("Backend and Pool to go", gone, 90)
    cluster.on_node(f"rm -r {POOLS_ROOT}/{name}")


# attachments ---------------------------------------------------------------------------------------------
def test_an_attachment_that_cannot_be_says_why(cluster, space):
    cluster.apply(
        volume("wanted", space),
        attachment("no-node", space, "wanted", "nosuch"),
        attachment("no-volume", space, "nobody", cluster.node),
    )
    for name, words in (
        ("no-node", "node nosuch does not exist"),
        ("no-volume", f"Volume {space}/nobody does not exist"),
    ):

        def why(name: str = name, words: str = words) -> str | None:
            found = condition(cluster.get(ATTACHMENTS, name, space), "Admitted")
            return found["reason"] if words in found.get("message", "") else None

        reason = cluster.wait(f"{name} to say {words}", why)
        assert reason == "NotFound"
        assert words in cluster.event(cluster.get(ATTACHMENTS, name, space), reason)["message"]
    wanted = cluster.get(VOLUMES, "wanted", space)
    assert wanted["status"].get("attachments", []) == []
    cluster.delete(ATTACHMENTS, "no-node", "no-volume", namespace=space, wait=20)
    cluster.delete(VOLUMES, "wanted", namespace=space)


@pytest.fixture
def ghosts(cluster: LiveCluster) -> Iterator[tuple[str, str]]:
    """Two nodes that Kubernetes knows, with their facts as initiators, and nobody behind them."""
    names = ("e2e-ghost-a", "e2e-ghost-b")
    cluster.delete("node", *names)
    for name in names:
        cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        uid = cluster.get("node", name)["metadata"]["uid"]
        owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}
        facts = ours("StorageNode", name)
        facts["metadata"]["ownerReferences"] = [owner]
        cluster.apply(facts)
        status = f'{{"status": {{"nodeUID": "{uid}", "bootID": "ghost", "protocols": ["Fake"]}}}}'
        where = ("storagenodes.cinderblock.io", name, "--subresource=status", "--type=merge")
        cluster.kubectl("patch", *where, "-p", status)
    yield names
    cluster.delete("node", *names)

    def waiting() -> list[str]:
        pods = cluster.items("pods", "-n", NAMESPACE)
        return [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Pending"]

    # The DaemonSets' pods for nodes that are gone: Kubernetes' own collector takes minutes over them.
    if names_of_pods := waiting():
        force = ("--force", "--grace-period=0", "--ignore-not-found")
        cluster.kubectl("delete", "pod", "-n", NAMESPACE, *names_of_pods, *force)
    cluster.wait("no pods that wait for the nodes that are gone", lambda: not waiting(), 90)


@pytest.fixture
def shared_state(cluster: LiveCluster) -> Iterator[str]:
    """The fake backend outlives the process that serves it: its records are in a folder of the node."""
    folder = f"{POOLS_ROOT}/e2e-fake"
    cluster.on_node(f"mkdir -p {folder} && chmod 777 {folder}")
    where = ("-n", NAMESPACE, "deployment/cinderblock-controller")
    patch = (
        '{"spec": {"template": {"spec": {'
        f'"volumes": [{{"name": "fake", "hostPath": {{"path": "{folder}"}}}}],'
        f'"containers": [{{"name": "operator", "volumeMounts": [{{"name": "fake", "mountPath": "{folder}"}}]}}]'
        "}}}}"
    )
    cluster.kubectl("patch", *where, "-p", patch)
    cluster.kubectl("rollout", "status", *where, "--timeout=170s", timeout=180)
    yield "e2e-fake/state.json"
    cluster.kubectl("rollout", "undo", *where)
    cluster.kubectl("rollout", "status", *where, "--timeout=170s", timeout=180)
    cluster.on_node(f"rm -r {folder}")


@pytest.mark.timeout(500)
def test_one_node_alone_gets_a_read_write_once_volume(cluster, space, ghosts, shared_state, made):
    """Both Attachments at once, and the leader (which is the host of network backends) killed in between."""
    name = "e2e-shared"
    made += [(BACKENDS, name), ("volumetypes.cinderblock.io", name)]
    cluster.apply(ours("Backend", name, driver="fake", config={"stateFile": shared_state}), type_for(name))
    cluster.apply(volume("shared", space, volumeType=name))
    cluster.condition(VOLUMES, "shared", "Ready", "True", namespace=space, seconds=90)
    for strike in ("before", "after"):
        leads = cluster.wait("a leader", cluster.leader)
        victim = next(p for p in cluster.processes("operator") if p.pod == leads)
        if strike == "before":
            victim.signal(signal.SIGKILL)
        cluster.apply(*(attachment(node, space, "shared", node) for node in ghosts))
        if strike == "after":
            victim.signal(signal.SIGKILL)

        def verdicts() -> dict[str, str]:
            found = {n: condition(cluster.get(ATTACHMENTS, n, space), "Admitted") for n in ghosts}
            return {n: c["status"] for n, c in found.items() if c}

        cluster.wait("a verdict on both", lambda: len(verdicts()) == 2, 90)
        assert sorted(verdicts().values()) == ["False", "True"]
        entries = cluster.get(VOLUMES, "shared", space)["status"]["attachments"]
        winner = next(n for n, verdict in verdicts().items() if verdict == "True")
        loser = next(n for n in ghosts if n != winner)
        assert [entry["node"] for entry in entries] == [winner]
        lost = cluster.get(ATTACHMENTS, loser, space)
        assert condition(lost, "Admitted")["reason"] == "AttachedElsewhere"
        assert f"node {winner} holds the volume" in condition(lost, "Admitted")["message"]
        cluster.event(lost, "AttachedElsewhere")
        assert "connection" not in lost["status"]
        # who never got the device lets go at once; who has it must say so, and the other one waits for that
        cluster.delete(ATTACHMENTS, loser, namespace=space, wait=30)
        cluster.delete(ATTACHMENTS, winner, namespace=space, wait=0)
        generation = entries[0]["generation"]
        released = f'{{"status": {{"released": {generation}}}}}'
        how = ("--subresource=status", "--type=merge", "-p", released)
        cluster.kubectl("patch", ATTACHMENTS, winner, "-n", space, *how)
        cluster.kubectl(
            "wait", "--for=delete", f"{ATTACHMENTS}/{winner}", "-n", space, "--timeout=60s", timeout=70
        )
    cluster.delete(VOLUMES, "shared", namespace=space)
    cluster.delete(BACKENDS, name)
