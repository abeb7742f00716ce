"""Topology: a volume must be reachable from one of the requisite nodes; a pool without a node reaches all."""

from __future__ import annotations

from dataclasses import dataclass

from cinderblock.operator.scheduler.model import PlacementRequest, PoolView

_NAMED = 3


@dataclass(frozen=True)
class TopologyFilter:
    name: str = "Topology"

    def refuse(self, request: PlacementRequest, view: PoolView) -> str | None:
        node, wanted = view.pool.spec.node, request.requisite_nodes
        if node is None or not wanted or node in request.requisite:
            return None
        more = f" and {len(wanted) - _NAMED} more" if len(wanted) > _NAMED else ""
        return f"is on node {node}, the volume must be on {', '.join(wanted[:_NAMED])}{more}"
