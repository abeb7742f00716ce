"""Orphans of CSI: Volumes of the release namespace whose claim is gone and that no PersistentVolume names.

Both are read fresh, twice, two minutes apart. Only what can hold no data is deleted; the rest is reported.
"""

from __future__ import annotations

from cinderblock.core.api.builtin import PersistentVolume, PersistentVolumeClaim
from cinderblock.core.api.meta import is_true
from cinderblock.core.api.volume import PROVISIONED, ClaimReference, Volume
from cinderblock.core.kube.port import ObjectNotFound
from cinderblock.operator.control.pv_hold import names_handle
from cinderblock.operator.control.tools import Tools
from cinderblock.operator.engine.queue import Key

APART_SECONDS = 120.0
_RECHECK_SECONDS = 600.0


def holds_no_data(volume: Volume) -> bool:
    """Never made, or made empty and never attached to anything."""
    if not is_true(volume.status.conditions, PROVISIONED):
        return True
    status = volume.status
    return status.attach_generation == 0 and not status.attachments and volume.spec.source is None


class OrphanReconciler:
    """Keys are Volumes. The role adds each that serves a claim, first after two minutes."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._gone_since: dict[Key, tuple[str, float]] = {}

    async def reconcile(self, key: Key) -> float | None:
        volume = self._tools.stores.volumes.get(*key)
        if volume is None or not self.concerns(volume) or self._named(volume):
            self._gone_since.pop(key, None)
            return None
        assert volume.spec.claim_ref is not None
        if await self._claim_lives(volume.spec.claim_ref):
            self._gone_since.pop(key, None)
            return _RECHECK_SECONDS
        now = self._tools.clock.monotonic()
        uid, since = self._gone_since.get(key, ("", now))
        if uid != volume.uid:
            since = now
            self._gone_since[key] = (volume.uid, now)
        if now - since < APART_SECONDS:
            return APART_SECONDS - (now - since)
        return await self._judge(volume)

    def concerns(self, volume: Volume) -> bool:
        return (
            volume.spec.claim_ref is not None
            and volume.namespace == self._tools.release_namespace
            and not volume.deleting
        )

    def _named(self, volume: Volume) -> bool:
        handle = volume.status.handle
        return handle is not None and bool(self._tools.stores.persistent_volumes.by("handle", handle))

    async def _claim_lives(self, claim: ClaimReference) -> bool:
        try:
            found = await self._tools.kube.get(PersistentVolumeClaim, claim.name, claim.namespace)
        except ObjectNotFound:
            return False
        return found.uid == claim.uid

    async def _judge(self, cached: Volume) -> float | None:
        try:
            volume = await self._tools.kube.get(Volume, cached.name, cached.namespace)
        except ObjectNotFound:
            return None
        if volume.uid != cached.uid or not self.concerns(volume):
            return None
        handle = volume.status.handle
        if handle is not None:
            listing = await self._tools.kube.list(PersistentVolume)
            if any(names_handle(pv, handle) for pv in listing.items):
                return _RECHECK_SECONDS
        claim = volume.spec.claim_ref
        assert claim is not None
        if holds_no_data(volume):
            await self._tools.kube.delete(volume)
            return None
        await self._tools.recorder.warn(
            volume,
            "Orphaned",
            f"claim {claim.namespace}/{claim.name} is gone and no PersistentVolume names this volume, but it may"
            " hold data: delete it by hand when nobody needs it",
        )
        return _RECHECK_SECONDS
