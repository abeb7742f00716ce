"""The short form of a verdict for status, and the error that says in words why no pool fits."""

from __future__ import annotations

from cinderblock.core.api.volume import Candidate, Rejection
from cinderblock.core.errors import NoValidBackend, OutOfCapacity, StorageError
from cinderblock.core.units import readable_bytes
from cinderblock.operator.scheduler.filters import DEFAULT_FILTERS
from cinderblock.operator.scheduler.model import PlacementRequest, Verdict

_CANDIDATES = 5
_EXAMPLES = 3
_EXAMPLE_MAX = 200
_ORDER = tuple(known.name for known in DEFAULT_FILTERS)
# refused by one of these, a pool might have had the room
_MAY_PASS_LATER = frozenset({"Readiness", "Retry"})
_CAPACITY = "Capacity"


def candidates(verdict: Verdict) -> tuple[Candidate, ...]:
    """The first five."""
    return tuple(Candidate(pool=c.view.name, weight=c.weight) for c in verdict.candidates[:_CANDIDATES])


def rejections(verdict: Verdict) -> tuple[Rejection, ...]:
    """Per filter, in the filters' order: how many pools it refused, and three of them with the reason."""
    by_filter: dict[str, list[str]] = {}
    for refusal in verdict.refused:
        by_filter.setdefault(refusal.filter, []).append(f"{refusal.pool}: {refusal.reason}"[:_EXAMPLE_MAX])
    names = sorted(by_filter, key=lambda n: (_ORDER.index(n) if n in _ORDER else len(_ORDER), n))
    return tuple(
        Rejection(filter=name, count=len(by_filter[name]), examples=tuple(by_filter[name][:_EXAMPLES]))
        for name in names
    )


def no_pool(request: PlacementRequest, verdict: Verdict) -> StorageError:
    """OutOfCapacity where room is all that lacks in every pool that fits otherwise, else NoValidBackend."""
    size = readable_bytes(request.size_bytes)
    filters = {refusal.filter for refusal in verdict.refused}
    if not filters:
        return NoValidBackend(f"no pool exists that could take {size}: create a Backend")
    message = f"no pool can take {size}; " + "; ".join(
        f"{r.filter} refused {r.count} ({r.examples[0]}{', ...' if r.count > 1 else ''})"
        for r in rejections(verdict)
    )
    if _CAPACITY in filters and not filters & _MAY_PASS_LATER:
        return OutOfCapacity(message)
    return NoValidBackend(message)
