"""What is done about each thing that a backend holds: pure.

Only what was never recorded (unsealed) and is wanted by nobody is deleted; what is sealed is somebody's data and
is reported, whatever the CRs say.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from cinderblock.core.api.volume import Volume
from cinderblock.drivers.base import VolumeInfo
from cinderblock.operator.host.decide_volume import current_ref
from cinderblock.operator.host.volume_status import is_lost, is_provisioned


class Verdict(StrEnum):
    KEEP = "Keep"
    SEAL = "Seal"  # recorded, and the process died before it sealed
    FOUND = "Found"  # thought lost
    UNSURE = "Unsure"  # the cache does not know it: list afresh by its handle
    DELETE = "Delete"
    REPORT = "Report"


def holds(volume: Volume, info: VolumeInfo, host: str, backend: str) -> bool:
    """Whether the Volume's standing grant is this very object."""
    allocation = volume.status.allocation
    return (
        allocation is not None
        and current_ref(volume) == info.ref
        and (allocation.host, allocation.backend) == (host, backend)
    )


def judge_cached(info: VolumeInfo, cached: Sequence[Volume], host: str, backend: str) -> Verdict:
    """By the cache, which may only say that something is wanted."""
    for volume in cached:
        if not holds(volume, info, host, backend):
            continue
        if is_lost(volume) and info.complete:
            return Verdict.FOUND
        if is_provisioned(volume) and not info.sealed:
            return Verdict.SEAL
        return Verdict.KEEP
    return Verdict.UNSURE


def judge_fresh(info: VolumeInfo, fresh: Sequence[Volume]) -> Verdict:
    """By a list of the Volumes with this handle that is younger than the inventory."""
    grant = info.ref.grant
    for volume in fresh:
        allocation = volume.status.allocation
        if allocation is not None and allocation.grant == grant:
            return Verdict.KEEP
        if volume.status.last_grant <= grant:
            # The grant was withdrawn and none followed: the next grant, or the CR's end, decides.
            return Verdict.KEEP if not info.sealed else Verdict.REPORT
    return Verdict.REPORT if info.sealed else Verdict.DELETE
