"""What the host does next about one Volume: a pure function of what was observed.

The order of the questions is the protocol (docs/protocol.md): whose volume is it, is it going away, does it exist
yet, does it still exist, does it have its size. One step at a time; after each the answer is asked again.
"""

from __future__ import annotations

from dataclasses import dataclass

from cinderblock.core.api.volume import OperationKind, Volume
from cinderblock.core.errors import (
    BackendUnavailable,
    NotReady,
    OperationPending,
    OperationTimeout,
    StorageError,
)
from cinderblock.core.names import FINALIZER_PROTECT, FINALIZER_PV
from cinderblock.drivers.base import VolumeRef
from cinderblock.operator.host.volume_status import is_lost, is_provisioned


@dataclass(frozen=True)
class Rest:
    """Nothing to do here: not ours, not yet ours, or somebody else's turn."""


@dataclass(frozen=True)
class Protect:
    """Put our finalizer back before any effect: without it a deletion would leave the data behind."""


@dataclass(frozen=True)
class Create:
    ref: VolumeRef
    size_bytes: int
    thick: bool


@dataclass(frozen=True)
class Seal:
    ref: VolumeRef


@dataclass(frozen=True)
class Check:
    """Ask the backend whether the object is really there."""

    ref: VolumeRef


@dataclass(frozen=True)
class Extend:
    ref: VolumeRef
    target_bytes: int


@dataclass(frozen=True)
class Wait:
    """A deletion that something stands in the way of."""

    reason: str
    message: str


@dataclass(frozen=True)
class Delete:
    ref: VolumeRef


@dataclass(frozen=True)
class Settle:
    """It is as it should be; say so where the status does not."""


Step = Rest | Protect | Create | Seal | Check | Extend | Wait | Delete | Settle


@dataclass(frozen=True)
class VolumeView:
    volume: Volume
    host: str
    unsealed: bool = False  # this process stored Provisioned, or saw it stored, and has not sealed yet
    suspect: bool = False  # an inventory or a driver's answer did not know it
    orphans_only: bool = False  # every entry left is one that the driver itself can judge (attachments.py)


def current_ref(volume: Volume) -> VolumeRef | None:
    """What the standing grant calls the volume."""
    status = volume.status
    if status.allocation is None or status.handle is None:
        return None
    return VolumeRef(status.handle, status.allocation.grant)


def ref_of(volume: Volume) -> VolumeRef:
    """As `current_ref`, for a Volume that certainly has a grant. Errors: NotReady."""
    ref = current_ref(volume)
    if ref is None:
        raise NotReady("the volume has no grant")
    return ref


def decide_volume(view: VolumeView) -> Step:
    volume, status = view.volume, view.volume.status
    ref = current_ref(volume)
    if ref is None or status.allocation is None or status.allocation.host != view.host:
        return Rest()
    if volume.deleting:
        return _decide_deletion(view, ref)
    if not volume.has_finalizer(FINALIZER_PROTECT):
        return Protect()
    if not is_provisioned(volume):
        if status.refusal is not None and status.refusal.grant == ref.grant:
            return Rest()
        return Create(ref, status.allocation.size_bytes, status.allocation.thick)
    if view.suspect or is_lost(volume):
        return Check(ref)
    if view.unsealed:
        return Seal(ref)
    operation = status.operation
    if operation is not None and operation.kind is OperationKind.EXTEND and operation.grant == ref.grant:
        return Extend(ref, operation.target_bytes)
    if status.allocation.size_bytes > (status.capacity_bytes or 0):
        return Extend(ref, status.allocation.size_bytes)
    return Settle()


def _decide_deletion(view: VolumeView, ref: VolumeRef) -> Step:
    volume = view.volume
    if not volume.has_finalizer(FINALIZER_PROTECT):
        return Rest()
    if volume.status.attachments and not view.orphans_only:
        nodes = ", ".join(sorted({e.node for e in volume.status.attachments}))
        return Wait("VolumeInUse", f"attached to {nodes}: delete its Attachments first")
    if volume.has_finalizer(FINALIZER_PV):
        return Wait("NamedByPV", "a PersistentVolume names it: delete that first")
    return Delete(ref)


def may_pass(error: StorageError) -> bool:
    """Whether the same pool may succeed later, or may be at work still: tried again here, not refused."""
    return isinstance(error, BackendUnavailable | OperationTimeout | OperationPending | NotReady)
