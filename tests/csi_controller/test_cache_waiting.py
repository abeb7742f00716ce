"""Waiting on objects: woken by changes, never fooled by an absence or by a namesake in the cache."""

import asyncio
import time

import pytest
from fake_kube import FakeKube

from cinderblock.core.api.backend import VolumeType, VolumeTypeSpec
from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.errors import OperationPending
from cinderblock.core.kube.store import Store
from cinderblock.csi.gateway import waiting
from cinderblock.csi.gateway.waiting import Cache


@pytest.fixture
def kube() -> FakeKube:
    return FakeKube()


@pytest.fixture
def cache(kube: FakeKube) -> Cache[VolumeType]:
    return Cache(kube, Store(VolumeType))


async def made(kube: FakeKube) -> VolumeType:
    return await kube.create(VolumeType(metadata=ObjectMeta(name="t")))


def until_default(cache: Cache[VolumeType], obj: VolumeType, seconds: float) -> asyncio.Task[str]:
    def judge(seen: VolumeType | None) -> str | None:
        if seen is None:
            return "gone"
        return "default" if seen.spec.is_default else None

    answer_by = time.monotonic() + seconds
    return asyncio.create_task(
        cache.until(obj, judge, answer_by=answer_by, pending=lambda seen: f"waits for {obj.name}")
    )


async def test_a_change_wakes_the_waiter(kube: FakeKube, cache: Cache[VolumeType]) -> None:
    obj = await made(kube)
    waiter = until_default(cache, obj, 5)
    await asyncio.sleep(0)
    cache.store.apply(await kube.update(obj, obj.with_(spec=VolumeTypeSpec(is_default=True))))
    assert await waiter == "default"


async def test_time_up_says_what_it_waited_for(kube: FakeKube, cache: Cache[VolumeType]) -> None:
    with pytest.raises(OperationPending, match="waits for t"):
        await until_default(cache, await made(kube), 0.01)


async def test_an_absence_in_the_cache_is_not_believed(kube: FakeKube, cache: Cache[VolumeType]) -> None:
    obj = await made(kube)
    waiter = until_default(cache, obj, 0.1)
    await asyncio.sleep(0)
    cache.store.remove(obj)  # as a watch does when an object leaves its selector
    with pytest.raises(OperationPending):
        await waiter


async def test_an_object_that_is_gone_is_gone(kube: FakeKube, cache: Cache[VolumeType]) -> None:
    obj = await made(kube)
    waiter = until_default(cache, obj, 5)
    await asyncio.sleep(0)
    await kube.delete(obj)
    cache.store.remove(obj)
    assert await waiter == "gone"


async def test_a_namesake_is_another_object(kube: FakeKube, cache: Cache[VolumeType]) -> None:
    obj = await made(kube)
    waiter = until_default(cache, obj, 5)
    await asyncio.sleep(0)
    await kube.delete(obj)
    other = VolumeType(metadata=ObjectMeta(name="t"), spec=VolumeTypeSpec(is_default=True))
    cache.store.apply(await kube.create(other))
    assert await waiter == "gone"


async def test_a_deaf_watch_is_made_up_for_by_fresh_reads(
    kube: FakeKube, cache: Cache[VolumeType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_FRESH_EVERY", 0.01)
    obj = await made(kube)
    waiter = until_default(cache, obj, 5)
    await kube.update(obj, obj.with_(spec=VolumeTypeSpec(is_default=True)))
    assert await waiter == "default"
