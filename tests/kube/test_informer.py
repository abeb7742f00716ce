"""An informer heals whatever a watch loses."""

import asyncio
import contextlib

from fake_clock import FakeClock, settle
from fake_kube import FakeKube

from cinderblock.core.api import Volume
from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.api.volume import Allocation, VolumeSpec
from cinderblock.core.kube.informer import Informer
from cinderblock.core.kube.port import HistoryGone, KubeUnavailable
from cinderblock.core.kube.store import Store


def volume(name):
    return Volume(metadata=ObjectMeta(name=name, namespace="ns"), spec=VolumeSpec(size="1Gi"))


class FlakyKube(FakeKube):
    """`fail` is raised once by the next call that opens a watch or lists; `broken` ends running watches."""

    def __init__(self):
        super().__init__()
        self.fail = []
        self.lists = 0
        self.watches = 0
        self.down = False
        self.broken = asyncio.Event()

    async def list(self, kind, **options):
        self.lists += 1
        if self.down:
            raise KubeUnavailable("down")
        if self.fail:
            raise self.fail.pop(0)
        return await super().list(kind, **options)

    async def watch(self, kind, **options):
        self.watches += 1
        if self.down:
            raise KubeUnavailable("down")
        if self.fail:
            raise self.fail.pop(0)
        stream = super().watch(kind, **options)
        events = asyncio.Queue()

        async def pump():
            async for event in stream:
                events.put_nowait(event)

        async def end():
            await self.broken.wait()
            events.put_nowait(None)

        tasks = [asyncio.create_task(pump()), asyncio.create_task(end())]
        try:
            while (event := await events.get()) is not None:
                yield event
            if self.fail:
                raise self.fail.pop(0)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def informing(kube, **selectors):
    async with running_informer(kube, **selectors) as (informer, clock):
        yield informer.store, clock


@contextlib.asynccontextmanager
async def running_informer(kube, **selectors):
    clock = FakeClock()
    informer = Informer(kube, Store(Volume), clock=clock, **selectors)
    task = asyncio.create_task(informer.run())
    try:
        yield informer, clock
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_it_lists_then_follows():
    kube = FlakyKube()
    a = await kube.create(volume("a"))
    async with informing(kube) as (store, _):
        await store.synced.wait()
        assert store.get("ns", "a") == a
        await kube.create(volume("b"))
        await kube.delete(a)
        await settle()
        assert [v.name for v in store.all()] == ["b"]
    assert kube.lists == 1


async def test_a_watch_that_ends_is_taken_up_where_it_was():
    kube = FlakyKube()
    async with informing(kube) as (store, clock):
        await store.synced.wait()
        kube.broken.set()
        await settle()
        await kube.create(volume("a"))
        kube.broken.clear()
        await clock.advance(1)
        assert store.get("ns", "a") is not None
    assert kube.lists == 1


async def test_history_gone_lists_again_and_drops_ghosts():
    kube = FlakyKube()
    a = await kube.create(volume("a"))
    async with informing(kube) as (store, clock):
        await store.synced.wait()
        await settle()
        kube.fail.append(HistoryGone("compacted", status=410))
        kube.broken.set()
        await settle()
        assert store.get("ns", "a") is not None
        kube.silent = True
        await kube.delete(a)
        kube.silent = False
        kube.broken.clear()
        await clock.advance(2)
        assert store.all() == []
    assert kube.lists == 2


async def test_an_api_server_that_is_away_at_the_start_is_asked_again():
    kube = FlakyKube()
    kube.fail = [KubeUnavailable("down")] * 3
    async with informing(kube) as (store, clock):
        await settle()
        assert not store.synced.is_set()
        await clock.advance(10)
        assert store.synced.is_set()


async def test_a_silent_loss_is_healed_within_ten_minutes():
    kube = FlakyKube()
    a = await kube.create(volume("a"))
    async with informing(kube) as (store, clock):
        await store.synced.wait()
        await settle()
        kube.silent = True  # from here on the watch tells nothing
        await kube.delete(a)
        await kube.create(volume("b"))
        await clock.advance(599)
        assert [v.name for v in store.all()] == ["a"]
        await clock.advance(2)
        assert [v.name for v in store.all()] == ["b"]


async def test_only_what_the_selector_matches_is_kept():
    kube = FlakyKube()
    mine = await kube.create(volume("mine"))
    await kube.create(volume("other"))
    grant = Allocation(backend="b", pool="p", host="h1", size_bytes=1, grant=1)
    await kube.update_status(mine, mine.with_(status=mine.status.with_(allocation=grant)))
    async with informing(kube, field_selector="status.allocation.host=h1") as (store, _):
        await store.synced.wait()
        assert [v.name for v in store.all()] == ["mine"]


async def test_an_outage_is_waited_out_without_a_storm_and_then_seen_through():
    kube = FlakyKube()
    async with informing(kube) as (store, clock):
        await store.synced.wait()
        await settle()
        kube.down, before = True, kube.watches
        kube.broken.set()
        await clock.advance(120)
        assert kube.watches - before < 20
        kube.down = False
        kube.broken.clear()
        await kube.create(volume("meanwhile"))
        await clock.advance(31)
        assert store.get("ns", "meanwhile") is not None


async def test_it_says_when_it_has_not_heard_for_too_long():
    kube = FlakyKube()
    kube.down = True
    async with running_informer(kube) as (informer, clock):
        await clock.advance(100)
        assert "volumes" in (informer.fault(90) or "")
        kube.down = False
        await clock.advance(60)
        assert informer.fault(90) is None
        kube.down = True
        kube.broken.set()
        await clock.advance(80)
        assert informer.fault(90) is None
        await clock.advance(20)
        assert "volumes" in (informer.fault(90) or "")
        kube.down = False
        kube.broken.clear()
        await clock.advance(60)
        await kube.create(volume("sign-of-life"))
        await settle()
        assert informer.fault(90) is None


async def test_a_watch_that_lives_does_not_hide_that_no_listing_succeeds():
    kube = FlakyKube()
    async with running_informer(kube) as (informer, clock):
        await clock.advance(1)
        list_, kube.list = kube.list, None

        async def fails(kind, **options):
            raise KubeUnavailable("too large")

        kube.list = fails
        for _ in range(30):
            await kube.create(volume(f"v{clock.monotonic():.0f}"))
            await clock.advance(60)
        assert "volumes" in (informer.fault(900) or "")
        kube.list = list_
        await clock.advance(600)
        assert informer.fault(900) is None
