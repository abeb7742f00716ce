"""The typed cache of one kind, fed by watches, listings and the answers to our own writes.

Three feeds race with each other, so every change is ordered by resourceVersion: what is older than what is known
is ignored, and a removal is remembered for a while, so that a late answer to a write cannot bring a ghost back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

from cinderblock.core.api.meta import Resource
from cinderblock.core.kube.port import Listing

R = TypeVar("R", bound=Resource)
StoreKey = tuple[str, str]
Indexer = Callable[[R], Iterable[str]]
Listener = Callable[[R | None, R | None], None]

_log = logging.getLogger(__name__)


def version_of(obj: Resource) -> int:
    """resourceVersion as a number: Kubernetes lets versions of one kind be compared as integers."""
    return version_number(obj.metadata.resource_version)


def version_number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def key_of(obj: Resource) -> StoreKey:
    return (obj.namespace or "", obj.name)


class Store(Generic[R]):
    """`synced` is set by the first `replace`; before that an absence means nothing."""

    def __init__(self, kind: type[R], indexes: Mapping[str, Indexer[R]] | None = None) -> None:
        self.kind = kind
        self.synced = asyncio.Event()
        self._version = 0
        self._objects: dict[StoreKey, R] = {}
        self._indexers = dict(indexes or {})
        self._indexes: dict[str, dict[str, dict[StoreKey, R]]] = {name: {} for name in self._indexers}
        self._listeners: tuple[Listener[R], ...] = ()
        # key -> version of its removal; two generations, turned over by `replace`
        self._removed: dict[StoreKey, int] = {}
        self._removed_before: dict[StoreKey, int] = {}

    # reading ---------------------------------------------------------------------------------------------
    @property
    def resource_version(self) -> str:
        """Highest version seen from any feed; "" before the first."""
        return str(self._version) if self._version else ""

    def get(self, namespace: str | None, name: str) -> R | None:
        return self._objects.get((namespace or "", name))

    def all(self) -> list[R]:
        return list(self._objects.values())

    def by(self, index: str, value: str) -> list[R]:
        """The objects whose index function yielded the value; KeyError for an index that does not exist."""
        return list(self._indexes[index].get(value, {}).values())

    def __len__(self) -> int:
        return len(self._objects)

    def subscribe(self, listener: Listener[R]) -> Callable[[], None]:
        """Call listener(old, new) at every change; the answer ends that.

        new = None says only that the object is not here any more: with a selector it may live on elsewhere.
        """
        self._listeners = (*self._listeners, listener)

        def unsubscribe() -> None:
            self._listeners = tuple(known for known in self._listeners if known is not listener)

        return unsubscribe

    # feeding ---------------------------------------------------------------------------------------------
    def apply(self, obj: R) -> bool:
        """Take in an object; False when what is known is as new."""
        key, version = key_of(obj), version_of(obj)
        self._version = max(self._version, version)
        old = self._objects.get(key)
        if old is not None and version_of(old) >= version:
            return False
        if version <= self._removed_at(key):
            return False
        self._removed.pop(key, None)
        self._removed_before.pop(key, None)
        self._set(key, old, obj)
        return True

    def remove(self, obj: R) -> bool:
        """Take out an object, unless what is known is newer than this last sight of it."""
        key, version = key_of(obj), version_of(obj)
        self._version = max(self._version, version)
        self._removed[key] = max(version, self._removed_at(key))
        old = self._objects.get(key)
        if old is None or version_of(old) > version:
            return False
        self._set(key, old, None)
        return True

    def replace(self, listing: Listing[R]) -> int:
        """Make the store say what a fresh listing says; returns how many objects differed."""
        at = version_number(listing.resource_version)
        present = {key_of(obj) for obj in listing.items}
        changed = sum(self.apply(obj) for obj in listing.items)
        for key, obj in list(self._objects.items()):
            if key not in present and version_of(obj) <= at:
                self._removed[key] = at
                self._set(key, obj, None)
                changed += 1
        self._version = max(self._version, at)
        self._removed_before, self._removed = self._removed, {}
        self.synced.set()
        return changed

    def _removed_at(self, key: StoreKey) -> int:
        return max(self._removed.get(key, -1), self._removed_before.get(key, -1))

    def _set(self, key: StoreKey, old: R | None, new: R | None) -> None:
        for name, indexer in self._indexers.items():
            index = self._indexes[name]
            before = set(indexer(old)) if old is not None else set()
            after = set(indexer(new)) if new is not None else set()
            for value in before - after:
                entries = index[value]
                entries.pop(key, None)
                if not entries:
                    del index[value]
            if new is not None:
                for value in after:
                    index.setdefault(value, {})[key] = new
        if new is None:
            self._objects.pop(key, None)
        else:
            self._objects[key] = new
        for listener in self._listeners:
            try:
                listener(old, new)
            except Exception:  # one listener's fault must not hide the change from the others
                _log.exception("listener of %s failed at %s/%s", self.kind.PLURAL, *key)
