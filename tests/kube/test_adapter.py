"""The port on a real API server: every answer of the port, and what the models look like after the round trip."""

import asyncio
import contextlib
import uuid

import pytest

from cinderblock.core.api import Backend, Volume
from cinderblock.core.api.backend import BackendSpec
from cinderblock.core.api.builtin import Lease, Node, PersistentVolume
from cinderblock.core.api.meta import ObjectMeta, set_condition
from cinderblock.core.api.volume import Allocation, VolumeSpec
from cinderblock.core.clock import SystemClock
from cinderblock.core.kube.adapter import connect
from cinderblock.core.kube.fence import checked
from cinderblock.core.kube.informer import Informer
from cinderblock.core.kube.port import (
    Conflict,
    Forbidden,
    HistoryGone,
    KubeUnavailable,
    ObjectExists,
    ObjectNotFound,
    Rejected,
    WatchType,
)
from cinderblock.core.kube.store import Store
from cinderblock.core.kube.wire import Codec

pytestmark = pytest.mark.apiserver


@pytest.fixture
def namespace(apiserver):
    apiserver.apply_crds()
    name = f"adapter-{uuid.uuid4().hex[:8]}"
    apiserver.kubectl("create", "namespace", name)
    yield name
    apiserver.kubectl("delete", "volumes.cinderblock.io", "--all", "-n", name)
    apiserver.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
async def kube(apiserver):
    async with connect(apiserver.kubeconfig) as kube:
        yield kube


def volume(namespace, name="a", size="1Gi", **meta):
    return Volume(
        metadata=ObjectMeta(name=name, namespace=namespace, **meta),
        spec=VolumeSpec(size=size),
    )


def allocation(host, grant=1):
    return Allocation(backend="b", pool="p", host=host, size_bytes=1 << 30, grant=grant)


async def test_round_trip(kube, namespace):
    made = await kube.create(volume(namespace, labels={"x": "1"}, finalizers=("cinderblock.io/protect",)))
    assert made.uid
    assert made.metadata.generation == 1
    assert made == await kube.get(Volume, "a", namespace)

    now = SystemClock().now()
    ready = set_condition((), "Ready", True, reason="Available", generation=1, now=now)
    status = made.status.with_(allocation=allocation("h"), capacity_bytes=1 << 30, conditions=ready)
    written = await kube.update_status(made, made.with_(status=status))
    assert written.status == status
    assert written.metadata.generation == 1, "a status write is no new generation"
    assert await kube.update_status(written, written) is written
    emptied = await kube.update_status(written, written.with_(status=status.with_(allocation=None)))
    assert emptied.status.allocation is None
    assert emptied.status.capacity_bytes == 1 << 30

    free = await kube.update(emptied, emptied.without_finalizer("cinderblock.io/protect"))
    assert free.metadata.finalizers == ()
    relabelled = free.metadata.with_(labels={"y": "2"})
    changed = await kube.update(free, free.with_(metadata=relabelled, spec=free.spec.with_(size="2Gi")))
    assert (changed.metadata.labels, changed.spec.size_bytes) == ({"y": "2"}, 2 << 30)
    assert changed.metadata.generation == 2
    await kube.delete(changed)
    await kube.delete(changed)
    with pytest.raises(ObjectNotFound):
        await kube.get(Volume, "a", namespace)


async def test_stale_writes_conflict_and_leave_nothing(kube, namespace):
    first = await kube.create(volume(namespace))
    second = await kube.update_status(first, first.with_(status=first.status.with_(last_grant=1)))
    for write in (
        kube.update_status(first, first.with_(status=first.status.with_(last_grant=2))),
        kube.update(first, first.with_finalizer("cinderblock.io/protect")),
    ):
        with pytest.raises(Conflict):
            await write
    assert await kube.get(Volume, "a", namespace) == second


async def test_an_object_made_anew_under_the_name_is_another_one(kube, namespace):
    old = await kube.create(volume(namespace))
    await kube.delete(old)
    new = await kube.create(volume(namespace))
    with pytest.raises(Conflict):
        await kube.delete(old)
    with pytest.raises(Conflict):
        await kube.update_status(old, old.with_(status=old.status.with_(last_grant=7)))
    with pytest.raises(Conflict):
        await kube.delete(old.with_(metadata=old.metadata.with_(uid="")))
    assert await kube.get(Volume, "a", namespace) == new


async def test_refusals_carry_the_servers_own_words(kube, namespace):
    made = await kube.create(volume(namespace))
    with pytest.raises(ObjectExists):
        await kube.create(volume(namespace))
    with pytest.raises(Rejected, match="size must be above 0"):
        await kube.create(volume(namespace, "zero", size="0"))
    with pytest.raises(Rejected, match="volumeType cannot be changed"):
        await kube.update(made, made.with_(spec=made.spec.with_(volume_type="gold")))
    with pytest.raises(ObjectNotFound):
        await kube.create(volume("no-such-namespace"))


async def test_a_write_on_something_gone_says_so(kube, namespace):
    made = await kube.create(volume(namespace))
    await kube.delete(made)
    with pytest.raises(ObjectNotFound):
        await kube.update_status(made, made.with_(status=made.status.with_(last_grant=1)))
    with pytest.raises(ObjectNotFound):
        await kube.update(made, made.with_finalizer("cinderblock.io/protect"))


async def test_a_kind_that_is_not_served_is_no_deletion(kube, namespace):
    class Unserved(Volume):
        PLURAL = "unserved"

    ghost = Unserved(metadata=ObjectMeta(name="a", namespace=namespace, uid="u"), spec=VolumeSpec(size="1"))
    for call in (
        kube.get(Unserved, "a", namespace),
        kube.list(Unserved),
        kube.delete(ghost),
        kube.create(ghost),
    ):
        with pytest.raises(KubeUnavailable, match="not served"):
            await call


async def test_forbidden(kube, namespace, apiserver, tmp_path):
    config = tmp_path / "kubeconfig"
    config.write_text(
        apiserver.kubectl(
            "config", "view", "--raw", "--minify", "-o", "yaml", "--kubeconfig", str(apiserver.kubeconfig)
        )
    )
    text = config.read_text().splitlines()
    keep = [line for line in text if "client-certificate" not in line and "client-key" not in line]
    token = ["    token: nonsense" if line.strip().startswith("user:") else None for line in keep]
    merged = [row for line, extra in zip(keep, token, strict=True) for row in (line, extra) if row]
    config.write_text("\n".join(merged).replace("user: {}", "user:"))
    async with connect(config) as stranger:
        with pytest.raises(Forbidden):
            await stranger.get(Volume, "a", namespace)
        with pytest.raises(Forbidden):
            await stranger.create(volume(namespace))


async def test_no_server_is_unavailable(kube, tmp_path, apiserver):
    config = tmp_path / "kubeconfig"
    config.write_text(apiserver.kubeconfig.read_text().replace(apiserver.url, "https://127.0.0.1:1"))
    async with connect(config) as nobody:
        with pytest.raises(KubeUnavailable):
            await nobody.list(Volume)
        with pytest.raises(KubeUnavailable):
            async for _ in nobody.watch(Volume, resource_version="1"):
                pass


async def test_lists_go_by_pages_and_selectors_reach_status(kube, namespace, monkeypatch):
    monkeypatch.setattr("cinderblock.core.kube.adapter._PAGE", 3)
    for i in range(7):
        made = await kube.create(volume(namespace, f"v{i}", labels={"half": str(i % 2)}))
        status = made.status.with_(allocation=allocation(f"h{i % 2}"))
        await kube.update_status(made, made.with_(status=status))
    listing = await kube.list(Volume, namespace=namespace)
    assert sorted(v.name for v in listing.items) == [f"v{i}" for i in range(7)]
    assert int(listing.resource_version) >= max(int(v.metadata.resource_version) for v in listing.items)
    odd = await kube.list(Volume, namespace=namespace, field_selector="status.allocation.host=h1")
    assert sorted(v.name for v in odd.items) == ["v1", "v3", "v5"]
    labelled = await kube.list(Volume, label_selector="half=1", namespace=namespace)
    assert len(labelled.items) == 3


async def test_kinds_of_kubernetes_and_cluster_scope(kube, namespace):
    assert (await kube.list(Node)).items == []
    assert (await kube.list(PersistentVolume)).items == []
    lease = await kube.create(Lease(metadata=ObjectMeta(name="l", namespace=namespace)))
    held = lease.with_(spec=lease.spec.with_(holder_identity="me", renew_time="2030-01-01T00:00:00.000001Z"))
    assert (await kube.update(lease, held)).spec.holder_identity == "me"
    name = f"b-{namespace}"
    backend = await kube.create(
        Backend(metadata=ObjectMeta(name=name), spec=BackendSpec(driver="file", config={"a": {"b": 1}}))
    )
    assert (await kube.get(Backend, name)).spec.config == {"a": {"b": 1}}
    await kube.delete(backend)


async def test_a_watch_follows_and_tells_what_leaves_a_selector(kube, namespace):
    start = (await kube.list(Volume, namespace=namespace)).resource_version
    made = await kube.create(volume(namespace))
    mine = await kube.update_status(made, made.with_(status=made.status.with_(allocation=allocation("h1"))))
    moved = await kube.update_status(
        mine, mine.with_(status=mine.status.with_(allocation=allocation("h2", 2)))
    )
    await kube.delete(moved)
    seen = []
    async with asyncio.timeout(20):
        async for event in kube.watch(
            Volume,
            resource_version=start,
            namespace=namespace,
            field_selector="status.allocation.host=h1",
        ):
            seen.append((event.type, event.object.name))
            if event.type is WatchType.DELETED:
                break
    assert seen == [(WatchType.ADDED, "a"), (WatchType.DELETED, "a")]


async def test_a_version_that_was_compacted_is_history_gone_and_the_informer_survives_it(
    kube, namespace, apiserver, monkeypatch
):
    store = Store(Volume)
    ghost = await kube.create(volume(namespace, "ghost"))
    old = (await kube.list(Volume, namespace=namespace)).resource_version
    with pytest.raises(HistoryGone):
        async for _ in kube.watch(Volume, resource_version="1", namespace=namespace):
            pass

    real_watch = kube.watch
    versions = []

    def watch_from_the_past(kind, *, resource_version, **options):
        versions.append(resource_version)
        return real_watch(kind, resource_version="1" if len(versions) == 1 else resource_version, **options)

    monkeypatch.setattr(kube, "watch", watch_from_the_past)
    store.apply(ghost)
    await kube.delete(ghost)
    task = asyncio.create_task(Informer(kube, store, namespace=namespace).run())
    try:
        async with asyncio.timeout(20):
            await store.synced.wait()
            made = await kube.create(volume(namespace, "b"))
            while store.get(namespace, "b") != made or len(versions) < 2:
                await asyncio.sleep(0.02)
        assert store.get(namespace, "ghost") is None
        assert int(versions[1]) >= int(old)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_objects_of_another_version_do_not_hide_the_others(caplog):
    codec = Codec(Volume)
    page = codec.page(
        b'{"metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"odd"},"spec":{"size":7}},'
        b'{"metadata":{"name":"good"},"spec":{"size":"1Gi"}}]}'
    )
    assert [v.name for v in page.items] == ["good"]
    assert page.resource_version == "7"
    assert "odd" in caplog.text


async def test_a_send_that_is_forbidden_at_the_last_moment_never_leaves(kube, namespace):
    calls = []

    def lost():
        calls.append(1)
        raise KubeUnavailable("the Lease is over")

    with checked(lost), pytest.raises(KubeUnavailable, match="the Lease is over"):
        await kube.create(volume(namespace))
    assert calls
    with pytest.raises(ObjectNotFound):
        await kube.get(Volume, "a", namespace)
    await kube.create(volume(namespace))


async def test_many_calls_at_once_share_the_pool(kube, namespace):
    made = await asyncio.gather(*(kube.create(volume(namespace, f"v{i}")) for i in range(150)))
    assert len({v.uid for v in made}) == 150
