"""Kubernetes Events for people: what `kubectl describe` shows when something needs attention.

Aggregated here, because a fault that lasts repeats itself at every retry: one Event per object and reason, its
count patched at most once a minute. An Event is never worth a failed reconcile, so faults are only logged.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime

from cinderblock.core.api.builtin import Event
from cinderblock.core.api.meta import ObjectMeta, Resource
from cinderblock.core.clock import Clock
from cinderblock.core.kube.port import Kube, KubeError, ObjectExists, ObjectNotFound, event_of

_REPEAT_SECONDS = 60.0
_NEW_MESSAGE_SECONDS = 10.0
_MESSAGE_MAX = 1024
_REMEMBERED = 2048
_NAME_MAX = 253

_log = logging.getLogger(__name__)


@dataclass
class _Entry:
    """What was posted of one (object, reason); `event` is None until the API server answered."""

    event: Event | None
    count: int
    message: str
    written_at: float


class EventRecorder:
    def __init__(self, kube: Kube, component: str, clock: Clock, *, instance: str = "") -> None:
        self._kube = kube
        self._component = component
        self._clock = clock
        # part of every name: whoever may only create and patch Events never meets one of an earlier process
        self._instance = instance or uuid.uuid4().hex[:8]
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()

    async def warn(self, obj: Resource, reason: str, message: str) -> None:
        """Post or repeat a Warning about an object. Never fails."""
        key, now = (obj.uid or f"{obj.namespace}/{obj.name}", reason), self._clock.monotonic()
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(None, 0, "", float("-inf"))
            while len(self._entries) > _REMEMBERED:
                self._entries.popitem(last=False)
        self._entries.move_to_end(key)
        entry.count += 1
        message = message[:_MESSAGE_MAX]
        pause = _REPEAT_SECONDS if message == entry.message else _NEW_MESSAGE_SECONDS
        if now - entry.written_at < pause:
            return
        entry.written_at, entry.message = now, message
        try:
            entry.event = await self._write(obj, reason, entry)
        except KubeError as error:
            _log.warning("event %s about %s %s was not posted: %s", reason, obj.KIND, obj.name, error)

    async def _write(self, obj: Resource, reason: str, entry: _Entry) -> Event:
        stamp = self._clock.now()
        if entry.event is not None:
            try:
                return await self._repeat(entry.event, entry, stamp)
            except ObjectNotFound:
                pass  # Events live for an hour
        fresh = self._compose(obj, reason, entry, stamp)
        try:
            return await self._kube.create(fresh)
        except ObjectExists:
            # ours, forgotten since: the name says which object and reason
            known = await self._kube.get(Event, fresh.name, fresh.namespace)
            entry.count += known.count
            return await self._repeat(known, entry, stamp)

    async def _repeat(self, event: Event, entry: _Entry, stamp: datetime) -> Event:
        after = event.with_(count=entry.count, message=entry.message, last_timestamp=stamp)
        return await self._kube.update(event, after)

    def _compose(self, obj: Resource, reason: str, entry: _Entry, stamp: datetime) -> Event:
        digest = hashlib.sha256(
            f"{obj.uid}/{reason}/{self._component}/{self._instance}".encode()
        ).hexdigest()[:16]
        return Event(
            metadata=ObjectMeta(
                name=f"{obj.name[: _NAME_MAX - 17].rstrip('.-')}.{digest}",
                namespace=obj.namespace or "default",
            ),
            involved_object=event_of(obj),
            reason=reason,
            message=entry.message,
            count=entry.count,
            first_timestamp=stamp,
            last_timestamp=stamp,
            source={"component": self._component},
            reporting_component=self._component,
            reporting_instance=self._instance,
        )
