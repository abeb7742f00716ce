"""Availability zone: asked for one, only pools that say the same one."""

from __future__ import annotations

from dataclasses import dataclass

from cinderblock.operator.scheduler.model import PlacementRequest, PoolView


@dataclass(frozen=True)
class AvailabilityZoneFilter:
    name: str = "AvailabilityZone"

    def refuse(self, request: PlacementRequest, view: PoolView) -> str | None:
        wanted, zone = request.availability_zone, view.pool.status.availability_zone
        if wanted is None or wanted == zone:
            return None
        return f"is in zone {zone}, not in {wanted}" if zone else f"is in no zone, {wanted} was asked for"
