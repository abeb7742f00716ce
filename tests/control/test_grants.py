"""A Volume gets a pool, another pool after a refusal, or a reason; and no byte is ever granted twice."""

from __future__ import annotations

import asyncio

import pytest
from control_bench import Bench

from cinderblock.core.api import Backend, Pool, Volume
from cinderblock.core.api.backend import Provisioning
from cinderblock.core.api.meta import ObjectMeta, find_condition, is_true
from cinderblock.core.api.volume import (
    SCHEDULED,
    ClaimReference,
    VolumePhase,
    VolumeSource,
    VolumeSpec,
)
from cinderblock.core.errors import GrpcCode
from cinderblock.core.kube.port import Rejected
from cinderblock.core.names import FINALIZER_PROTECT
from cinderblock.core.units import GIB


def error_of(volume: Volume) -> tuple[str, GrpcCode]:
    assert volume.status.scheduling is not None
    assert volume.status.scheduling.error is not None
    assert volume.status.scheduling.error.observed_generation == volume.metadata.generation
    return volume.status.scheduling.error.reason, volume.status.scheduling.error.grpc_code


def pool_of(volume: Volume) -> str | None:
    return volume.status.allocation.pool if volume.status.allocation else None


async def test_a_volume_is_granted_in_one_write():
    async with Bench() as bench:
        await bench.standard(pools=2)
        await bench.add_volume("v")
        bench.kube.writes.clear()
        await bench.settle()
        volume = await bench.volume("v")
        status = volume.status
        assert [w for w in bench.kube.writes if w[1] == "Volume"] == [("status", "Volume", "v")]
        assert status.allocation is not None
        assert (status.allocation.pool, status.allocation.host) == ("p1", "operator")
        assert (status.allocation.size_bytes, status.allocation.grant, status.last_grant) == (10 * GIB, 1, 1)
        assert status.handle == volume.uid
        assert status.phase is VolumePhase.SCHEDULED
        assert is_true(status.conditions, SCHEDULED)
        assert status.scheduling is not None
        assert [c.pool for c in status.scheduling.candidates] == ["p1", "p2"]
        assert status.scheduling.epoch == 1
        assert await bench.events() == []  # none on the happy path


async def test_the_finalizer_comes_before_the_grant():
    async with Bench() as bench:
        await bench.standard()
        meta = ObjectMeta(name="bare", namespace="ns")
        await bench.kube.create(Volume(metadata=meta, spec=VolumeSpec(size="1Gi")))
        await bench.settle()
        volume = await bench.volume("bare")
        assert volume.has_finalizer(FINALIZER_PROTECT)
        assert [w[0] for w in bench.kube.writes if w[2] == "bare"] == ["create", "update", "status"]


async def test_no_pool_then_a_pool():
    async with Bench() as bench:
        await bench.add_type()
        await bench.add_volume("v")
        await bench.settle()
        volume = await bench.volume("v")
        assert error_of(volume) == ("NoValidBackend", GrpcCode.RESOURCE_EXHAUSTED)
        assert volume.status.phase is VolumePhase.PENDING
        assert await bench.events() == ["NoValidBackend"]
        # it waits without writing
        bench.kube.writes.clear()
        await bench.wait(100)
        assert [w for w in bench.kube.writes if w[1] == "Volume"] == []
        await bench.add_backend()
        await bench.add_pool("p1")
        await bench.wait(0.1)  # woken by the pool, not by its back-off
        assert pool_of(await bench.volume("v")) == "p1"


async def test_too_large_is_out_of_capacity_with_numbers():
    async with Bench() as bench:
        await bench.standard()
        await bench.add_volume("v", "101Gi")
        await bench.settle()
        volume = await bench.volume("v")
        assert error_of(volume) == ("OutOfCapacity", GrpcCode.RESOURCE_EXHAUSTED)
        assert volume.status.scheduling is not None
        assert "101Gi asked, 100Gi of 100Gi left" in volume.status.scheduling.rejections[0].examples[0]


async def test_freed_room_wakes_what_waits():
    async with Bench() as bench:
        await bench.standard()
        first = await bench.add_volume("a", "60Gi")
        await bench.settle()
        await bench.make("a")
        await bench.add_volume("b", "60Gi")
        await bench.settle()
        assert error_of(await bench.volume("b"))[0] == "OutOfCapacity"
        await bench.wait(200)  # deep in its back-off
        first = await bench.volume("a")
        await bench.kube.delete(first)
        first = await bench.volume("a")
        await bench.kube.update(first, first.without_finalizer(FINALIZER_PROTECT))
        await bench.wait(0.2)
        assert pool_of(await bench.volume("b")) == "p1"


async def test_each_refusal_goes_to_another_pool_then_a_new_cycle_begins():
    async with Bench() as bench:
        await bench.standard(pools=4)
        await bench.add_volume("v")
        await bench.settle()
        tried = [pool_of(await bench.volume("v"))]
        for _ in range(2):
            bench.kube.writes.clear()
            volume = await bench.refuse("v")
            tried.append(pool_of(volume))
            # the host's refusal, and attempt plus next grant in one write
            assert [w for w in bench.kube.writes if w[1] == "Volume"] == [("status", "Volume", "v")] * 2
        assert tried == ["p1", "p2", "p3"]
        volume = await bench.refuse("v", "BackendFault")
        assert pool_of(volume) is None
        assert volume.status.phase is VolumePhase.ERROR
        assert volume.status.scheduling is not None
        assert [a.grant for a in volume.status.scheduling.attempts] == [1, 2, 3]
        assert error_of(volume) == ("BackendFault", GrpcCode.INTERNAL)
        assert not is_true(volume.status.conditions, SCHEDULED)
        assert "BackendFault" in await bench.events()
        # the report itself must not start the new cycle: its back-off does
        await bench.settle()
        assert pool_of(await bench.volume("v")) is None
        await bench.wait(1.1)
        volume = await bench.volume("v")
        assert pool_of(volume) == "p1"
        assert volume.status.scheduling is not None
        assert volume.status.scheduling.attempts == ()
        assert volume.status.last_grant == 4


async def test_the_back_off_between_cycles_grows():
    async with Bench() as bench:
        await bench.standard()
        await bench.add_volume("v")
        await bench.settle()
        waits = []
        for _ in range(4):
            assert pool_of(await bench.refuse("v")) is None
            waited = 0.0
            while pool_of(await bench.volume("v")) is None:
                await bench.wait(0.5)
                waited += 0.5
            waits.append(waited)
        assert waits[0] <= 1.5
        assert waits == sorted(waits)
        assert 7.5 <= waits[3] <= 9.0


async def test_a_refused_cycle_without_further_pools_tells_the_refusal():
    async with Bench() as bench:
        await bench.standard(pools=1)
        await bench.add_volume("v")
        await bench.settle()
        volume = await bench.refuse("v", "BackendFault")
        assert error_of(volume) == ("BackendFault", GrpcCode.INTERNAL)
        assert volume.status.scheduling is not None
        assert volume.status.scheduling.error is not None
        assert "the disk said no" in volume.status.scheduling.error.message
        assert "was tried already" in volume.status.scheduling.error.message


async def test_the_last_bytes_are_granted_once():
    async with Bench() as bench:
        await bench.standard(total=10)
        await asyncio.gather(*(bench.add_volume(f"v{i}", "1Gi") for i in range(30)))
        await bench.settle()
        placed = [v for v in (await bench.kube.list(Volume)).items if v.status.allocation]
        assert len(placed) == 10


async def test_a_thick_type_takes_real_bytes():
    async with Bench() as bench:
        await bench.add_backend()
        await bench.add_type("thick", provisioning=Provisioning.THICK)
        await bench.add_pool("p1", total=100, free=15, over_subscription_ratio="20", thin=True)
        await bench.settle()
        await bench.add_volume("a", "10Gi")
        await bench.add_volume("b", "90Gi")
        await bench.settle()
        first = await bench.volume("a")
        assert first.status.allocation is not None
        assert first.status.allocation.thick
        assert error_of(await bench.volume("b"))[0] == "OutOfCapacity"


async def test_a_lost_answer_counts_until_it_is_known():
    """The write landed, the leader does not know it, and its watches are silent: the room is not granted again."""
    async with Bench() as bench:
        await bench.standard(total=10)
        await bench.add_volume("a", "10Gi")
        bench.leader.port.lost_answers = 1
        await bench.settle()
        assert pool_of(await bench.volume("a")) == "p1"
        await bench.add_volume("b", "10Gi")
        await bench.settle()
        await bench.wait(10)
        assert pool_of(await bench.volume("b")) is None


async def test_a_write_that_the_api_server_rejects_takes_no_room():
    async with Bench() as bench:
        await bench.standard(total=10)

        def reject(verb: str, kind: str, name: str) -> None:
            if (verb, name) == ("status", "a"):
                raise Rejected("the schema says no", status=422)

        bench.kube.before_write = reject
        await bench.add_volume("a", "10Gi")
        await bench.settle()
        await bench.add_volume("b", "10Gi")
        await bench.settle()
        assert pool_of(await bench.volume("a")) is None
        assert pool_of(await bench.volume("b")) == "p1"


async def test_a_write_that_never_landed_is_decided_again():
    async with Bench() as bench:
        await bench.standard(total=10)
        bench.leader.port.refused_writes = 2
        await bench.add_volume("a", "10Gi")
        await bench.wait(5)
        volume = await bench.volume("a")
        assert (pool_of(volume), volume.status.last_grant) == ("p1", 1)


async def test_a_decision_on_something_stale_conflicts_and_is_taken_again():
    async with Bench() as bench:
        await bench.standard()
        raced = False

        def race(verb: str, kind: str, name: str) -> None:
            nonlocal raced
            if verb == "status" and name == "v" and not raced:
                raced = True
                key = ("Volume", "ns", "v")
                body = bench.kube._objects[key]
                bench.kube._commit(key, {**body, "spec": {**body["spec"], "size": "20Gi"}})

        bench.kube.before_write = race
        await bench.add_volume("v", "10Gi")
        await bench.wait(1)
        volume = await bench.volume("v")
        assert volume.status.allocation is not None
        assert (volume.status.allocation.size_bytes, volume.status.last_grant) == (20 * GIB, 1)


@pytest.mark.parametrize(
    ("spec", "reason", "code"),
    [
        ({"volume_type": "gold"}, "VolumeTypeNotFound", GrpcCode.UNAVAILABLE),
        ({"source": VolumeSource(volume="other")}, "NotFound", GrpcCode.NOT_FOUND),
        ({"source": VolumeSource(snapshot="snap")}, "NotFound", GrpcCode.NOT_FOUND),
        ({"source": VolumeSource(volume="there")}, "NotSupported", GrpcCode.UNIMPLEMENTED),
        ({"size": "0"}, "InvalidRequest", GrpcCode.INVALID_ARGUMENT),
        ({"size": "60Gi"}, "SizeOutOfRange", GrpcCode.OUT_OF_RANGE),
        ({"size": "512Mi"}, "SizeOutOfRange", GrpcCode.OUT_OF_RANGE),
        (
            {"claim_ref": ClaimReference(namespace="ns", name="c", uid="u")},
            "InvalidRequest",
            GrpcCode.INVALID_ARGUMENT,
        ),
    ],
)
async def test_what_cannot_be_placed_says_why(spec, reason, code):
    async with Bench() as bench:
        await bench.add_backend()
        await bench.add_pool("p1")
        await bench.add_type(min_size="1Gi", max_size="50Gi")
        await bench.add_volume("there")
        await bench.settle()
        await bench.add_volume("v", **spec)
        await bench.settle()
        volume = await bench.volume("v")
        assert pool_of(volume) is None
        assert error_of(volume) == (reason, code)
        scheduled = find_condition(volume.status.conditions, SCHEDULED)
        assert scheduled is not None
        assert scheduled.reason == reason
        assert volume.status.phase is VolumePhase.PENDING
        assert reason in await bench.events()


async def test_the_type_may_come_later_and_the_oldest_default_wins():
    async with Bench() as bench:
        await bench.add_backend()
        await bench.add_pool("p1")
        await bench.add_volume("named", volume_type="gold")
        await bench.add_volume("plain")
        await bench.settle()
        assert error_of(await bench.volume("plain"))[0] == "VolumeTypeNotFound"
        await bench.add_type("gold", default=False)
        await bench.wait(0.1)
        assert pool_of(await bench.volume("named")) == "p1"
        assert pool_of(await bench.volume("plain")) is None
        await bench.add_type("z-older", extra_specs={"disk": "<or> none"})
        await bench.wait(0.1)
        assert error_of(await bench.volume("plain"))[0] == "NoValidBackend"


async def test_extra_specs_zone_and_topology_choose_the_pool():
    async with Bench() as bench:
        await bench.add_backend()
        for node in ("n1", "n2"):
            await bench.add_node(node)
        await bench.add_type(extra_specs={"disk": "ssd", "capabilities:iops": ">= 100"})
        await bench.add_pool("slow", capabilities={"disk": "hdd", "iops": "900"}, node="n1")
        await bench.add_pool("weak", capabilities={"disk": "ssd", "iops": "90"}, node="n2")
        await bench.add_pool("far", capabilities={"disk": "ssd", "iops": "100"}, availability_zone="z2")
        await bench.add_pool("near", capabilities={"disk": "ssd", "iops": "100"}, availability_zone="z1")
        await bench.settle()
        await bench.add_volume("v", availability_zone="z1")
        await bench.settle()
        assert pool_of(await bench.volume("v")) == "near"


async def test_another_default_type_is_not_the_type_of_what_exists():
    """The grant names its type: neither another type's limits nor its provisioning reach an extend."""
    async with Bench() as bench:
        await bench.add_backend()
        wide = await bench.add_type("wide")
        await bench.add_pool("p1", over_subscription_ratio="20", total=100, free=5)
        await bench.add_volume("v", "10Gi")
        await bench.settle()
        volume = await bench.make("v")
        assert volume.status.allocation.volume_type == "wide"
        await bench.kube.update(wide, wide.with_(spec=wide.spec.with_(is_default=False)))
        await bench.add_type("narrow", max_size="10Gi", provisioning=Provisioning.THICK)
        await bench.settle()
        await bench.resize("v", "20Gi")
        volume = await bench.volume("v")
        assert volume.status.allocation.size_bytes == 20 * GIB
        assert (volume.status.allocation.volume_type, volume.status.allocation.thick) == ("wide", False)


@pytest.mark.parametrize("thin_pool", [True, False])
async def test_what_a_thick_volume_holds_already_is_no_room_that_its_extend_lacks(thin_pool):
    """50 GiB in all, 30 of them taken by the volume itself: it may grow by 15, and not by 25."""
    async with Bench() as bench:
        await bench.add_backend()
        await bench.add_type(provisioning=Provisioning.THICK if thin_pool else Provisioning.THIN)
        pool = await bench.add_pool("p1", total=50, thin=thin_pool)
        await bench.add_volume("v", "30Gi")
        await bench.settle()
        await bench.make("v")
        pool = await bench.kube.get(Pool, "p1")
        figures = pool.status.with_(free_bytes=20 * GIB, allocated_bytes=30 * GIB)
        await bench.kube.update_status(pool, pool.with_(status=figures))
        await bench.settle()
        await bench.resize("v", "55Gi")
        assert (await bench.volume("v")).status.allocation.size_bytes == 30 * GIB
        await bench.resize("v", "45Gi")
        assert (await bench.volume("v")).status.allocation.size_bytes == 45 * GIB


async def test_extend_takes_room_and_lowering_gives_it_back():
    async with Bench() as bench:
        await bench.standard(total=30)
        await bench.add_volume("v", "10Gi")
        await bench.settle()
        await bench.resize("v", "12Gi")  # before it is made: the grant stands still
        volume = await bench.volume("v")
        assert volume.status.allocation is not None
        assert volume.status.allocation.size_bytes == 10 * GIB
        volume = await bench.make("v")
        assert volume.status.allocation is not None
        assert (volume.status.allocation.size_bytes, volume.status.allocation.grant) == (12 * GIB, 1)

        await bench.resize("v", "31Gi")
        volume = await bench.volume("v")
        assert error_of(volume) == ("OutOfCapacity", GrpcCode.RESOURCE_EXHAUSTED)
        assert volume.status.allocation is not None
        assert volume.status.allocation.size_bytes == 12 * GIB
        assert is_true(volume.status.conditions, SCHEDULED)  # what stands keeps standing

        await bench.resize("v", "25Gi")
        volume = await bench.volume("v")
        assert volume.status.allocation is not None
        assert volume.status.allocation.size_bytes == 25 * GIB
        assert volume.status.scheduling is not None
        assert volume.status.scheduling.error is None
        await bench.add_volume("w", "10Gi")
        await bench.settle()
        assert pool_of(await bench.volume("w")) is None

        await bench.resize("v", "20Gi")  # the host has not followed yet: 10Gi exist
        await bench.wait(0.2)
        assert pool_of(await bench.volume("w")) == "p1"


async def test_lowering_the_wish_clears_its_error():
    async with Bench() as bench:
        await bench.standard(total=10)
        await bench.add_volume("v", "10Gi")
        await bench.settle()
        await bench.make("v")
        await bench.resize("v", "20Gi")
        assert error_of(await bench.volume("v"))[0] == "OutOfCapacity"
        await bench.resize("v", "10Gi")
        scheduling = (await bench.volume("v")).status.scheduling
        assert scheduling is not None
        assert scheduling.error is None


async def test_deleting_what_was_never_granted():
    async with Bench() as bench:
        await bench.add_volume("v")
        await bench.settle()
        await bench.kube.delete(await bench.volume("v"))
        await bench.settle()
        assert await bench.gone("v")


async def test_deleting_what_is_granted_is_the_hosts_turn():
    async with Bench() as bench:
        await bench.standard()
        await bench.add_volume("v")
        await bench.settle()
        await bench.kube.delete(await bench.volume("v"))
        await bench.settle()
        assert not await bench.gone("v")


async def test_a_backend_that_goes_gets_nothing_new():
    async with Bench() as bench:
        await bench.standard()
        await bench.add_volume("a")
        await bench.settle()
        await bench.kube.delete(await bench.kube.get(Backend, "b"))
        await bench.add_volume("v")
        await bench.settle()
        volume = await bench.volume("v")
        assert error_of(volume)[0] == "NoValidBackend"
        assert volume.status.scheduling is not None
        assert "being deleted" in volume.status.scheduling.rejections[0].examples[0]


async def test_nothing_is_written_when_nothing_changes():
    async with Bench() as bench:
        await bench.standard(pools=2)
        for number in range(5):
            await bench.add_volume(f"v{number}")
        await bench.settle()
        for number in range(5):
            await bench.make(f"v{number}")
        await bench.wait(30)
        bench.kube.writes.clear()
        await bench.wait(700)  # more than one relist
        assert [w for w in bench.kube.writes if w[1] != "Lease"] == []


async def test_reports_of_a_full_pool_write_nothing_to_what_waits():
    async with Bench() as bench:
        await bench.standard(total=10)
        await bench.add_volume("v", "11Gi")
        await bench.settle()
        bench.kube.writes.clear()
        for free in (9, 8, 7):
            pool = await bench.kube.get(Pool, "p1")
            await bench.kube.update_status(
                pool, pool.with_(status=pool.status.with_(free_bytes=free * GIB, allocated_bytes=0))
            )
            await bench.wait(200)
        assert [w for w in bench.kube.writes if w[1] == "Volume"] == []


# terms ---------------------------------------------------------------------------------------------------
