"""Which PersistentVolume keeps a Volume from being deleted (finalizer cinderblock.io/pv). Pure."""

from __future__ import annotations

from collections.abc import Iterable

from cinderblock.core.api.builtin import PersistentVolume
from cinderblock.core.names import CSI_DRIVER

_LET_GO = frozenset({"Released", "Failed"})


def names_handle(pv: PersistentVolume, handle: str) -> bool:
    csi = pv.spec.csi
    return csi is not None and csi.driver == CSI_DRIVER and csi.volume_handle == handle


def holds(pv: PersistentVolume) -> bool:
    """False only for one that is Released or Failed with policy Delete: its provisioner asks for the deletion."""
    return not (pv.status.phase in _LET_GO and pv.spec.persistent_volume_reclaim_policy == "Delete")


def holder(pvs: Iterable[PersistentVolume]) -> str | None:
    """The first by name that holds."""
    return min((pv.name for pv in pvs if holds(pv)), default=None)
