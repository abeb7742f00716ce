"""Readiness: the pool's driver is open, its host lives, and its Backend takes volumes."""

from __future__ import annotations

from dataclasses import dataclass

from cinderblock.core.api.backend import POOL_READY
from cinderblock.core.api.meta import ConditionStatus, find_condition
from cinderblock.operator.scheduler.model import PlacementRequest, PoolView


@dataclass(frozen=True)
class ReadinessFilter:
    name: str = "Readiness"

    def refuse(self, request: PlacementRequest, view: PoolView) -> str | None:
        if view.pool.deleting:
            return "is being deleted"
        if view.blocked is not None:
            return view.blocked
        if not view.host_alive:
            return f"its volume host {view.pool.spec.host} does not answer"
        ready = find_condition(view.pool.status.conditions, POOL_READY)
        if ready is None:
            return "has not reported yet"
        if ready.status is not ConditionStatus.TRUE:
            return f"is not ready: {ready.message or ready.reason}"
        return None
