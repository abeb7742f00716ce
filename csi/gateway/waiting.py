"""Waiting for what others write: futures per object, woken by the store that the watch feeds.

A wait costs next to nothing while nothing changes: a fresh read now and then, in case the watch is deaf. An
absence in the cache is never believed: a fresh read decides.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from cinderblock.core.api.meta import Resource
from cinderblock.core.errors import OperationPending
from cinderblock.core.kube.port import Kube, ObjectNotFound
from cinderblock.core.kube.store import Store, StoreKey, key_of

R = TypeVar("R", bound=Resource)
T = TypeVar("T")

_FRESH_EVERY = 10.0


class Cache(Generic[R]):
    """The store of one kind with fresh reads and waiters beside it."""

    def __init__(self, kube: Kube, store: Store[R]) -> None:
        self._kube = kube
        self.store = store
        self._waiting: dict[StoreKey, set[asyncio.Event]] = {}
        store.subscribe(self._changed)

    async def fresh(self, namespace: str | None, name: str) -> R | None:
        """A fresh read, taken into the store; None = gone for sure."""
        try:
            obj = await self._kube.get(self.store.kind, name, namespace)
        except ObjectNotFound:
            stale = self.store.get(namespace, name)
            if stale is not None:
                self.store.remove(stale)
            return None
        self.store.apply(obj)
        return obj

    async def get(self, namespace: str | None, name: str) -> R | None:
        """From the cache; a miss is confirmed by a fresh read."""
        return self.store.get(namespace, name) or await self.fresh(namespace, name)

    async def until(
        self,
        obj: R,
        judge: Callable[[R | None], T | None],
        *,
        answer_by: float,
        pending: Callable[[R | None], str],
    ) -> T:
        """Wait until `judge` gives something; it is asked now and at every change of the object.

        `judge` gets None only after a fresh read said that the object, this one by UID, is gone. Errors: what
        `judge` raises; OperationPending with the text of `pending` when time.monotonic() reaches `answer_by`.
        """
        self.store.apply(obj)
        key = key_of(obj)
        changed = asyncio.Event()
        self._waiting.setdefault(key, set()).add(changed)
        try:
            while True:
                changed.clear()
                seen = self.store.get(*key)
                if seen is None or seen.uid != obj.uid:
                    seen = await self.fresh(*key)
                    if seen is not None and seen.uid != obj.uid:
                        seen = None
                if (verdict := judge(seen)) is not None:
                    return verdict
                left = answer_by - time.monotonic()
                if left <= 0:
                    raise OperationPending(pending(seen))
                if not await _set_within(changed, min(left, _FRESH_EVERY)) and left > _FRESH_EVERY:
                    await self.fresh(*key)
        finally:
            waiting = self._waiting[key]
            waiting.discard(changed)
            if not waiting:
                del self._waiting[key]

    async def until_gone(self, obj: R, *, answer_by: float, pending: Callable[[R | None], str]) -> None:
        """Wait until this very object (by UID) does not exist any more."""
        await self.until(
            obj, lambda seen: True if seen is None else None, answer_by=answer_by, pending=pending
        )

    def _changed(self, old: R | None, new: R | None) -> None:
        obj = new or old
        if obj is not None:
            for event in self._waiting.get(key_of(obj), ()):
                event.set()


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
