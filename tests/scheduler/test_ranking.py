"""Filters, weighers and the verdict in words."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from cinderblock.core.api.backend import POOL_READY, Pool, PoolSpec, PoolStatus
from cinderblock.core.api.meta import ObjectMeta, set_condition
from cinderblock.core.units import GIB
from cinderblock.operator.scheduler.model import PlacementRequest, PoolView, Verdict
from cinderblock.operator.scheduler.rank import rank
from cinderblock.operator.scheduler.report import candidates, no_pool, rejections
from cinderblock.operator.scheduler.weighers.capacity import CapacityWeigher

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def view(
    name: str,
    *,
    free: int = 100,
    provisioned: int = 0,
    node: str | None = None,
    zone: str | None = None,
    ready: bool | None = True,
    alive: bool = True,
    blocked: str | None = None,
    **capabilities: str,
) -> PoolView:
    conditions = ()
    if ready is not None:
        conditions = set_condition(
            (), POOL_READY, ready, reason="Opened" if ready else "Lost", message="", generation=1, now=NOW
        )
    status = PoolStatus(
        total_bytes=100 * GIB,
        free_bytes=free * GIB,
        over_subscription_ratio="1",
        availability_zone=zone,
        capabilities=capabilities,
        conditions=conditions,
    )
    spec = PoolSpec(backend="b", host=node or "operator", node=node)
    return PoolView(
        Pool(metadata=ObjectMeta(name=name), spec=spec, status=status), provisioned * GIB, alive, blocked
    )


def ask(size: int = 10, **more: object) -> PlacementRequest:
    return PlacementRequest(size_bytes=size * GIB, **more)  # type: ignore[arg-type]


def refusals(verdict: Verdict) -> dict[str, tuple[str, str]]:
    return {r.pool: (r.filter, r.reason) for r in verdict.refused}


def names(verdict: Verdict) -> list[str]:
    return [c.view.name for c in verdict.candidates]


def test_the_roomiest_pool_first_and_ties_by_name() -> None:
    verdict = rank(ask(), [view("c", provisioned=50), view("b"), view("a", provisioned=50), view("d")])
    assert names(verdict) == ["b", "d", "a", "c"]
    assert [c.weight for c in verdict.candidates] == [1.0, 1.0, 0.0, 0.0]


def test_a_negative_multiplier_stacks() -> None:
    verdict = rank(ask(), [view("a"), view("b", provisioned=50)], weighers=(CapacityWeigher(-1.0),))
    assert names(verdict) == ["b", "a"]


def test_availability_zone() -> None:
    verdict = rank(ask(availability_zone="z1"), [view("a", zone="z1"), view("b", zone="z2"), view("c")])
    assert names(verdict) == ["a"]
    assert refusals(verdict)["b"] == ("AvailabilityZone", "is in zone z2, not in z1")
    assert "no zone" in refusals(verdict)["c"][1]
    assert len(rank(ask(), [view("a", zone="z1"), view("c")]).candidates) == 2


def test_requisite_nodes_bind_local_pools_and_not_network_pools() -> None:
    verdict = rank(ask(requisite_nodes=("n1", "n2")), [view("a", node="n1"), view("b", node="n9"), view("c")])
    assert sorted(names(verdict)) == ["a", "c"]
    assert refusals(verdict)["b"][0] == "Topology"


def test_the_preferred_node_wins_over_a_roomier_pool() -> None:
    pools = [view("a", node="n1", provisioned=90), view("b", node="n2"), view("c", node="n3")]
    request = ask(requisite_nodes=("n1", "n2", "n3"), preferred_nodes=("n1", "n3", "n2"))
    assert names(rank(request, pools)) == ["a", "c", "b"]


def test_readiness() -> None:
    verdict = rank(
        ask(),
        [
            view("dead", alive=False),
            view("new", ready=None),
            view("shut", ready=False),
            view("held", blocked="its Backend is being deleted"),
        ],
    )
    found = refusals(verdict)
    assert {f for f, _ in found.values()} == {"Readiness"}
    assert "does not answer" in found["dead"][1]
    assert found["new"][1] == "has not reported yet"
    assert found["shut"][1] == "is not ready: Lost"
    assert found["held"][1] == "its Backend is being deleted"


def test_capabilities_name_what_is_wanted_and_what_is_there() -> None:
    specs = {"capabilities:disk": "ssd", "other:thing": "ignored"}
    verdict = rank(ask(extra_specs=specs), [view("a", disk="ssd"), view("b", disk="hdd"), view("c")])
    assert names(verdict) == ["a"]
    assert refusals(verdict)["b"] == ("Capabilities", "disk must be 'ssd', the pool has hdd")
    assert refusals(verdict)["c"][1].endswith("says nothing of it")


def test_capacity_says_its_numbers() -> None:
    verdict = rank(ask(10), [view("a", provisioned=95), view("b", free=4)])
    assert refusals(verdict)["a"] == ("Capacity", "10Gi asked, 5Gi of 100Gi left")
    assert "4Gi of 100Gi are really free" in refusals(verdict)["b"][1]
    assert no_pool(ask(10), verdict).reason == "OutOfCapacity"


def test_a_tried_pool_is_not_asked_again() -> None:
    verdict = rank(ask(tried_pools=frozenset({"a"})), [view("a"), view("b")])
    assert names(verdict) == ["b"]
    assert refusals(verdict)["a"][0] == "Retry"


def test_the_reason_tells_lack_of_room_from_all_else() -> None:
    full = view("full", provisioned=100, node="n1")
    request = ask(requisite_nodes=("n1",))
    # elsewhere there is room, but the volume cannot be there: what lacks is room
    assert no_pool(request, rank(request, [full, view("far", node="n2")])).reason == "OutOfCapacity"
    # the other pool might have had it
    assert no_pool(ask(), rank(ask(), [full, view("shut", ready=False)])).reason == "NoValidBackend"
    assert no_pool(ask(), rank(ask(), [])).reason == "NoValidBackend"
    assert "create a Backend" in no_pool(ask(), rank(ask(), [])).message
    only_far = rank(request, [view("far", node="n2")])
    assert no_pool(request, only_far).reason == "NoValidBackend"


def test_the_short_form_stays_short() -> None:
    many = [view(f"p{i}", provisioned=100) for i in range(9)] + [view(f"q{i}") for i in range(9)]
    verdict = rank(ask(), many)
    assert [c.pool for c in candidates(verdict)] == ["q0", "q1", "q2", "q3", "q4"]
    (only,) = rejections(verdict)
    assert (only.filter, only.count, len(only.examples)) == ("Capacity", 9, 3)
    assert only.examples[0] == "p0: 10Gi asked, 0 of 100Gi left"


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 120)), max_size=8),
    st.integers(1, 120),
    st.randoms(),
)
def test_every_pool_is_judged_and_the_order_of_pools_does_not_matter(
    figures: list[tuple[int, int]],
    size: int,
    random: object,
) -> None:
    views = [view(f"p{i}", free=f, provisioned=p) for i, (f, p) in enumerate(figures)]
    verdict = rank(ask(size), views)
    assert len(verdict.candidates) + len(verdict.refused) == len(views)
    shuffled = list(views)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert rank(ask(size), shuffled) == verdict
    for chosen in verdict.candidates:
        assert chosen.view.provisioned_bytes + size * GIB <= 100 * GIB
