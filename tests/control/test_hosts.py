"""Hosts that die, nodes that go: what the leader does in their place."""

from __future__ import annotations

from control_bench import Bench

from cinderblock.core.api import Pool
from cinderblock.core.api.backend import HOST_ALIVE, POOL_READY
from cinderblock.core.api.builtin import Lease, Node
from cinderblock.core.api.meta import find_condition, is_true
from cinderblock.core.api.volume import LOST, READY, VolumePhase
from cinderblock.core.errors import GrpcCode
from cinderblock.core.kube.port import KubeUnavailable
from cinderblock.operator.control.liveness import HostLiveness


async def two_nodes(bench: Bench) -> None:
    await bench.add_backend(driver="local", node_selector={})
    await bench.add_type()
    for node in ("n1", "n2"):
        await bench.add_node(node)
        await bench.add_pool(f"b-{node}", node=node)
    await bench.settle()


async def gone_node(bench: Bench, name: str) -> None:
    await bench.kube.delete(await bench.kube.get(Node, name))
    await bench.settle()


async def test_a_dead_host_loses_the_grant_that_it_never_served():
    async with Bench() as bench:
        await two_nodes(bench)
        await bench.wait(20, alive=("n1", "n2"))
        await bench.add_volume("v")
        await bench.settle()
        assert (await bench.volume("v")).status.allocation.host == "n1"
        await bench.wait(35, alive=("n2",))
        assert (await bench.volume("v")).status.allocation.host == "n1"
        await bench.wait(15, alive=("n2",))
        status = (await bench.volume("v")).status
        assert (status.allocation.host, status.allocation.grant) == ("n2", 2)
        (attempt,) = status.scheduling.attempts
        assert (attempt.reason, attempt.pool, attempt.grpc_code) == (
            "HostLost",
            "b-n1",
            GrpcCode.UNAVAILABLE,
        )


async def test_data_on_a_dead_host_stays_and_its_pools_say_so():
    async with Bench() as bench:
        await two_nodes(bench)
        await bench.wait(5, alive=("n1", "n2"))
        await bench.add_volume("v")
        await bench.settle()
        made = await bench.make("v")
        await bench.wait(60, alive=("n2",))
        assert (await bench.volume("v")) == made
        pool = await bench.kube.get(Pool, "b-n1")
        assert not is_true(pool.status.conditions, HOST_ALIVE)
        assert is_true((await bench.kube.get(Pool, "b-n2")).status.conditions, HOST_ALIVE)
        # nothing new goes there
        await bench.add_volume("w")
        await bench.settle()
        assert (await bench.volume("w")).status.allocation.host == "n2"
        # it comes back
        await bench.wait(10, alive=("n1", "n2"))
        assert is_true((await bench.kube.get(Pool, "b-n1")).status.conditions, HOST_ALIVE)


async def test_a_deletion_does_not_wait_for_a_host_that_never_made_anything():
    async with Bench() as bench:
        await two_nodes(bench)
        await bench.wait(5, alive=("n1", "n2"))
        await bench.add_volume("v")
        await bench.settle()
        await bench.kube.delete(await bench.volume("v"))
        await bench.wait(60, alive=("n2",))
        assert await bench.gone("v")


async def test_all_hosts_count_as_alive_at_first():
    async with Bench() as bench:
        await two_nodes(bench)
        await bench.wait(60, alive=("n2",))  # n1 never had a Lease
        await bench.succeed(2)
        await bench.add_volume("v", topology={"requisite": ["n1"]})
        await bench.settle()
        assert (await bench.volume("v")).status.allocation.host == "n1"


async def test_volumes_of_a_node_that_is_gone_are_lost_and_may_be_deleted():
    async with Bench() as bench:
        await two_nodes(bench)
        await bench.add_volume("v")
        await bench.settle()
        await bench.make("v")
        await gone_node(bench, "n1")
        status = (await bench.volume("v")).status
        assert status.phase is VolumePhase.LOST
        assert is_true(status.conditions, LOST)
        assert find_condition(status.conditions, READY).reason == "Lost"
        pool = await bench.kube.get(Pool, "b-n1")
        assert find_condition(pool.status.conditions, POOL_READY).reason == "Lost"
        assert "Lost" in await bench.events()
        await bench.kube.delete(await bench.volume("v"))
        await bench.settle()
        assert await bench.gone("v")
        # the pool of the gone node is empty now
        assert [p.name for p in (await bench.kube.list(Pool)).items] == ["b-n2"]


async def test_what_was_in_work_on_a_node_that_is_gone_goes_elsewhere():
    async with Bench() as bench:
        await two_nodes(bench)
        await bench.add_volume("v")
        await bench.settle()
        await gone_node(bench, "n1")
        await bench.settle()
        assert (await bench.volume("v")).status.allocation.host == "n2"
        assert [p.name for p in (await bench.kube.list(Pool)).items] == ["b-n2"]


async def test_an_absence_in_the_cache_is_not_believed():
    async with Bench() as bench:
        await two_nodes(bench)
        await bench.add_volume("v")
        await bench.settle()
        made = await bench.make("v")
        node = await bench.kube.get(Node, "n1")
        bench.leader.stores.nodes.remove(node)
        await bench.settle()
        assert (await bench.volume("v")) == made
        assert len((await bench.kube.list(Pool)).items) == 2


async def test_a_node_whose_name_is_no_label():
    name = "n" * 80
    async with Bench() as bench:
        await bench.add_backend(driver="local", node_selector={})
        await bench.add_type()
        await bench.add_node(name)
        pool = await bench.add_pool("b-long", node=name)
        await bench.add_volume("v")
        await bench.settle()
        assert (await bench.volume("v")).status.allocation.host == pool.spec.host != name
        await bench.make("v")
        await gone_node(bench, name)
        assert (await bench.volume("v")).status.phase is VolumePhase.LOST


class Watched:
    def __init__(self, bench: Bench) -> None:
        self.turned: list[str] = []
        self.liveness = HostLiveness(bench.kube, "cinderblock-system", bench.clock, self.turned.append)


async def test_time_in_which_nobody_could_look_kills_nobody():
    bench = Bench()
    watched = Watched(bench)
    await bench.beat("h")
    await watched.liveness.poll()
    bench.clock.jump(300)
    await watched.liveness.poll()  # the first look after a long outage
    assert watched.liveness.alive("h")
    for _ in range(9):
        bench.clock.jump(5)
        await watched.liveness.poll()
    assert not watched.liveness.alive("h")
    assert watched.turned == ["h"]
    await bench.beat("h")
    await watched.liveness.poll()
    assert watched.liveness.alive("h")
    assert watched.turned == ["h", "h"]


async def test_clocks_are_not_compared():
    """A Lease whose time lies years back counts, as long as it changes."""
    bench = Bench()
    watched = Watched(bench)
    await bench.beat("h")
    for number in range(30):
        lease = await bench.kube.get(Lease, "cinderblock-host-h", "cinderblock-system")
        spec = lease.spec.with_(renew_time=f"1999-01-01T00:00:{number:02}.000000Z")
        await bench.kube.update(lease, lease.with_(spec=spec))
        bench.clock.jump(5)
        await watched.liveness.poll()
    assert watched.liveness.alive("h")
    assert watched.turned == []


async def test_unreadable_leases_do_not_stop_the_leader(monkeypatch):
    async with Bench() as bench:
        await two_nodes(bench)
        listing = bench.kube.list

        async def broken(kind, **more):
            if kind is Lease:
                raise KubeUnavailable("no answer")
            return await listing(kind, **more)

        monkeypatch.setattr(bench.kube, "list", broken)
        await bench.clock.advance(120)
        await bench.settle()
        await bench.add_volume("v")
        await bench.settle()
        assert (await bench.volume("v")).status.allocation is not None
