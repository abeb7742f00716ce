"""Volumes by handle: find, delete, grow. Creating is in create.py."""

from __future__ import annotations

import re

from cinderblock.core.api.meta import ErrorRecord
from cinderblock.core.api.volume import Volume
from cinderblock.core.errors import (
    NotFound,
    NotReady,
    OperationPending,
    PreconditionFailed,
    SizeOutOfRange,
    StorageError,
    VolumeInUse,
)
from cinderblock.core.kube.port import Conflict, Kube, ObjectNotFound, Rejected
from cinderblock.core.units import format_bytes
from cinderblock.csi.convert import error_of
from cinderblock.csi.gateway.caches import Caches
from cinderblock.csi.gateway.judge import volume_error, volume_progress
from cinderblock.csi.gateway.requests import SizeRange
from cinderblock.csi.interceptors import Call
from cinderblock.csi.work import KeyedWork

_HANDLE = re.compile(r"^[A-Za-z0-9._-]{1,128}$")  # anything else was never a handle, nor fit for a selector
_WRITE_TRIES = 5


class VolumeGateway:
    """All effects are keyed by the Volume and survive their caller; waiting is the caller's own."""

    def __init__(self, kube: Kube, caches: Caches, work: KeyedWork) -> None:
        self._kube = kube
        self._caches = caches
        self._work = work

    async def find(self, handle: str) -> Volume | None:
        """The Volume of a handle, in any namespace. A miss in the cache is confirmed by a fresh list."""
        if not _HANDLE.match(handle):
            return None
        cache = self._caches.volumes
        found = cache.store.by("handle", handle)
        if not found:
            listing = await self._kube.list(Volume, field_selector=f"status.handle={handle}")
            found = [v for v in listing.items if v.status.handle == handle]
            for volume in found:
                cache.store.apply(volume)
        # A live one before one that is going.
        return min(found, key=lambda v: v.deleting, default=None)

    async def must_find(self, handle: str) -> Volume:
        """Errors: NotFound."""
        volume = await self.find(handle)
        if volume is None:
            raise NotFound(f"volume {handle} does not exist", reason="VolumeNotFound")
        return volume

    async def delete(self, handle: str, call: Call) -> None:
        """Delete the Volume of that handle and wait until it is gone; missing = done.

        Errors: VolumeInUse, with the Volume untouched; OperationPending while it goes on.
        """
        volume = await self.find(handle)
        if volume is None:
            return

        async def ask() -> Volume | None:
            fresh = await self._caches.volumes.fresh(volume.namespace, volume.name)
            if fresh is None or fresh.status.handle != handle:
                return None
            if not fresh.deleting:
                await self._refuse_in_use(fresh)
                await self._kube.delete(fresh)
            return fresh

        key = (volume.namespace, volume.name)
        asked = await self._work.run(key, ask, call.time_left(), what=("delete", handle))
        if asked is not None:
            await self._caches.volumes.until_gone(
                asked,
                answer_by=call.answer_by,
                pending=lambda v: f"volume {handle} is being deleted: {volume_progress(v)}",
            )

    async def expand(self, handle: str, size: SizeRange, call: Call) -> Volume:
        """Grow the Volume into the range; a Volume that is large enough is left alone.

        Errors: NotFound, SizeOutOfRange, the recorded error of leader or host, OperationPending.
        """
        volume = await self.must_find(handle)
        if volume.deleting:
            raise NotFound(f"volume {handle} is being deleted", reason="VolumeNotFound")
        have_bytes = volume.status.capacity_bytes
        if have_bytes is None:
            raise NotReady(f"volume {handle} is not made yet: {volume_progress(volume)}")
        if have_bytes >= size.required_bytes:
            return _within(volume, size)

        async def ask() -> Volume:
            return await self._ask_size(volume, size.required_bytes)

        key = (volume.namespace, volume.name)
        asked = await self._work.run(key, ask, call.time_left(), what=("expand", size.required_bytes))

        def judge(seen: Volume | None) -> Volume | None:
            if seen is None or seen.deleting:
                raise NotFound(f"volume {handle} is being deleted", reason="VolumeNotFound")
            if (seen.status.capacity_bytes or 0) >= size.required_bytes:
                return _within(seen, size)
            # An error of an older spec says nothing: only what was judged since the size was asked counts.
            error = volume_error(seen)
            if error is not None and error.observed_generation >= asked.metadata.generation:
                raise _of_expansion(error)
            return None

        return await self._caches.volumes.until(
            asked,
            judge,
            answer_by=call.answer_by,
            pending=lambda v: f"volume {handle} is being extended: {volume_progress(v)}",
        )

    async def _ask_size(self, volume: Volume, size_bytes: int) -> Volume:
        """Set spec.size; also down again to a smaller growth after a larger one could not be had."""
        for _ in range(_WRITE_TRIES):
            if volume.spec.size_bytes == size_bytes:
                return volume
            after = volume.with_(spec=volume.spec.with_(size=format_bytes(size_bytes)))
            try:
                written = await self._kube.update(volume, after)
            except Rejected as error:
                raise SizeOutOfRange(str(error)) from error
            except (Conflict, ObjectNotFound):
                fresh = await self._caches.volumes.fresh(volume.namespace, volume.name)
                if fresh is None or fresh.uid != volume.uid:
                    raise NotFound(f"volume {volume.name} is gone", reason="VolumeNotFound") from None
                if (fresh.status.capacity_bytes or 0) >= size_bytes:
                    return fresh
                volume = fresh
            else:
                self._caches.volumes.store.apply(written)
                return written
        raise OperationPending(f"volume {volume.name} changes all the time: ask again")

    async def _refuse_in_use(self, volume: Volume) -> None:
        """Errors: VolumeInUse.

        An entry whose Attachment is gone is no reason: the host ends it, safely, once the Volume is being deleted.
        """
        cache = self._caches.attachments
        nodes = {a.spec.node for a in cache.store.by("volume", f"{volume.namespace}/{volume.name}")}
        for entry in volume.status.attachments:
            namespace, _, name = entry.attachment.partition("/")
            found = await cache.fresh(namespace, name)
            if found is not None and found.uid == entry.attachment_uid:
                nodes.add(entry.node)
        if nodes:
            raise VolumeInUse(f"volume {volume.status.handle} is attached to {', '.join(sorted(nodes))}")


def _within(volume: Volume, size: SizeRange) -> Volume:
    have_bytes = volume.status.capacity_bytes or 0
    if size.limit_bytes and have_bytes > size.limit_bytes:
        raise SizeOutOfRange(
            f"the volume has {have_bytes} bytes, more than limit_bytes {size.limit_bytes}: it never shrinks"
        )
    return volume


def _of_expansion(record: ErrorRecord) -> StorageError:
    """The recorded error; FAILED_PRECONDITION means "in use" to the resizer, so it is kept for just that."""
    error = error_of(record)
    if isinstance(error, PreconditionFailed) and error.reason != VolumeInUse.default_reason:
        return NotReady(error.message, reason=error.reason)
    return error
