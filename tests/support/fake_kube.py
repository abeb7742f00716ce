"""A small API server in memory, with etcd's semantics where our code leans on them.

resourceVersion on every write and Conflict on a stale one, UIDs, UID preconditions, finalizers with
deletionTimestamp, generation on spec changes, the status sub-resource, watches. What it cannot do (CEL, schemas,
defaults) is tested against the real one.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from cinderblock.core.api.meta import Resource
from cinderblock.core.kube.port import (
    Conflict,
    Listing,
    ObjectExists,
    ObjectNotFound,
    WatchEvent,
    WatchType,
    merge_patch,
)

R = TypeVar("R", bound=Resource)
Key = tuple[str, str, str]


def _matches(body: dict[str, Any], field_selector: str | None, label_selector: str | None) -> bool:
    for term in (label_selector or "").split(",") if label_selector else ():
        key, _, value = term.partition("=")
        if body["metadata"].get("labels", {}).get(key) != value.lstrip("="):
            return False
    for term in (field_selector or "").split(",") if field_selector else ():
        path, _, value = term.partition("=")
        at: Any = body
        for part in path.strip(".").split("."):
            at = at.get(part) if isinstance(at, dict) else None
        if (at or "") != value.lstrip("="):
            return False
    return True


def _apply(target: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    out = dict(target)
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        elif isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = _apply(out[key], value)
        else:
            out[key] = value
    return out


class FakeKube:
    """Implements the Kube port. `writes` records (verb, kind, name); `before_write` may raise or act."""

    def __init__(self) -> None:
        self._objects: dict[Key, dict[str, Any]] = {}
        self._version = 100
        self._watchers: list[tuple[type[Resource], asyncio.Queue[tuple[WatchType, dict[str, Any]]]]] = []
        self._log: list[tuple[int, str, WatchType, dict[str, Any]]] = []
        self.writes: list[tuple[str, str, str]] = []
        self.before_write: Callable[[str, str, str], None] = lambda verb, kind, name: None

    # helpers -------------------------------------------------------------------------------------------
    def _key(self, kind: type[Resource], name: str, namespace: str | None) -> Key:
        return (kind.KIND, (namespace or "") if kind.NAMESPACED else "", name)

    def _load(self, kind: type[R], body: dict[str, Any]) -> R:
        return kind.model_validate(json.loads(json.dumps(body)))

    def _publish(self, kind: str, type_: WatchType, body: dict[str, Any]) -> None:
        self._log.append((self._version, kind, type_, body))
        for watched, queue in list(self._watchers):
            if kind == watched.KIND:
                queue.put_nowait((type_, body))

    def _store(self, key: Key, body: dict[str, Any], type_: WatchType) -> dict[str, Any]:
        self._version += 1
        body = json.loads(json.dumps(body))
        body["metadata"]["resourceVersion"] = str(self._version)
        meta = body["metadata"]
        if meta.get("deletionTimestamp") and not meta.get("finalizers"):
            self._objects.pop(key, None)
            self._publish(key[0], WatchType.DELETED, body)
        else:
            self._objects[key] = body
            self._publish(key[0], type_, body)
        return body

    def _wrote(self, verb: str, kind: type[Resource], name: str) -> None:
        self.before_write(verb, kind.KIND, name)
        self.writes.append((verb, kind.KIND, name))

    # port ----------------------------------------------------------------------------------------------
    async def get(self, kind: type[R], name: str, namespace: str | None = None) -> R:
        await asyncio.sleep(0)
        body = self._objects.get(self._key(kind, name, namespace))
        if body is None:
            raise ObjectNotFound(f"{kind.PLURAL} {name!r} not found", status=404)
        return self._load(kind, body)

    async def list(
        self,
        kind: type[R],
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> Listing[R]:
        await asyncio.sleep(0)
        found = [
            self._load(kind, body)
            for key, body in sorted(self._objects.items())
            if key[0] == kind.KIND
            and (namespace is None or not kind.NAMESPACED or key[1] == namespace)
            and _matches(body, field_selector, label_selector)
        ]
        return Listing(found, str(self._version))

    async def watch(
        self,
        kind: type[R],
        *,
        resource_version: str,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> AsyncIterator[WatchEvent[R]]:
        queue: asyncio.Queue[tuple[WatchType, dict[str, Any]]] = asyncio.Queue()
        for version, logged, type_, body in self._log:
            if version > int(resource_version) and logged == kind.KIND:
                queue.put_nowait((type_, body))
        entry = (kind, queue)
        self._watchers.append(entry)
        try:
            while True:
                type_, body = await queue.get()
                if namespace is not None and body["metadata"].get("namespace") != namespace:
                    continue
                if not _matches(body, field_selector, label_selector):
                    continue
                yield WatchEvent(type_, self._load(kind, body))
        finally:
            self._watchers.remove(entry)

    async def create(self, obj: R) -> R:
        await asyncio.sleep(0)
        self._wrote("create", type(obj), obj.name)
        key = self._key(type(obj), obj.name, obj.namespace)
        if key in self._objects:
            raise ObjectExists(f"{obj.PLURAL} {obj.name!r} already exists", status=409)
        body = obj.to_api()
        if isinstance(body.get("status"), dict):
            body["status"] = {}
        body["metadata"] |= {
            "uid": str(uuid.uuid4()),
            "generation": 1,
            "creationTimestamp": datetime.now(UTC).replace(microsecond=0).isoformat(),
        }
        return self._load(type(obj), self._store(key, body, WatchType.ADDED))

    def _current(self, before: Resource) -> tuple[Key, dict[str, Any]]:
        key = self._key(type(before), before.name, before.namespace)
        body = self._objects.get(key)
        if body is None:
            raise ObjectNotFound(f"{before.PLURAL} {before.name!r} not found", status=404)
        meta = body["metadata"]
        if meta["resourceVersion"] != before.metadata.resource_version or meta["uid"] != before.uid:
            raise Conflict(f"{before.PLURAL} {before.name!r} has changed", status=409)
        return key, body

    async def update(self, before: R, after: R) -> R:
        old, new = before.to_api(), after.to_api()
        old.pop("status", None)
        new.pop("status", None)
        patch = merge_patch(old, new)
        await asyncio.sleep(0)
        if not patch:
            return before
        self._wrote("update", type(before), before.name)
        key, body = self._current(before)
        assert isinstance(patch, dict)
        changed = _apply(body, patch)
        if changed.get("spec") != body.get("spec"):
            changed["metadata"]["generation"] = body["metadata"]["generation"] + 1
        return self._load(type(before), self._store(key, changed, WatchType.MODIFIED))

    async def update_status(self, before: R, after: R) -> R:
        patch = merge_patch(before.to_api().get("status", {}), after.to_api().get("status", {}))
        await asyncio.sleep(0)
        if not patch:
            return before
        self._wrote("status", type(before), before.name)
        key, body = self._current(before)
        assert isinstance(patch, dict)
        changed = {**body, "status": _apply(body.get("status", {}), patch)}
        return self._load(type(before), self._store(key, changed, WatchType.MODIFIED))

    async def delete(self, obj: R) -> None:
        await asyncio.sleep(0)
        self._wrote("delete", type(obj), obj.name)
        key = self._key(type(obj), obj.name, obj.namespace)
        body = self._objects.get(key)
        if body is None:
            return
        if body["metadata"]["uid"] != obj.uid:
            raise Conflict(f"{obj.PLURAL} {obj.name!r} is another object by now", status=409)
        if body["metadata"].get("finalizers"):
            if not body["metadata"].get("deletionTimestamp"):
                meta = {
                    **body["metadata"],
                    "deletionTimestamp": datetime.now(UTC).replace(microsecond=0).isoformat(),
                }
                self._store(key, {**body, "metadata": meta}, WatchType.MODIFIED)
            return
        self._objects.pop(key)
        self._version += 1
        self._publish(key[0], WatchType.DELETED, body)
