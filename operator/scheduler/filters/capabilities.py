"""Capabilities: what the type's extra specs want, against what the pool says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from cinderblock.core.extra_specs import capability_of, satisfies
from cinderblock.operator.scheduler.model import PlacementRequest, PoolView


@dataclass(frozen=True)
class CapabilitiesFilter:
    name: str = "Capabilities"

    def refuse(self, request: PlacementRequest, view: PoolView) -> str | None:
        for key, wanted in request.extra_specs.items():
            capability = capability_of(key)
            if capability is None:
                continue
            value = view.pool.status.capabilities.get(capability)
            if not satisfies(value, wanted):
                has = f"has {value}" if value is not None else "says nothing of it"
                return f"{capability} must be {wanted!r}, the pool {has}"
        return None
