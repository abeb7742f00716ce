"""The client of the benchmark: what it calls done, gone and failed."""

import asyncio

import pytest
from fake_kube import FakeKube
from tools.bench import bare_pipeline
from tools.bench.kinds import BARE_FINALIZER, BARE_HOST, BareSpec, BareVolume
from tools.bench.load import Load
from tools.shell import ToolError

from cinderblock.core.api.meta import ObjectMeta


def bare(name: str) -> BareVolume:
    meta = ObjectMeta(name=name, namespace="bench", finalizers=(BARE_FINALIZER,))
    return BareVolume(metadata=meta, spec=BareSpec(size="1Gi"))


def load_of(kube: FakeKube, timeout: float = 10.0) -> Load[BareVolume]:
    return Load(kube, BareVolume, "bench", lambda obj: obj.status.phase == "Available", timeout=timeout)


async def provide(kube: FakeKube, name: str) -> None:
    """The other side: makes an object available once it is there."""
    while True:
        for obj in (await kube.list(BareVolume, namespace="bench")).items:
            if obj.name == name:
                await kube.update_status(obj, obj.with_(status=obj.status.with_(phase="Available")))
                return
        await asyncio.sleep(0)


async def test_an_object_is_done_when_the_watch_says_so_and_gone_after_its_deletion():
    kube = FakeKube()
    load = load_of(kube)
    async with load.watching():
        waiting = asyncio.create_task(load.create(bare("one")))
        await provide(kube, "one")
        timing = await waiting
        assert timing.seconds > 0
        assert load.seen("one").status.phase == "Available"
        (left,) = await load.delete_all(finalizer=BARE_FINALIZER)
        assert left.done > timing.done
    assert (await kube.list(BareVolume, namespace="bench")).items == []


async def test_an_object_that_never_becomes_ready_is_an_error_that_shows_its_state():
    kube = FakeKube()
    load = load_of(kube, timeout=0.2)
    async with load.watching():
        with pytest.raises(ToolError, match="stuck was not done after"):
            await load.create(bare("stuck"))


async def test_a_burst_gives_one_timing_for_each_object():
    kube = FakeKube()
    load = load_of(kube)
    names = [f"b{i}" for i in range(40)]
    async with load.watching():
        waiting = asyncio.create_task(load.burst([bare(name) for name in names]))
        for name in names:
            await provide(kube, name)
        assert len(await waiting) == 40


def test_the_bare_pipeline_decides_each_step_once():
    fresh = bare("x").to_api()
    granted = {**fresh, "status": bare_pipeline.allocate(fresh)}
    assert granted["status"]["allocation"]["host"] == BARE_HOST
    assert bare_pipeline.allocate(granted) is None
    made = {**granted, "status": {**granted["status"], **(bare_pipeline.provide(granted) or {})}}
    assert BareVolume.model_validate(made).status.phase == "Available"
    assert bare_pipeline.provide(made) is None
