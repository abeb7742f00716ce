"""Capacity: the request fits below the pool's limit and above its physical floor."""

from __future__ import annotations

from dataclasses import dataclass

from cinderblock.core.units import readable_bytes
from cinderblock.operator.scheduler.model import PlacementRequest, PoolView


@dataclass(frozen=True)
class CapacityFilter:
    name: str = "Capacity"

    def refuse(self, request: PlacementRequest, view: PoolView) -> str | None:
        capacity, found = view.capacity, view.room(thick=request.thick)
        if capacity is None or found is None:
            return "has reported no size"
        if found.below_floor:
            return (
                f"only {readable_bytes(capacity.free_bytes)} of {readable_bytes(capacity.total_bytes)} are really"
                f" free, less than the floor of {capacity.physical_floor_percent} %"
            )
        if request.size_bytes > found.grantable_bytes:
            return (
                f"{readable_bytes(request.size_bytes)} asked, {readable_bytes(found.grantable_bytes)} of"
                f" {readable_bytes(found.limit_bytes)} left"
            )
        return None
