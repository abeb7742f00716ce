"""Capacity: more virtual free bytes first; a negative multiplier stacks instead of spreading."""

from __future__ import annotations

from dataclasses import dataclass

from cinderblock.operator.scheduler.model import PlacementRequest, PoolView


@dataclass(frozen=True)
class CapacityWeigher:
    multiplier: float = 1.0
    name: str = "Capacity"

    def weigh(self, request: PlacementRequest, view: PoolView) -> float:
        found = view.room(thick=request.thick)
        return float(found.virtual_free_bytes) if found is not None else 0.0
