"""Fresh listings heal what watches lose, and are awaited at the start."""

import asyncio
import contextlib

from fake_clock import FakeClock, settle
from fake_kube import FakeKube

from cinderblock.core.api import Volume, VolumeType
from cinderblock.core.api.builtin import Node
from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.api.volume import VolumeSpec
from cinderblock.core.kube.port import KubeUnavailable
from cinderblock.operator.engine.relist import Relister
from cinderblock.operator.engine.scope import host_scope, leader_scope
from cinderblock.operator.engine.stores import make_stores


def volume(name):
    return Volume(metadata=ObjectMeta(name=name, namespace="ns"), spec=VolumeSpec(size="1Gi"))


class Flaky(FakeKube):
    def __init__(self):
        super().__init__()
        self.down = set()

    async def list(self, kind, **options):
        if kind in self.down:
            raise KubeUnavailable(f"{kind.PLURAL} are not served")
        return await super().list(kind, **options)


@contextlib.asynccontextmanager
async def task(work):
    running = asyncio.create_task(work)
    try:
        yield running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_the_start_waits_for_every_kind_and_says_for_which(caplog):
    kube, stores, clock = Flaky(), make_stores(), FakeClock()
    kube.down = {VolumeType}
    await kube.create(volume("a"))
    relister = Relister(kube, leader_scope(stores), clock)
    async with task(relister.first()) as first:
        await clock.advance(20)
        assert not first.done()
        assert "volumetypes" in caplog.text
        assert stores.volumes.get("ns", "a") is not None
        kube.down = set()
        await clock.advance(30)
        assert first.done()
    assert all(store.synced.is_set() for store in stores.each())


async def test_a_ghost_and_an_unseen_object_come_right_soon_after_the_start_and_every_ten_minutes():
    kube, stores, clock = Flaky(), make_stores(), FakeClock()
    seen = []
    stores.volumes.subscribe(lambda old, new: seen.append((old and old.name, new and new.name)))
    ghost = await kube.create(volume("ghost"))
    relister = Relister(kube, leader_scope(stores), clock)
    await relister.first()
    await kube.delete(ghost)
    async with task(relister.run()):
        await clock.advance(11)
        assert stores.volumes.all() == []
        await clock.advance(60)
        await kube.create(volume("late"))
        await clock.advance(601)
        assert [v.name for v in stores.volumes.all()] == ["late"]
    assert seen == [(None, "ghost"), ("ghost", None), (None, "late")]


async def test_an_incomplete_round_counts_as_none_for_the_health_check():
    kube, stores, clock = Flaky(), make_stores(), FakeClock()
    relister = Relister(kube, leader_scope(stores), clock)
    await relister.first()
    at = relister.listed_at
    kube.down = {Node}
    async with task(relister.run()):
        await clock.advance(700)
        assert relister.listed_at == at
        kube.down = set()
        await clock.advance(600)
        assert relister.listed_at > at
        await settle()


def test_a_host_watches_neither_types_nor_volumes_of_persistent_kind():
    stores = make_stores()
    watched = {entry.store.kind.PLURAL: entry for entry in host_scope(stores, "h1", "n1")}
    assert "persistentvolumes" not in watched
    assert watched["volumes"].field_selector == "status.allocation.host=h1"
    assert watched["attachments"].label_selector == "cinderblock.io/host=h1"
    assert watched["pools"].field_selector == "spec.host=h1"
    assert watched["nodes"].field_selector == "metadata.name=n1"
