"""Retry exclusion: a pool that refused in this cycle is not asked again in it."""

from __future__ import annotations

from dataclasses import dataclass

from cinderblock.operator.scheduler.model import PlacementRequest, PoolView


@dataclass(frozen=True)
class RetryFilter:
    name: str = "Retry"

    def refuse(self, request: PlacementRequest, view: PoolView) -> str | None:
        return "was tried already" if view.name in request.tried_pools else None
