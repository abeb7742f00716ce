"""Capacity: more virtual free bytes first; a negative multiplier stacks instead of spreading."""

from __future__ import annotations

from dataclasses import dataclass

from cinderblock.core.capacity import of_status, room
from cinderblock.operator.scheduler.model import PlacementRequest, PoolView


@dataclass(frozen=True)
class CapacityWeigher:
    multiplier: float = 1.0
    name: str = "Capacity"

    def weigh(self, request: PlacementRequest, view: PoolView) -> float:
        capacity = of_status(view.pool.status, view.provisioned_bytes)
        return float(room(capacity, thick=request.thick).virtual_free_bytes) if capacity is not None else 0.0
