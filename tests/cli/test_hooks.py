"""The chart's hooks against the API server in memory."""

import asyncio

import pytest
from fake_kube import FakeKube

from cinderblock.cli.hooks import HookRefused, apply_crds, pre_delete
from cinderblock.core.api import Backend, Pool, Volume, VolumeType
from cinderblock.core.api.backend import BackendSpec, PoolSpec
from cinderblock.core.api.builtin import CustomResourceDefinition
from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.api.volume import Allocation, VolumeSpec
from cinderblock.core.clock import SystemClock
from cinderblock.core.names import FINALIZER_PROTECT


def crd(name: str, **spec: object) -> CustomResourceDefinition:
    return CustomResourceDefinition(metadata=ObjectMeta(name=name), spec=spec)


async def a_volume(kube: FakeKube) -> Volume:
    volume = await kube.create(
        Volume(
            metadata=ObjectMeta(name="v", namespace="team", finalizers=(FINALIZER_PROTECT,)),
            spec=VolumeSpec(size="1Gi"),
        )
    )
    allocation = Allocation(backend="b", pool="b-n", host="n", size_bytes=1 << 30, grant=3)
    return await kube.update_status(
        volume, volume.with_(status=volume.status.with_(handle="h-1", allocation=allocation))
    )


async def test_crds_are_created_then_updated_then_left_alone() -> None:
    kube, said = FakeKube(), []
    for spec in ({"a": 1}, {"a": 2}, {"a": 2}):
        await apply_crds(kube, [crd("volumes.cinderblock.io", **spec)], said.append)
    assert [line.split(": ")[1] for line in said] == ["created", "updated", "unchanged"]
    assert (await kube.get(CustomResourceDefinition, "volumes.cinderblock.io")).spec == {"a": 2}


async def test_uninstall_is_refused_while_a_volume_exists() -> None:
    kube = FakeKube()
    await a_volume(kube)
    await kube.create(Backend(metadata=ObjectMeta(name="b"), spec=BackendSpec(driver="file")))
    with pytest.raises(HookRefused, match="Volume team/v"):
        await pre_delete(kube, SystemClock(), print, force=False)
    assert not (await kube.get(Backend, "b")).deleting


async def test_an_empty_installation_is_cleared() -> None:
    kube = FakeKube()
    await kube.create(Backend(metadata=ObjectMeta(name="b"), spec=BackendSpec(driver="file")))
    await kube.create(VolumeType(metadata=ObjectMeta(name="standard")))
    await pre_delete(kube, SystemClock(), print, force=False)
    assert not (await kube.list(Backend)).items
    assert not (await kube.list(VolumeType)).items


async def test_a_pool_that_stays_fails_the_hook_with_its_name() -> None:
    kube = FakeKube()
    await kube.create(Pool(metadata=ObjectMeta(name="b-n"), spec=PoolSpec(backend="b", host="n")))
    with pytest.raises(HookRefused, match="Pool b-n"):
        await pre_delete(kube, SystemClock(), print, force=False, timeout=0.2)


async def test_force_drops_finalizers_and_lists_what_stays_on_disk() -> None:
    kube, said = FakeKube(), []
    await a_volume(kube)
    await kube.create(
        Backend(
            metadata=ObjectMeta(name="b", finalizers=(FINALIZER_PROTECT,)), spec=BackendSpec(driver="file")
        )
    )
    await pre_delete(kube, SystemClock(), said.append, force=True)
    assert not (await kube.list(Volume)).items
    assert not (await kube.list(Backend)).items
    assert any("h-1-3 in pool b-n" in line for line in said)


async def test_force_never_lets_the_host_see_a_deletion() -> None:
    """A Volume that is being deleted while it has a finalizer is one whose data the host deletes."""
    kube = FakeKube()
    made = await a_volume(kube)
    returned = 0

    def host_looks(verb: str, kind: str, name: str) -> None:
        nonlocal returned
        stored = kube._objects.get(("Volume", "team", name))
        if stored is None or kind != "Volume":
            return
        assert not (stored["metadata"].get("deletionTimestamp") and stored["metadata"].get("finalizers"))

    def leader_puts_it_back(verb: str, kind: str, name: str) -> None:
        nonlocal returned
        host_looks(verb, kind, name)
        key = ("Volume", "team", name)
        if kind == "Volume" and verb == "update" and returned < 2:
            returned += 1
            body = kube._objects[key]
            kube._commit(key, {**body, "metadata": {**body["metadata"], "finalizers": [FINALIZER_PROTECT]}})

    kube.before_write, kube.after_write = host_looks, leader_puts_it_back
    await pre_delete(kube, SystemClock(), print, force=True)
    assert returned == 2
    assert made.name not in [v.name for v in (await kube.list(Volume)).items]


async def test_force_says_so_when_it_does_not_get_through() -> None:
    kube = FakeKube()
    await a_volume(kube)

    def always_back(verb: str, kind: str, name: str) -> None:
        key = ("Volume", "team", name)
        if kind == "Volume" and verb == "update":
            body = kube._objects[key]
            kube._commit(key, {**body, "metadata": {**body["metadata"], "finalizers": [FINALIZER_PROTECT]}})

    kube.after_write = always_back
    with pytest.raises(HookRefused, match="Volume team/v"):
        await pre_delete(kube, SystemClock(), print, force=True)


async def test_types_stay_until_the_backends_are_gone() -> None:
    """A removal that fails half-way leaves what a later upgrade could not guess."""
    kube = FakeKube()
    await kube.create(VolumeType(metadata=ObjectMeta(name="standard")))
    await kube.create(Pool(metadata=ObjectMeta(name="b-n"), spec=PoolSpec(backend="b", host="n")))
    with pytest.raises(HookRefused):
        await pre_delete(kube, SystemClock(), print, force=False, timeout=0.2)
    assert [t.name for t in (await kube.list(VolumeType)).items] == ["standard"]


async def test_a_volume_made_meanwhile_is_named() -> None:
    kube, clock = FakeKube(), SystemClock()
    held = Backend(
        metadata=ObjectMeta(name="b", finalizers=(FINALIZER_PROTECT,)), spec=BackendSpec(driver="file")
    )
    await kube.create(held)

    async def a_claim_comes_late() -> None:
        while not (await kube.get(Backend, "b")).deleting:
            await clock.sleep(0)
        await a_volume(kube)

    late = asyncio.create_task(a_claim_comes_late())
    with pytest.raises(HookRefused, match="Volume team/v"):
        await pre_delete(kube, clock, print, force=False, timeout=30)
    await late
