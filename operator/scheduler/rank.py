"""Filters, then weighers: the verdict on one request. Deterministic: ties go by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cinderblock.operator.scheduler.filters import DEFAULT_FILTERS
from cinderblock.operator.scheduler.model import (
    Filter,
    PlacementRequest,
    PoolView,
    RankedPool,
    RefusedPool,
    Verdict,
    Weigher,
)
from cinderblock.operator.scheduler.weighers import DEFAULT_WEIGHERS

_DIGITS = 4  # of a weight: enough to order, few enough to read


def rank(
    request: PlacementRequest,
    views: Iterable[PoolView],
    *,
    filters: Sequence[Filter] = DEFAULT_FILTERS,
    weighers: Sequence[Weigher] = DEFAULT_WEIGHERS,
) -> Verdict:
    """Every pool is either a candidate or refused by the first filter that objects."""
    passed: list[PoolView] = []
    refused: list[RefusedPool] = []
    for view in sorted(views, key=lambda v: v.name):
        refusal = _first_refusal(request, view, filters)
        if refusal is None:
            passed.append(view)
        else:
            refused.append(refusal)
    weights = _weights(request, passed, weighers)
    ranked = [RankedPool(view, round(weight, _DIGITS)) for view, weight in zip(passed, weights, strict=True)]
    ranked.sort(key=lambda entry: (-entry.weight, entry.view.name))
    return Verdict(tuple(ranked), tuple(refused))


def _first_refusal(
    request: PlacementRequest, view: PoolView, filters: Sequence[Filter]
) -> RefusedPool | None:
    for asked in filters:
        reason = asked.refuse(request, view)
        if reason is not None:
            return RefusedPool(view.name, asked.name, reason)
    return None


def _weights(
    request: PlacementRequest, views: Sequence[PoolView], weighers: Sequence[Weigher]
) -> list[float]:
    """Sum of multiplier times min-max normalised weight; all equal counts as 0."""
    totals = [0.0] * len(views)
    for weigher in weighers:
        raw = [weigher.weigh(request, view) for view in views]
        low, spread = min(raw, default=0.0), max(raw, default=0.0) - min(raw, default=0.0)
        for index, value in enumerate(raw):
            totals[index] += weigher.multiplier * ((value - low) / spread if spread else 0.0)
    return totals
