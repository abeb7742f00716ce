"""The filters, in the order in which they are asked: facts that do not change by waiting come first, room last,
so that a pool refused for its room fits in every other way."""

from __future__ import annotations

from cinderblock.operator.scheduler.filters.availability_zone import AvailabilityZoneFilter
from cinderblock.operator.scheduler.filters.capabilities import CapabilitiesFilter
from cinderblock.operator.scheduler.filters.capacity import CapacityFilter
from cinderblock.operator.scheduler.filters.readiness import ReadinessFilter
from cinderblock.operator.scheduler.filters.retry import RetryFilter
from cinderblock.operator.scheduler.filters.topology import TopologyFilter
from cinderblock.operator.scheduler.model import Filter

DEFAULT_FILTERS: tuple[Filter, ...] = (
    AvailabilityZoneFilter(),
    TopologyFilter(),
    ReadinessFilter(),
    CapabilitiesFilter(),
    RetryFilter(),
    CapacityFilter(),
)
