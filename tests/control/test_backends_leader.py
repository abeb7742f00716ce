"""Backends: judged, counted, held while in use."""

from __future__ import annotations

from control_bench import Bench

from cinderblock.core.api import Backend
from cinderblock.core.api.backend import ACCEPTED, BACKEND_IN_USE, POOL_READY
from cinderblock.core.api.meta import find_condition, is_true, set_condition
from cinderblock.core.kube.port import ObjectNotFound
from cinderblock.core.names import FINALIZER_PROTECT


async def get(bench: Bench, name: str = "b") -> Backend | None:
    try:
        return await bench.kube.get(Backend, name)
    except ObjectNotFound:
        return None


async def drop(bench: Bench, name: str) -> None:
    """The host cleaned up."""
    await bench.kube.delete(await bench.volume(name))
    volume = await bench.volume(name)
    await bench.kube.update(volume, volume.without_finalizer(FINALIZER_PROTECT))
    await bench.settle()


async def test_a_good_backend():
    async with Bench() as bench:
        await bench.standard(pools=2)
        backend = await get(bench)
        assert backend.has_finalizer(FINALIZER_PROTECT)
        assert is_true(backend.status.conditions, ACCEPTED)
        assert (backend.status.pools, backend.status.ready_pools) == (2, 2)
        pool = (await bench.add_pool("p3", ready=False)).name
        await bench.settle()
        assert ((await get(bench)).status.pools, (await get(bench)).status.ready_pools) == (3, 2)
        assert pool == "p3"
        assert await bench.events() == []


async def test_a_bad_one_says_what_to_fix_and_neighbours_do_not_notice():
    async with Bench() as bench:
        await bench.standard()
        await bench.add_backend("typo", driver="ceph")
        await bench.add_backend("wrong", config={"colour": "red"})
        await bench.settle()
        typo = find_condition((await get(bench, "typo")).status.conditions, ACCEPTED)
        wrong = find_condition((await get(bench, "wrong")).status.conditions, ACCEPTED)
        assert typo.reason == "UnknownDriver"
        assert "fake, local" in typo.message
        assert wrong.reason == "InvalidConfig"
        assert "spec.config.colour" in wrong.message
        assert is_true((await get(bench)).status.conditions, ACCEPTED)
        assert await bench.events() == ["InvalidConfig", "UnknownDriver"]


async def test_a_corrected_one_is_accepted_and_takes_what_waited():
    async with Bench() as bench:
        await bench.add_backend(config={"colour": "red"})
        await bench.add_type()
        await bench.add_pool("p1")
        await bench.add_volume("v")
        await bench.settle()
        volume = await bench.volume("v")
        assert "not valid" in volume.status.scheduling.rejections[0].examples[0]
        backend = await get(bench)
        await bench.kube.update(backend, backend.with_(spec=backend.spec.with_(config={})))
        await bench.wait(0.2)
        assert is_true((await get(bench)).status.conditions, ACCEPTED)
        assert (await bench.volume("v")).status.allocation is not None


async def test_a_backend_in_use_is_held_and_says_by_what():
    async with Bench() as bench:
        await bench.standard()
        for name in ("v", "w"):
            await bench.add_volume(name)
        await bench.settle()
        await bench.kube.delete(await get(bench))
        await bench.settle()
        held = find_condition((await get(bench)).status.conditions, BACKEND_IN_USE)
        assert "2 volumes are in it (ns/v, ns/w)" in held.message
        assert "VolumesExist" in await bench.events()
        await drop(bench, "v")
        assert await get(bench) is not None
        await drop(bench, "w")
        assert await get(bench) is None


async def test_the_cache_alone_never_lets_a_backend_go():
    async with Bench() as bench:
        await bench.standard()
        bench.kube.silent = True
        made = await bench.add_volume("v")
        bench.kube.silent = False
        allocation = {"backend": "b", "pool": "p1", "host": "operator", "sizeBytes": 1, "grant": 1}
        status = type(made.status).model_validate({"allocation": allocation})
        bench.kube.silent = True
        await bench.kube.update_status(made, made.with_(status=status))
        bench.kube.silent = False
        await bench.kube.delete(await get(bench))
        await bench.settle()
        assert await get(bench) is not None


async def test_a_pool_that_turns_ready_takes_what_waited():
    async with Bench() as bench:
        await bench.add_backend()
        await bench.add_type()
        pool = await bench.add_pool("p1", ready=False)
        await bench.add_volume("v")
        await bench.wait(100)
        pool = await bench.kube.get(type(pool), "p1")
        conditions = set_condition(
            pool.status.conditions, POOL_READY, True, reason="Opened", generation=1, now=bench.clock.now()
        )
        await bench.kube.update_status(pool, pool.with_(status=pool.status.with_(conditions=conditions)))
        await bench.wait(0.2)
        assert (await bench.volume("v")).status.allocation is not None
