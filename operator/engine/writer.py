"""Writes through the port and shows the answer to the store at once.

Otherwise the next reconcile of the same key would decide on what the watch has not brought yet, and conflict.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from cinderblock.core.api.meta import Resource
from cinderblock.core.kube.port import Kube
from cinderblock.core.kube.store import Store

R = TypeVar("R", bound=Resource)


class StatusWriter(Generic[R]):
    """Errors are the port's. A pair that does not differ costs nothing and answers `before`."""

    def __init__(self, kube: Kube, store: Store[R]) -> None:
        self._kube = kube
        self._store = store

    async def status(self, before: R, after: R) -> R:
        """Write what `after` changes in status."""
        if before is after or before == after:
            return before
        return self._seen(before, await self._kube.update_status(before, after))

    async def update(self, before: R, after: R) -> R:
        """Write what `after` changes in metadata and spec."""
        if before is after or before == after:
            return before
        return self._seen(before, await self._kube.update(before, after))

    def _seen(self, before: R, answer: R) -> R:
        if answer is before:
            return before
        meta = answer.metadata
        if meta.deletion_timestamp is not None and not meta.finalizers:
            self._store.remove(answer)  # that write took the last finalizer: the object is gone
        else:
            self._store.apply(answer)
        return answer
