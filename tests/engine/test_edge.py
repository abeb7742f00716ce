"""kopf against a real API server: it feeds the stores, tells what leaves a selector, and writes nothing."""

import asyncio
import contextlib
import uuid

import pytest

from cinderblock.core.api import Volume
from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.api.volume import Allocation, VolumeSpec
from cinderblock.core.kube.adapter import connect
from cinderblock.operator.engine.scope import host_scope
from cinderblock.operator.engine.stores import make_stores
from cinderblock.operator.events.edge import watch

pytestmark = pytest.mark.apiserver


async def until(condition, seconds=15):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.fixture
def namespace(apiserver):
    apiserver.apply_crds()
    name = f"edge-{uuid.uuid4().hex[:8]}"
    apiserver.kubectl("create", "namespace", name)
    yield name
    apiserver.kubectl("delete", "volumes.cinderblock.io", "--all", "-n", name)
    apiserver.kubectl("delete", "namespace", name, "--wait=false")


@contextlib.asynccontextmanager
async def edge(kube, scope, stores):
    stop, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(watch(kube, scope, stores, stop=stop, ready=ready))
    try:
        async with asyncio.timeout(20):
            await ready.wait()
        yield
    finally:
        stop.set()
        async with asyncio.timeout(20):
            await task


def granted(volume, host, grant):
    allocation = Allocation(backend="b", pool="p", host=host, size_bytes=1 << 30, grant=grant)
    return volume.with_(status=volume.status.with_(allocation=allocation))


def _nameless() -> str:
    raise OSError("No username set in the environment")


async def test_a_host_sees_what_is_granted_to_it_and_loses_sight_of_what_moves_on(
    apiserver, namespace, monkeypatch
):
    monkeypatch.setattr("getpass.getuser", _nameless)  # as in a container, whose uid has no name
    host = f"h-{namespace}"
    stores = make_stores()
    scope = host_scope(stores, host, "no-such-node")
    changes = []
    stores.volumes.subscribe(lambda old, new: changes.append((old and old.name, new and new.name)))
    async with connect(apiserver.kubeconfig) as kube:
        before = await kube.create(
            Volume(metadata=ObjectMeta(name="before", namespace=namespace), spec=VolumeSpec(size="1Gi"))
        )
        before = await kube.update_status(before, granted(before, host, 1))
        async with edge(kube, scope, stores):
            await until(lambda: stores.volumes.get(namespace, "before") == before)
            made = await kube.create(
                Volume(metadata=ObjectMeta(name="a", namespace=namespace), spec=VolumeSpec(size="1Gi"))
            )
            mine = await kube.update_status(made, granted(made, host, 1))
            await until(lambda: stores.volumes.get(namespace, "a") == mine)
            assert [v.name for v in stores.volumes.by("host", host)] == ["before", "a"]

            moved = await kube.update_status(mine, granted(mine, "another", 2))
            await until(lambda: stores.volumes.get(namespace, "a") is None)
            assert await kube.get(Volume, "a", namespace) == moved, "it lives, and kopf left no trace on it"
            assert moved.metadata.finalizers == ()
            assert moved.metadata.annotations == {}

            back = await kube.update_status(moved, granted(moved, host, 3))
            await until(lambda: stores.volumes.get(namespace, "a") == back)
            await kube.delete(back)
            await until(lambda: stores.volumes.get(namespace, "a") is None)
    assert changes[0] == (None, "before")
    assert (("a", None) in changes) and (changes[-1] == ("a", None))
