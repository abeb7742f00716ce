"""Capacity arithmetic: how much of a pool may still be granted.

One function for everybody who asks (scheduler, extend, GetCapacity), so that they never disagree. The rules are
Cinder's, plus two that Cinder lacks: a thin pool that is nearly full in fact takes nothing new whatever its ratio
says, and bytes promised to volumes that are not made yet count against what is really free.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from cinderblock.core.api.backend import PoolStatus
from cinderblock.core.units import GIB

AUTO = "auto"
_AUTO_OF_AN_EMPTY_POOL = Fraction(20)


@dataclass(frozen=True)
class PoolCapacity:
    """What is known of a pool. `provisioned_bytes` is the sum of the grants, never the pool's own report."""

    total_bytes: int
    free_bytes: int  # really free
    provisioned_bytes: int
    allocated_bytes: int | None = None  # really used by volumes, of the same report as free_bytes
    thin: bool = True
    over_subscription_ratio: str = "20"
    reserved_percent: int = 0
    physical_floor_percent: int = 0


@dataclass(frozen=True)
class Room:
    """What may still be granted. `limit_bytes` is what the grants may sum up to; virtual free may be below 0."""

    limit_bytes: int
    virtual_free_bytes: int
    below_floor: bool

    @property
    def grantable_bytes(self) -> int:
        """The largest grant that fits now."""
        return 0 if self.below_floor else max(self.virtual_free_bytes, 0)


def of_status(status: PoolStatus, provisioned_bytes: int) -> PoolCapacity | None:
    """The capacity of a Pool's report; None while it has reported no figures."""
    if status.total_bytes is None or status.free_bytes is None:
        return None
    return PoolCapacity(
        total_bytes=status.total_bytes,
        free_bytes=status.free_bytes,
        provisioned_bytes=provisioned_bytes,
        allocated_bytes=status.allocated_bytes,
        thin=status.thin,
        over_subscription_ratio=status.over_subscription_ratio,
        reserved_percent=status.reserved_percent,
        physical_floor_percent=status.physical_floor_percent,
    )


def over_subscription_ratio(pool: PoolCapacity) -> Fraction | int:
    """Granted against real bytes of a thin pool.

    auto = 20 for an empty pool, else 1 + granted bytes for each byte in use (Cinder's formula: the more the
    volumes really hold of what they were promised, the less is promised on top).
    """
    ratio = pool.over_subscription_ratio
    if ratio != AUTO:
        return int(ratio) if ratio.isdecimal() else Fraction(ratio)
    if pool.provisioned_bytes == 0:
        return _AUTO_OF_AN_EMPTY_POOL
    used_bytes = max(pool.total_bytes - pool.free_bytes, 0)
    return 1 + Fraction(pool.provisioned_bytes, used_bytes + GIB)


def room(pool: PoolCapacity, *, thick: bool) -> Room:
    """What a request of this kind of provisioning finds; thick also wherever the pool itself is not thin."""
    usable_bytes = pool.total_bytes - pool.total_bytes * pool.reserved_percent // 100
    if pool.thin and not thick:
        limit_bytes = int(usable_bytes * over_subscription_ratio(pool))
        floor_bytes = pool.total_bytes * pool.physical_floor_percent // 100
        return Room(limit_bytes, limit_bytes - pool.provisioned_bytes, pool.free_bytes < floor_bytes)
    virtual_free_bytes = min(usable_bytes - pool.provisioned_bytes, pool.free_bytes)
    if pool.allocated_bytes is not None:
        # what was promised since the report is not missing from its free bytes yet
        promised_bytes = max(pool.provisioned_bytes - pool.allocated_bytes, 0)
        virtual_free_bytes = min(virtual_free_bytes, pool.free_bytes - promised_bytes)
    return Room(usable_bytes, virtual_free_bytes, below_floor=False)
