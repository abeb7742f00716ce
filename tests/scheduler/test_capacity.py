"""Capacity arithmetic: Cinder's vectors, and what must hold for every pool."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cinderblock.core.api.backend import PoolStatus
from cinderblock.core.capacity import PoolCapacity, of_status, over_subscription_ratio, room
from cinderblock.core.units import GIB


def gib(total: int, free: int, provisioned: int, **more: object) -> PoolCapacity:
    return PoolCapacity(total * GIB, free * GIB, provisioned * GIB, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pool", "virtual_free_gib"),
    [
        (gib(100, 0, 150, over_subscription_ratio="20"), 1850),
        (gib(100, 0, 150, over_subscription_ratio="auto"), 98.51),
        (gib(100, 50, 60, over_subscription_ratio="2", reserved_percent=10), 120),
        (gib(100, 30, 40, thin=False, reserved_percent=5), 30),
    ],
)
def test_vectors_of_cinder(pool: PoolCapacity, virtual_free_gib: float) -> None:
    assert round(room(pool, thick=False).virtual_free_bytes / GIB, 2) == virtual_free_gib


def test_reserve_is_floored_to_whole_units() -> None:
    pool = PoolCapacity(105, 100, 0, over_subscription_ratio="auto", reserved_percent=10)
    assert room(pool, thick=False).virtual_free_bytes == 1900


def test_auto_ratio() -> None:
    assert over_subscription_ratio(gib(100, 100, 0, over_subscription_ratio="auto")) == 20
    used = over_subscription_ratio(gib(100, 0, 150, over_subscription_ratio="auto"))
    assert round(float(used), 3) == 2.485
    grown = over_subscription_ratio(gib(100, 120, 10, over_subscription_ratio="auto"))
    assert grown == 1 + Fraction(10)  # more free than total is a report being late, not a negative use


def test_a_thin_pool_that_is_nearly_full_takes_nothing() -> None:
    pool = gib(100, 4, 10, physical_floor_percent=5)
    found = room(pool, thick=False)
    assert found.below_floor
    assert found.grantable_bytes == 0
    assert room(replace(pool, free_bytes=5 * GIB), thick=False).grantable_bytes == 1990 * GIB


def test_a_thick_request_in_a_thin_pool_counts_real_bytes() -> None:
    pool = gib(100, 40, 70, over_subscription_ratio="20")
    assert room(pool, thick=True).grantable_bytes == 30 * GIB
    assert room(replace(pool, free_bytes=10 * GIB), thick=True).grantable_bytes == 10 * GIB


def test_bytes_promised_since_the_report_are_not_promised_twice() -> None:
    # 50 of 100 are another's; the report is older than the grant of 50
    pool = gib(100, 50, 50, thin=False, allocated_bytes=0)
    assert room(pool, thick=False).grantable_bytes == 0


def test_no_figures_no_capacity() -> None:
    assert of_status(PoolStatus(), 0) is None
    assert of_status(PoolStatus(total_bytes=1), 0) is None
    found = of_status(PoolStatus(total_bytes=10, free_bytes=7, thin=False, reserved_percent=50), 3)
    assert found is not None
    assert room(found, thick=False).grantable_bytes == 2


pools = st.builds(
    PoolCapacity,
    total_bytes=st.integers(0, 10**15),
    free_bytes=st.integers(0, 10**15),
    provisioned_bytes=st.integers(0, 10**16),
    allocated_bytes=st.none() | st.integers(0, 10**15),
    thin=st.booleans(),
    over_subscription_ratio=st.sampled_from(["1", "1.5", "20", "0.5", "auto"]),
    reserved_percent=st.integers(0, 100),
    physical_floor_percent=st.integers(0, 100),
)


@given(pools, st.booleans(), st.integers(1, 10**16))
def test_a_grant_never_goes_beyond_the_limit(pool: PoolCapacity, thick: bool, size_bytes: int) -> None:
    found = room(pool, thick=thick)
    if size_bytes <= found.grantable_bytes:
        assert pool.provisioned_bytes + size_bytes <= found.limit_bytes
        if thick or not pool.thin:
            assert size_bytes <= pool.free_bytes
            assert pool.provisioned_bytes + size_bytes <= pool.total_bytes


@given(pools, st.booleans(), st.lists(st.integers(1, 10**14), max_size=20))
def test_grants_in_a_row_never_go_beyond_the_limit(pool: PoolCapacity, thick: bool, sizes: list[int]) -> None:
    """With a fixed ratio the limit stands still, whatever the order of the requests."""
    fixed = replace(pool, over_subscription_ratio="2", provisioned_bytes=0)
    limit_bytes = room(fixed, thick=thick).limit_bytes
    for size_bytes in sizes:
        if size_bytes <= room(fixed, thick=thick).grantable_bytes:
            fixed = replace(fixed, provisioned_bytes=fixed.provisioned_bytes + size_bytes)
    assert fixed.provisioned_bytes <= limit_bytes


@given(pools, st.booleans())
def test_more_provisioned_never_leaves_more_room_under_a_fixed_ratio(pool: PoolCapacity, thick: bool) -> None:
    fixed = replace(pool, over_subscription_ratio="3")
    more = replace(fixed, provisioned_bytes=fixed.provisioned_bytes + GIB)
    assert room(more, thick=thick).grantable_bytes <= room(fixed, thick=thick).grantable_bytes
