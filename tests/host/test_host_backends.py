"""Drivers and Pools: opened, reported, refused, isolated, reopened, taken away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from host_world import LocalFakeDriver, World

from cinderblock.core.api import Backend, Pool, Volume
from cinderblock.core.api.builtin import Node
from cinderblock.core.api.meta import find_condition
from cinderblock.core.kube.port import KubeUnavailable
from cinderblock.core.names import FINALIZER_PROTECT
from cinderblock.core.units import GIB, MIB


async def _pool_reason(world: World, name: str, reason: str) -> bool:
    if await world.gone(name, Pool):
        return False
    found = find_condition((await world.kube.get(Pool, name)).status.conditions, "Ready")
    return found is not None and found.reason == reason


async def _pools(world: World) -> set[str]:
    return {pool.name for pool in (await world.kube.list(Pool)).items}


async def test_a_pool_carries_figures_policy_and_capabilities(world: World) -> None:
    await world.backend(
        config={"totalSize": "10Gi", "capabilities": {"tier": "gold", "driver": "lies"}},
        over_subscription_ratio="3",
        reserved_percent=7,
        availability_zone="z1",
    )
    async with world.host():
        await world.until(world.pool_ready)
        await world.available(size="2Gi")
        await world.until(lambda: _provisioned(world, 2 * GIB))
    pool = await world.kube.get(Pool, "b")
    status = pool.status
    assert (pool.spec.backend, pool.spec.host, pool.spec.node, pool.spec.pool) == (
        "b",
        "operator",
        None,
        None,
    )
    assert (status.total_bytes, status.free_bytes, status.thin) == (10 * GIB, 10 * GIB, True)
    assert (status.over_subscription_ratio, status.reserved_percent) == ("3", 7)
    assert status.availability_zone == "z1"
    assert status.pool_id == world.place.state.pool_ids[""]
    assert status.capabilities == {
        "driver": "fake",
        "backend": "b",
        "tier": "gold",
        "thin_provisioning_support": "true",
        "thick_provisioning_support": "true",
        "online_extend_support": "true",
        "multiattach": "true",
    }


async def _provisioned(world: World, size_bytes: int) -> bool:
    return (await world.kube.get(Pool, "b")).status.provisioned_bytes == size_bytes


async def test_a_burst_of_creates_is_reported_at_most_every_five_seconds(world: World) -> None:
    await world.backend()
    async with world.host():
        await world.until(world.pool_ready)
        await world.quiet(10)
        before = len([w for w in world.kube.writes if w[1] == "Pool"])
        for i in range(40):
            await world.volume(f"v{i}")
            await world.grant(f"v{i}")
            await world.quiet(0.25)
        await world.quiet(10)
        assert await _provisioned(world, 40 * GIB)
        assert len([w for w in world.kube.writes if w[1] == "Pool"]) - before <= 4


async def test_the_volumes_of_a_pool_know_their_driver_pool(world: World) -> None:
    await world.backend(
        config={"pools": [{"name": "fast", "totalSize": "5Gi"}, {"name": "slow", "totalSize": "9Gi"}]}
    )
    async with world.host():
        await world.until(lambda: world.pool_ready("b-slow"))
        assert await _pools(world) == {"b-fast", "b-slow"}
        volume = await world.volume()
        granted = await world.grant()
        allocation = granted.status.allocation
        assert allocation is not None
        status = granted.status.with_(allocation=allocation.with_(pool="b-slow"))
        await world.kube.update_status(granted, granted.with_(status=status))
        await world.until(world.ready)
    assert world.objects[f"{volume.uid}-1"].pool == "slow"


async def test_a_driver_that_does_not_open_has_a_pool_that_says_so(world: World) -> None:
    await world.backend(
        config={
            "pools": [{"name": "fast", "totalSize": "5Gi"}],
            "faults": [
                {"verb": "open", "error": "BackendUnavailable", "message": "disk is gone", "times": 3}
            ],
        }
    )
    async with world.host():
        await world.until(lambda: _pool_reason(world, "b", "BackendUnavailable"))
        pool = await world.kube.get(Pool, "b")
        assert pool.spec.pool is None
        assert pool.status.last_error is not None
        assert "disk is gone" in pool.status.last_error.message
        assert "BackendUnavailable" in await world.events()
        await world.until(lambda: world.pool_ready("b-fast"))
        assert await _pools(world) == {"b-fast"}  # the one that stood for the unknown is gone


async def test_wrong_backends_do_not_stop_their_neighbours(world: World) -> None:
    await world.backend("unknown", driver="nosuch")
    await world.backend("wrong", config={"totalSize": "many"})
    await world.backend("extra", config={"colour": "red"})
    await world.backend("good")
    async with world.host():
        await world.until(lambda: world.pool_ready("good"))
        await world.until(lambda: _pool_reason(world, "unknown", "UnknownDriver"))
        await world.until(lambda: _pool_reason(world, "wrong", "InvalidConfig"))
        await world.until(lambda: _pool_reason(world, "extra", "InvalidConfig"))


async def test_a_changed_configuration_opens_anew_and_a_wrong_one_keeps_serving(world: World) -> None:
    await world.backend(config={"totalSize": "10Gi"})
    async with world.host():
        await world.until(world.pool_ready)
        await world.available("v1")
        await world.configure("b", totalSize="20Gi")
        await world.until(lambda: _total(world, 20 * GIB))
        await world.configure("b", nonsense=1)
        await world.until(lambda: _pool_reason(world, "b", "InvalidConfig"))
        await world.remove("v1")
        await world.until(lambda: world.gone("v1"))  # what is here is served with what was valid
        await world.configure("b", totalSize="30Gi")
        await world.until(world.pool_ready)
        assert await _total(world, 30 * GIB)


async def _total(world: World, size_bytes: int) -> bool:
    return (await world.kube.get(Pool, "b")).status.total_bytes == size_bytes


async def test_a_known_pool_id_with_another_marker_is_refused_and_never_overwritten(world: World) -> None:
    await world.backend()
    async with world.host():
        await world.until(world.pool_ready)
    known = (await world.kube.get(Pool, "b")).status.pool_id
    world.place.state.pool_ids.clear()  # an empty mount point where the disk was
    async with world.host():
        await world.until(lambda: _pool_reason(world, "b", "Lost"))
        await world.quiet(300)
        assert (await world.kube.get(Pool, "b")).status.pool_id == known
        assert world.place.state.pool_ids == {}
        world.place.state.pool_ids[""] = known or ""
        await world.until(world.pool_ready)


async def test_a_pool_removed_by_hand_comes_back(world: World) -> None:
    await world.backend()
    async with world.host():
        await world.until(world.pool_ready)
        before = await world.kube.get(Pool, "b")
        await world.kube.delete(before)
        await world.until(world.pool_ready)
        after = await world.kube.get(Pool, "b")
        assert (after.uid != before.uid, after.status.pool_id) == (True, before.status.pool_id)


async def test_a_deleted_backend_closes_when_it_is_empty(world: World) -> None:
    await world.backend()
    async with world.host():
        await world.until(world.pool_ready)
        await world.available()
        await world.kube.delete(await world.kube.get(Backend, "b"))
        await world.until(lambda: _pool_reason(world, "b", "BackendDeleting"))
        assert await world.ready()
        await world.remove()
        await world.until(world.gone)  # served to the end
        backend = await world.kube.get(Backend, "b")
        await world.kube.update(backend, backend.without_finalizer(FINALIZER_PROTECT))
        await world.until(lambda: world.gone("b", Pool))
        assert world.role is not None
        assert world.role.backends.open.names() == []


async def test_a_backend_that_vanished_while_the_host_was_away(world: World) -> None:
    await world.backend()
    async with world.host():
        await world.until(world.pool_ready)
    backend = await world.kube.get(Backend, "b")
    await world.kube.update(backend, backend.without_finalizer(FINALIZER_PROTECT))
    await world.kube.delete(await world.kube.get(Backend, "b"))
    async with world.host():
        await world.until(lambda: world.gone("b", Pool))


async def test_a_backend_forced_away_keeps_its_pool_until_the_volumes_are_gone(world: World) -> None:
    await world.backend()
    async with world.host():
        await world.until(world.pool_ready)
        await world.available()
        backend = await world.kube.get(Backend, "b")
        await world.kube.update(backend, backend.without_finalizer(FINALIZER_PROTECT))
        await world.kube.delete(await world.kube.get(Backend, "b"))
        await world.until(lambda: _pool_reason(world, "b", "BackendGone"))
        await world.remove()
        await world.until(world.gone)
        await world.until(lambda: world.gone("b", Pool))
    assert not world.objects


async def test_a_node_serves_what_selects_its_labels(world: World) -> None:
    world.driver_class = LocalFakeDriver
    await world.node("n1", labels={"disk": "fast"})
    await world.backend("b", node_selector={"disk": "fast"})
    await world.backend("other", node_selector={"disk": "slow"})
    await world.backend("all", node_selector={})
    await world.backend("network")
    async with world.host("n1", "n1"):
        await world.until(lambda: world.pool_ready("b-n1"))
        await world.until(lambda: world.pool_ready("all-n1"))
        assert await _pools(world) == {"b-n1", "all-n1"}
        pool = await world.kube.get(Pool, "b-n1")
        assert (pool.spec.node, pool.status.capabilities["node"]) == ("n1", "n1")
        await world.volume()
        await world.grant(host="n1", node="n1")
        await world.until(world.ready)
        node = await world.kube.get(Node, "n1")
        labels = {"disk": "slow"}
        await world.kube.update(node, node.with_(metadata=node.metadata.with_(labels=labels)))
        await world.until(lambda: world.pool_ready("other-n1"))
        await world.until(lambda: _pool_reason(world, "b-n1", "NotSelected"))
        await world.remove()
        await world.until(world.gone)  # what is here is served to its end
        await world.until(lambda: world.gone("b-n1", Pool))


async def test_a_pool_name_of_another_backend_is_not_taken(world: World) -> None:
    """Backend a on node b-c, and Backend a-b on node c: one name."""
    world.driver_class = LocalFakeDriver
    await world.node("c")
    await world.backend("a-b", node_selector={})
    stranger = await world.backend("a", node_selector={"never": "here"})
    await world.kube.create(
        Pool.model_validate(
            {"metadata": {"name": "a-b-c"}, "spec": {"backend": stranger.name, "host": "b-c", "node": "b-c"}}
        )
    )
    async with world.host("c", "c"):
        await world.quiet(20)
        pool = await world.kube.get(Pool, "a-b-c")
        assert (pool.spec.backend, pool.status.pool_id) == ("a", None)
        assert "PoolNameTaken" in await world.events()
        await world.volume()
        await world.grant(backend="a-b", host="c", node="c")
        await world.quiet(20)
        assert not world.objects


async def test_a_node_made_anew_silences_its_host(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.driver_class = LocalFakeDriver
    node = await world.node("n1")
    await world.backend(node_selector={})
    async with world.host("n1", "n1"):
        await world.until(lambda: world.pool_ready("b-n1"))
        await world.kube.delete(node)
        await world.kube.create(Node(metadata=node.metadata.with_(uid="", resource_version="")))
        await world.clock.advance(15)
        before = list(world.kube.writes)
        await world.volume()
        await world.grant(host="n1", node="n1")
        await world.quiet(60)
        after = [w for w in world.kube.writes if w not in before and w[2] != "v"]
        assert after == []
        assert not world.objects
        assert world.role_task.done()
        assert type(world.role_task.exception()).__name__ == "HostGone"
    assert (await world.kube.list(Volume)).items[0].status.last_error is None


async def test_a_host_without_its_node_waits(world: World) -> None:
    world.driver_class = LocalFakeDriver
    await world.backend(node_selector={})
    async with world.host("n1", "n1"):
        await world.quiet(60)
        assert not [w for w in world.kube.writes if w[1] == "Pool"]
        await world.node("n1")
        await world.until(lambda: world.pool_ready("b-n1"))


async def test_a_host_starts_when_the_api_server_answers(world: World) -> None:
    world.driver_class = LocalFakeDriver
    await world.node("n1")
    await world.backend(node_selector={})
    get, fails = world.kube.get, 5

    async def unsure(kind: Any, name: str, namespace: str | None = None) -> Any:
        nonlocal fails
        if kind is Node and fails:
            fails -= 1
            raise KubeUnavailable("no answer")
        return await get(kind, name, namespace)

    world.kube.get = unsure  # type: ignore[method-assign]
    async with world.host("n1", "n1"):
        await world.until(lambda: world.pool_ready("b-n1"))
    assert not fails


@pytest.mark.parametrize("again", [True, False])
async def test_an_idle_host_notices_that_its_node_is_gone(world: World, again: bool) -> None:
    """Its Lease must not say for hours that somebody serves that node."""
    world.driver_class = LocalFakeDriver
    node = await world.node("n1")
    async with world.host("n1", "n1"):
        await world.quiet(20)
        before = len(world.kube.writes)
        await world.kube.delete(node)
        if again:
            await world.kube.create(Node(metadata=node.metadata.with_(uid="", resource_version="")))
        await world.quiet(20)
        assert world.role_task.done()
        assert type(world.role_task.exception()).__name__ == "HostGone"
        assert len(world.kube.writes) == before + (2 if again else 1)


async def test_a_grant_that_crosses_the_end_of_a_pool_is_served(world: World) -> None:
    """The leader placed it while this host let go of the Backend, which does not select it any more."""
    world.driver_class = LocalFakeDriver
    await world.node("n1", labels={"disk": "fast"})
    await world.backend("b", node_selector={"disk": "fast"})
    async with world.host("n1", "n1"):
        await world.until(lambda: world.pool_ready("b-n1"))
        node = await world.kube.get(Node, "n1")
        await world.kube.update(node, node.with_(metadata=node.metadata.with_(labels={})))
        await world.until(lambda: world.gone("b-n1", Pool))
        await world.volume()
        await world.grant(host="n1", node="n1")
        await world.until(world.ready, seconds=60)
        await world.remove()
        await world.until(world.gone)


def test_small_moves_of_free_bytes_are_not_worth_a_write() -> None:
    from cinderblock.core.api.backend import PoolStatus
    from cinderblock.operator.host.decide_pool import judge_change

    old = PoolStatus(total_bytes=100 * GIB, free_bytes=50 * GIB, allocated_bytes=0, provisioned_bytes=0)
    assert not judge_change(old, old).write
    assert not judge_change(old, old.with_(free_bytes=50 * GIB - 100 * MIB)).write
    assert judge_change(old, old.with_(free_bytes=48 * GIB)).write
    nearly_full = old.with_(free_bytes=2 * GIB)
    assert judge_change(nearly_full, nearly_full.with_(free_bytes=GIB)).write
    moved = judge_change(old, old.with_(provisioned_bytes=1))
    assert (moved.write, moved.figures_only) == (True, True)
    assert judge_change(old, old.with_(reserved_percent=3)).figures_only is False
