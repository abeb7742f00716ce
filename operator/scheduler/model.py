"""What the scheduler is asked, what it looks at, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

from cinderblock.core.api.backend import Pool
from cinderblock.core.capacity import PoolCapacity, Room, of_status, room


@dataclass(frozen=True)
class PlacementRequest:
    """One volume that wants a pool."""

    size_bytes: int
    thick: bool = False
    extra_specs: Mapping[str, str] = field(default_factory=dict)
    availability_zone: str | None = None
    requisite_nodes: tuple[str, ...] = ()
    preferred_nodes: tuple[str, ...] = ()
    tried_pools: frozenset[str] = frozenset()  # refused in this cycle

    @cached_property
    def requisite(self) -> frozenset[str]:
        return frozenset(self.requisite_nodes)

    @cached_property
    def preference(self) -> Mapping[str, int]:
        """How many places from the end of the list each preferred node stands."""
        count = len(self.preferred_nodes)
        return {node: count - place for place, node in reversed(list(enumerate(self.preferred_nodes)))}


@dataclass(frozen=True)
class PoolView:
    """A Pool and what the leader knows beside it."""

    pool: Pool
    provisioned_bytes: int  # sum of the grants, without the one that is being decided
    host_alive: bool = True
    blocked: str | None = None  # why its Backend takes nothing new, in words
    own_bytes: int = 0  # what the one that is being decided really takes there already

    @property
    def name(self) -> str:
        return self.pool.name

    @cached_property
    def capacity(self) -> PoolCapacity | None:
        """None while the pool has reported no figures."""
        found = of_status(self.pool.status, self.provisioned_bytes)
        if found is None or not self.own_bytes:
            return found
        # a request says all that the volume shall have, so what it has is not missing
        allocated_bytes = found.allocated_bytes
        return replace(
            found,
            free_bytes=found.free_bytes + self.own_bytes,
            allocated_bytes=None if allocated_bytes is None else max(allocated_bytes - self.own_bytes, 0),
        )

    @cached_property
    def _thin_room(self) -> Room | None:
        return room(self.capacity, thick=False) if self.capacity is not None else None

    @cached_property
    def _thick_room(self) -> Room | None:
        return room(self.capacity, thick=True) if self.capacity is not None else None

    def room(self, *, thick: bool) -> Room | None:
        """Computed once, however many filters and weighers ask."""
        return self._thick_room if thick else self._thin_room


class Filter(Protocol):
    """Says why a pool cannot take the request; None = it can."""

    @property
    def name(self) -> str: ...

    def refuse(self, request: PlacementRequest, view: PoolView) -> str | None: ...


class Weigher(Protocol):
    """A raw weight, more = better; normalised over the candidates and multiplied."""

    @property
    def name(self) -> str: ...

    @property
    def multiplier(self) -> float: ...

    def weigh(self, request: PlacementRequest, view: PoolView) -> float: ...


@dataclass(frozen=True)
class RankedPool:
    view: PoolView
    weight: float


@dataclass(frozen=True)
class RefusedPool:
    pool: str
    filter: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """The pools that can take the request, best first, and the others with the filter that refused each."""

    candidates: tuple[RankedPool, ...]
    refused: tuple[RefusedPool, ...]
