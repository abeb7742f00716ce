"""Sums over grants: kept up by changes, with what is assumed, never below what stands."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cinderblock.core.api import Volume
from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.api.volume import Allocation, Operation, OperationKind, VolumeSpec, VolumeStatus
from cinderblock.core.clock import SystemClock
from cinderblock.core.kube.port import Listing
from cinderblock.core.kube.store import Store
from cinderblock.operator.control.ledger import Ledger, holding_of

NOW = SystemClock().now()


def volume(
    name: str,
    version: int,
    pool: str | None = None,
    size: int = 0,
    *,
    capacity: int | None = None,
    target: int = 0,
    uid: str = "",
) -> Volume:
    allocation = Allocation(backend="b", pool=pool, host="h", size_bytes=size, grant=1) if pool else None
    operation = (
        Operation(kind=OperationKind.EXTEND, started_at=NOW, deadline=NOW, target_bytes=target)
        if target
        else None
    )
    return Volume(
        metadata=ObjectMeta(
            name=name, namespace="ns", uid=uid or f"uid-{name}", resource_version=str(version)
        ),
        spec=VolumeSpec(size="1Gi"),
        status=VolumeStatus(allocation=allocation, capacity_bytes=capacity, operation=operation),
    )


def test_the_largest_of_grant_capacity_and_target_counts():
    assert holding_of(volume("v", 1)) is None
    assert holding_of(volume("v", 1, "p", 5)).size_bytes == 5
    assert holding_of(volume("v", 1, "p", 5, capacity=7)).size_bytes == 7
    assert holding_of(volume("v", 1, "p", 5, capacity=7, target=9)).size_bytes == 9


def test_it_follows_the_store_and_tells_what_was_freed():
    store, freed = Store(Volume), []
    store.apply(volume("old", 1, "p", 3))
    ledger = Ledger(store, freed.append)
    store.apply(volume("v", 2, "p", 5))
    assert ledger.provisioned_bytes("p") == 8
    assert ledger.provisioned_bytes("p", without=("ns", "v")) == 3
    store.apply(volume("v", 3, "q", 5))
    assert (ledger.provisioned_bytes("p"), ledger.provisioned_bytes("q")) == (3, 5)
    assert freed == ["p"]
    store.remove(volume("v", 4, "q", 5))
    assert ledger.provisioned_bytes("q") == 0
    assert freed == ["p", "q"]
    ledger.close()
    store.apply(volume("v", 5, "q", 5))
    assert ledger.provisioned_bytes("q") == 0


def test_an_assumption_counts_until_a_newer_version_is_seen():
    store = Store(Volume)
    ledger = Ledger(store)
    store.apply(volume("v", 5))
    ledger.assume(volume("v", 5), volume("v", 5, "p", 10))
    assert ledger.provisioned_bytes("p") == 10
    assert ledger.assumed_in_pool("p")
    store.apply(volume("v", 4))  # older news change nothing
    assert ledger.provisioned_bytes("p") == 10
    store.apply(volume("v", 6))  # somebody else wrote first: ours can only conflict
    assert ledger.provisioned_bytes("p") == 0
    assert not ledger.assumed_in_pool("p")


def test_a_watch_that_lags_behind_a_fresh_read_settles_nothing():
    store = Store(Volume)
    ledger = Ledger(store)
    store.apply(volume("v", 4))
    ledger.assume(volume("v", 5), volume("v", 5, "p", 10))
    store.apply(volume("v", 5))  # what it was decided on, at last
    assert ledger.provisioned_bytes("p") == 10
    store.apply(volume("v", 6))
    assert ledger.provisioned_bytes("p") == 0


def test_two_assumptions_of_one_volume_both_count():
    """The first answer was lost; the second try went elsewhere. Either may land."""
    store = Store(Volume)
    ledger = Ledger(store)
    store.apply(volume("v", 5))
    ledger.assume(volume("v", 5), volume("v", 5, "p", 10))
    second = ledger.assume(volume("v", 5), volume("v", 5, "q", 10))
    assert (ledger.provisioned_bytes("p"), ledger.provisioned_bytes("q")) == (10, 10)
    assert ledger.assumed_in_backend("b")
    ledger.drop(("ns", "v"), second)
    assert (ledger.provisioned_bytes("p"), ledger.provisioned_bytes("q")) == (10, 0)
    store.apply(volume("v", 6, "p", 10))
    assert ledger.provisioned_bytes("p") == 10
    assert not ledger.assumed_in_backend("b")


def test_an_extend_on_its_way_is_not_counted_twice():
    store = Store(Volume)
    ledger = Ledger(store)
    store.apply(volume("v", 5, "p", 10))
    ledger.assume(volume("v", 5, "p", 10), volume("v", 5, "p", 15))
    assert ledger.provisioned_bytes("p") == 15


def test_an_assumption_ends_with_its_volume():
    store = Store(Volume)
    ledger = Ledger(store)
    store.apply(volume("v", 5))
    ledger.assume(volume("v", 5), volume("v", 5, "p", 10))
    store.replace(Listing([], "9"))
    assert ledger.provisioned_bytes("p") == 0
    store.apply(volume("v", 10, uid="another"))
    assert ledger.provisioned_bytes("p") == 0


changes = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from([None, "p", "q"]),
        st.integers(1, 9),
        st.sampled_from(["apply", "remove", "assume", "drop"]),
    ),
    max_size=40,
)


@given(changes)
def test_the_sums_are_the_sums(steps):
    """Whatever came in which order, a pool counts at least what stands there, and exactly it when all is settled."""
    store = Store(Volume)
    ledger = Ledger(store)
    assumed = []
    for version, (name, pool, size, step) in enumerate(steps, start=1):
        known = store.get("ns", name)
        if step == "apply":
            store.apply(volume(name, version, pool, size))
        elif step == "remove" and known is not None:
            store.remove(known)
        elif step == "assume" and known is not None:
            assumed.append(((("ns", name)), ledger.assume(known, volume(name, version, pool or "p", size))))
        elif step == "drop" and assumed:
            ledger.drop(*assumed.pop())
        for each in ("p", "q"):
            standing = [holding_of(v) for v in store.all()]
            assert ledger.provisioned_bytes(each) >= sum(
                h.size_bytes for h in standing if h is not None and h.pool == each
            )
    for known in store.all():
        pool = known.status.allocation.pool if known.status.allocation else None
        size = known.status.allocation.size_bytes if known.status.allocation else 0
        store.apply(volume(known.name, 1000, pool, size))
    for each in ("p", "q"):
        standing = [holding_of(v) for v in store.all()]
        assert ledger.provisioned_bytes(each) == sum(
            h.size_bytes for h in standing if h is not None and h.pool == each
        )
