"""Preferred nodes, best first: the node where a pod already waits must win over a roomier one.

Its multiplier is above the capacity weigher's whole range, so room decides only between equally preferred pools.
"""

from __future__ import annotations

from dataclasses import dataclass

from cinderblock.operator.scheduler.model import PlacementRequest, PoolView


@dataclass(frozen=True)
class PreferredNodeWeigher:
    multiplier: float = 100.0
    name: str = "PreferredNode"

    def weigh(self, request: PlacementRequest, view: PoolView) -> float:
        """How many places from the end of the list the pool's node stands; 0 = not listed.

        A pool without a node serves the most preferred one as well as any.
        """
        node = view.pool.spec.node
        return float(len(request.preferred_nodes) if node is None else request.preference.get(node, 0))
