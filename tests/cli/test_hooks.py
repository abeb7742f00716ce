"""The chart's hooks against the API server in memory."""

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
