"""Leaders follow each other: what waits is stamped first, late writes conflict, and any write may be the last."""

from __future__ import annotations

import asyncio

import pytest
from control_bench import Bench, Leader, Mortal

from cinderblock.core.api import Volume
from cinderblock.core.api.meta import is_true
from cinderblock.core.api.volume import (
    Scheduling,
    VolumePhase,
    VolumeStatus,
)
from cinderblock.core.kube.port import Conflict, KubeUnavailable, Rejected
from cinderblock.core.kube.store import Store
from cinderblock.core.units import GIB
from cinderblock.operator.control.ledger import Ledger
from cinderblock.operator.control.takeover import take_over
from cinderblock.operator.control.volume_status import stamped


def pool_of(volume: Volume) -> str | None:
    return volume.status.allocation.pool if volume.status.allocation else None


async def test_a_new_leader_stamps_what_waits_and_a_late_write_conflicts():
    async with Bench() as bench:
        await bench.add_type()
        await bench.add_volume("v")
        await bench.settle()
        decided_on = await bench.volume("v")  # what the old leader decided on, before it was stopped
        await bench.leader.stop()
        bench.leader = Leader(bench.kube, bench.clock, 2)
        await bench.leader.start()
        await bench.settle()
        scheduling = (await bench.volume("v")).status.scheduling
        assert scheduling is not None
        assert scheduling.epoch == 2
        late = decided_on.with_(status=decided_on.status.with_(last_grant=1))
        with pytest.raises(Conflict):
            await bench.kube.update_status(decided_on, late)


async def test_every_waiting_volume_is_stamped_before_the_first_grant():
    async with Bench() as bench:
        await bench.add_type()
        names = [f"v{i}" for i in range(100)]
        for name in names:
            await bench.add_volume(name, "1Gi")
        await bench.settle()
        await bench.leader.stop()
        await bench.add_backend()
        await bench.add_pool("p1")
        epochs_at_first_grant: list[int] = []

        def watch(verb: str, kind: str, name: str) -> None:
            bodies = [b for key, b in bench.kube._objects.items() if key[0] == "Volume"]
            if not epochs_at_first_grant and any("allocation" in b["status"] for b in bodies):
                epochs_at_first_grant.extend(b["status"]["scheduling"]["epoch"] for b in bodies)

        bench.kube.after_write = watch
        await bench.succeed(2)
        await bench.settle()
        assert epochs_at_first_grant == [2] * 100
        assert all(v.status.allocation for v in (await bench.kube.list(Volume)).items)


async def test_what_a_predecessor_wrote_late_is_counted():
    """It landed before the stamp, and no watch has told of it yet."""
    bench = Bench()
    made = await bench.add_volume("v")
    store = Store(Volume)
    store.replace(await bench.kube.list(Volume))
    allocation = {"backend": "b", "pool": "p1", "host": "operator", "sizeBytes": 10, "grant": 1}
    status = VolumeStatus.model_validate({"allocation": allocation, "lastGrant": 1})
    await bench.kube.update_status(made, made.with_(status=status))
    await take_over(bench.kube, store, 2, bench.clock)
    assert Ledger(store).provisioned_bytes("p1") == 10
    scheduling = (await bench.volume("v")).status.scheduling
    assert scheduling is not None
    assert scheduling.epoch == 2  # its host may still refuse


async def test_a_hand_over_outlasts_an_outage_and_one_volume_that_nobody_can_write():
    """An object from before a stricter schema refuses every write; it must not keep all others from a leader."""
    bench = Bench()
    for name in ("v", "w"):
        await bench.add_volume(name)
    store = Store(Volume)
    kube, unanswered = bench.kube, {"list": 2}
    listing = kube.list

    async def unsure(kind, **selectors):
        if unanswered["list"]:
            unanswered["list"] -= 1
            raise KubeUnavailable("no answer")
        return await listing(kind, **selectors)

    def refuse(verb, kind, name):
        if name == "v":
            raise Rejected("the schema says no", status=422)

    kube.list, kube.before_write = unsure, refuse
    taking = asyncio.ensure_future(take_over(kube, store, 2, bench.clock))
    for _ in range(10):
        await bench.clock.advance(1)
    assert taking.done()
    await taking
    assert store.synced.is_set()
    assert (await bench.volume("w")).status.scheduling.epoch == 2


async def test_what_does_not_wait_is_not_stamped():
    async with Bench() as bench:
        await bench.standard()
        await bench.add_volume("v")
        await bench.settle()
        await bench.make("v")
        bench.kube.writes.clear()
        await bench.succeed(2)
        await bench.settle()
        assert [w for w in bench.kube.writes if w[1] == "Volume"] == []


async def test_two_leaders_never_grant_the_last_bytes_twice():
    """The old leader decided, was stopped before its write went out, and comes back after the hand-over."""
    async with Bench() as bench:
        await bench.standard(total=10)
        bench.leader.port.dead.set()  # from now on its writes hang
        await bench.add_volume("a", "10Gi")
        await bench.settle()
        old = bench.leader
        late = [t for t in asyncio.all_tasks() if not t.done()]
        assert late
        decided_on = await bench.volume("a")
        bench.leader = Leader(bench.kube, bench.clock, 2)
        await bench.leader.start()
        await bench.add_volume("b", "10Gi")
        await bench.settle()
        granted = [v.name for v in (await bench.kube.list(Volume)).items if v.status.allocation]
        assert len(granted) == 1
        with pytest.raises(Conflict):
            await bench.kube.update_status(decided_on, stamped(decided_on, 1))
        await old.stop()


async def test_an_old_leader_leaves_a_newer_ones_volumes_alone():
    async with Bench() as bench:
        await bench.add_type()
        await bench.add_backend()
        made = await bench.add_volume("v")
        newer = made.status.with_(scheduling=Scheduling(epoch=9))
        await bench.kube.update_status(made, made.with_(status=newer))
        await bench.settle()
        await bench.add_pool("p1")
        await bench.wait(5)
        assert pool_of(await bench.volume("v")) is None


async def _story(bench: Bench) -> None:
    """What a day brings; every step can be repeated, hosts act on what they see."""
    for name in ("a", "b", "c"):
        if await bench.gone(name):
            await bench.add_volume(name, "4Gi")


async def _hosts_act(bench: Bench) -> None:
    """p1 refuses everything, other pools make it."""
    for seen in (await bench.kube.list(Volume)).items:
        allocation = seen.status.allocation
        if allocation is None or is_true(seen.status.conditions, "Provisioned"):
            continue
        refusal = seen.status.refusal
        if allocation.pool != "p1":
            await bench.make(seen.name)
        elif refusal is None or refusal.grant != allocation.grant:
            await bench.refuse(seen.name)


@pytest.mark.parametrize("landed", [False, True])
@pytest.mark.parametrize("die_at", range(14))
async def test_a_leader_may_die_at_any_write(die_at, landed):
    """Pools for three volumes of 4Gi: p1 refuses, p2 and p3 hold 8Gi each. The successor finishes the work."""
    async with Bench() as bench:
        await bench.leader.stop()
        overcommitted: list[str] = []

        def watch_sums(verb: str, kind: str, name: str) -> None:
            sums: dict[str, int] = {}
            for key, body in bench.kube._objects.items():
                allocation = body.get("status", {}).get("allocation") if key[0] == "Volume" else None
                if allocation:
                    sums[allocation["pool"]] = sums.get(allocation["pool"], 0) + allocation["sizeBytes"]
            overcommitted.extend(pool for pool, size in sums.items() if size > 8 * GIB)

        bench.kube.before_write = watch_sums
        await bench.succeed(1, Mortal(bench.kube, die_at, landed=landed))
        await bench.standard(pools=3, total=8)
        await _story(bench)
        for _ in range(4):
            await bench.settle()
            await _hosts_act(bench)
        await bench.succeed(2)
        for _ in range(8):
            await bench.settle()
            await _hosts_act(bench)
            await bench.wait(1.0)
        volumes = (await bench.kube.list(Volume)).items
        assert [v.name for v in volumes if v.status.phase is VolumePhase.AVAILABLE] == ["a", "b", "c"]
        assert {pool_of(v) for v in volumes} == {"p2", "p3"}
        assert overcommitted == []
