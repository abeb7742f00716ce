"""The weighers."""

from __future__ import annotations

from cinderblock.operator.scheduler.model import Weigher
from cinderblock.operator.scheduler.weighers.capacity import CapacityWeigher
from cinderblock.operator.scheduler.weighers.preferred_node import PreferredNodeWeigher

DEFAULT_WEIGHERS: tuple[Weigher, ...] = (CapacityWeigher(), PreferredNodeWeigher())
