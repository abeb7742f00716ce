"""What a Pool says: pure functions from a driver's report or error to Pool.status.

Figures move all the time on a filesystem that others use too; only a change that could matter to a placement is
worth a write, so that a quiet pool costs none.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cinderblock.core.api.backend import POOL_READY, Backend, Pool, PoolSpec, PoolStatus
from cinderblock.core.api.meta import ObjectMeta, set_condition
from cinderblock.core.errors import Lost, StorageError
from cinderblock.core.names import pool_name
from cinderblock.core.units import MIB
from cinderblock.drivers.base import CanExtend, PoolReport, VolumeDriver
from cinderblock.operator.host.volume_status import MESSAGE_MAX, error_record

_SMALLEST_CHANGE_BYTES = MIB


@dataclass(frozen=True)
class PoolOwner:
    """Where a Pool belongs."""

    backend: Backend
    host: str
    node: str | None

    def new_pool(self, pool: str | None) -> Pool:
        return Pool(
            metadata=ObjectMeta(name=pool_name(self.backend.name, self.node, pool)),
            spec=PoolSpec(backend=self.backend.name, host=self.host, node=self.node, pool=pool),
        )


def _words(flag: bool) -> str:
    return "true" if flag else "false"


def capabilities(owner: PoolOwner, driver: VolumeDriver, report: PoolReport) -> dict[str, str]:
    """What extra specs match against: the driver's own facts, under those that the host itself knows."""
    online = isinstance(driver, CanExtend) and driver.online_extend
    return {
        "thin_provisioning_support": _words(report.thin),
        "thick_provisioning_support": _words(not report.thin),
        "multiattach": "false",
        **report.capabilities,
        "online_extend_support": _words(online),
        "driver": owner.backend.spec.driver,
        "backend": owner.backend.name,
        **({"node": owner.node} if owner.node is not None else {}),
    }


def _policy(owner: PoolOwner, pool: Pool) -> PoolStatus:
    """What the Backend's spec says of its pools."""
    spec = owner.backend.spec
    return pool.status.with_(
        observed_generation=pool.metadata.generation,
        over_subscription_ratio=spec.over_subscription_ratio,
        reserved_percent=spec.reserved_percent,
        physical_floor_percent=spec.physical_floor_percent,
        availability_zone=spec.availability_zone,
    )


def reported(
    owner: PoolOwner,
    pool: Pool,
    driver: VolumeDriver,
    report: PoolReport,
    now: datetime,
    *,
    closed: tuple[str, str] | None = None,
) -> PoolStatus:
    """Status after a report. `closed` = (reason, message): it serves what it holds and takes nothing new."""
    known = pool.status.pool_id
    if known is not None and known != report.pool_id:
        # The driver must have refused this at open; the id that the volumes were made under is never overwritten.
        return failed(owner, pool, Lost(f"the pool's marker says {report.pool_id}, {known} is expected"), now)
    reason, message = closed or ("Reported", "")
    status = _policy(owner, pool).with_(
        pool_id=report.pool_id,
        total_bytes=report.total_bytes,
        free_bytes=report.free_bytes,
        allocated_bytes=report.allocated_bytes,
        provisioned_bytes=report.provisioned_bytes,
        thin=report.thin,
        capabilities=capabilities(owner, driver, report),
        last_error=None,
    )
    return _with_ready(pool, status, closed is None, reason, message, now)


def failed(owner: PoolOwner, pool: Pool, error: StorageError, now: datetime) -> PoolStatus:
    """The figures stay as last seen; they are worth nothing while Ready is not True."""
    record = error_record(error, generation=owner.backend.metadata.generation, grant=0)
    return _with_ready(
        pool, _policy(owner, pool).with_(last_error=record), False, error.reason, error.message, now
    )


def closed_without_driver(pool: Pool, reason: str, message: str, now: datetime) -> PoolStatus:
    """The Backend is gone and volumes are still granted here: the Pool stays until it is empty."""
    return _with_ready(pool, pool.status, False, reason, message, now)


def _with_ready(  # noqa: PLR0917 - a sentence: whose, yes or no, why, when
    pool: Pool, status: PoolStatus, ready: bool, reason: str, message: str, now: datetime
) -> PoolStatus:
    return status.with_(
        conditions=set_condition(
            status.conditions,
            POOL_READY,
            ready,
            reason=reason,
            message=message[:MESSAGE_MAX],
            generation=pool.metadata.generation,
            now=now,
        )
    )


@dataclass(frozen=True)
class Change:
    """Whether a new status is worth a write, and whether it may wait for the next report."""

    write: bool
    figures_only: bool


def judge_change(old: PoolStatus, new: PoolStatus) -> Change:
    figures = ("free_bytes", "allocated_bytes", "provisioned_bytes")
    masked = {name: getattr(old, name) for name in figures}
    if new.with_(**masked) != old:
        return Change(write=True, figures_only=False)
    if new.provisioned_bytes != old.provisioned_bytes:
        return Change(write=True, figures_only=True)
    threshold = max(_SMALLEST_CHANGE_BYTES, min((old.total_bytes or 0) // 100, (old.free_bytes or 0) // 10))
    moved = max(
        abs((new.free_bytes or 0) - (old.free_bytes or 0)),
        abs((new.allocated_bytes or 0) - (old.allocated_bytes or 0)),
    )
    return Change(write=moved >= threshold, figures_only=True)
