"""A small API server in memory, with etcd's semantics where our code leans on them.

resourceVersion on every write and Conflict on a stale one, UIDs, UID preconditions, finalizers with
deletionTimestamp, generation, the status sub-resource, selectors, watches through history, compaction.
tests/contract_kube runs the same tests against this and a real API server. What it cannot do (CEL, schemas,
defaults, admission) is tested against the real one only.
"""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from cinderblock.core.api.meta import CustomResource, Resource
from cinderblock.core.kube.port import (
    Conflict,
    HistoryGone,
    Listing,
    ObjectExists,
    ObjectNotFound,
    Rejected,
    WatchEvent,
    WatchType,
    merge_patch,
)

R = TypeVar("R", bound=Resource)
Key = tuple[str, str, str]
Body = dict[str, Any]
Selector = Callable[[Body], bool]

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_BUILTIN_FIELDS: dict[str, tuple[str, ...]] = {
    "Pod": ("spec.nodeName", "status.phase"),
    "Event": ("involvedObject.kind", "involvedObject.name", "involvedObject.uid", "reason", "type"),
}


def _now() -> str:
    return datetime.now(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")


def _terms(selector: str) -> list[tuple[str, str, str]]:
    """(key, = or != or exists or missing, value) of every term."""
    found = []
    for term in filter(None, selector.split(",")):
        match = re.fullmatch(r"\s*(!?)([^=!\s]+)\s*(?:(==|=|!=)\s*(\S*))?\s*", term)
        if match is None:
            raise Rejected(f"unable to parse {selector!r}", status=400)
        negated, key, operator, value = match.groups()
        if operator is None:
            found.append((key, "missing" if negated else "exists", ""))
        else:
            found.append((key, "!=" if operator == "!=" else "=", value))
    return found


def _judge(operator: str, value: str, wanted: str) -> bool:
    return (value != wanted) if operator == "!=" else (value == wanted)


def _selector(
    kind: type[Resource], namespace: str | None, fields: str | None, labels: str | None
) -> Selector:
    field_terms, label_terms = _terms(fields or ""), _terms(labels or "")
    known = {"metadata.name", *_BUILTIN_FIELDS.get(kind.KIND, ())}
    if kind.NAMESPACED:
        known.add("metadata.namespace")
    if issubclass(kind, CustomResource):
        known.update(path.removeprefix(".") for path in kind.SELECTABLE_FIELDS)
    for key, operator, _ in field_terms:
        if key not in known or operator not in ("=", "!="):
            raise Rejected(f"field label not supported: {key}", status=400)

    def matches(body: Body) -> bool:
        meta = body["metadata"]
        if namespace is not None and kind.NAMESPACED and meta.get("namespace") != namespace:
            return False
        has = meta.get("labels", {})
        for key, operator, value in label_terms:
            if operator in ("exists", "missing"):
                if (key in has) is not (operator == "exists"):
                    return False
            elif (operator == "=" and key not in has) or not _judge(operator, has.get(key, "\0"), value):
                return False
        return all(_judge(operator, _field(body, key), value) for key, operator, value in field_terms)

    return matches


def _field(body: Body, path: str) -> str:
    at: Any = body
    for part in path.split("."):
        at = at.get(part) if isinstance(at, dict) else None
    return str(at).lower() if isinstance(at, bool) else str(at or "")


# The rules of the CRDs that speak of a status alone; a flow that breaks one must fail here too.
_SET_ONCE = {"Volume": ("handle",), "Snapshot": ("handle",), "Pool": ("poolID",)}
_NEVER_FALL = {"Volume": ("lastGrant", "attachGeneration")}


def _judge_status(kind: str, old: Body, new: Body) -> None:
    broken = [f for f in _SET_ONCE.get(kind, ()) if f in old and new.get(f) != old[f]]
    broken += [f for f in _NEVER_FALL.get(kind, ()) if f in old and new.get(f, -1) < old[f]]
    if broken:
        raise Rejected(f"{kind} is invalid: status.{broken[0]} cannot be changed so", status=422)


def _apply(target: Body, patch: Body) -> Body:
    out = dict(target)
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        elif isinstance(value, dict):
            old = out.get(key)
            out[key] = _apply(old if isinstance(old, dict) else {}, value)
        else:
            out[key] = value
    return out


@dataclass(frozen=True)
class _Change:
    version: int
    kind: str
    old: Body | None
    new: Body | None  # None = the object is gone


class FakeKube:
    """Implements the Kube port.

    `writes` records every attempt as (verb, kind, name). `before_write` may raise (nothing happened) or act;
    `after_write` may raise once the write stands (the answer got lost). `compact` forgets history;
    while `silent`, changes happen that no watch ever tells.
    """

    def __init__(self) -> None:
        self._objects: dict[Key, Body] = {}
        self._version = 100
        self._forgotten = 0
        self._log: list[_Change] = []
        self._wake: list[asyncio.Event] = []
        self.silent = False
        self.writes: list[tuple[str, str, str]] = []
        self.before_write: Callable[[str, str, str], None] = lambda verb, kind, name: None
        self.after_write: Callable[[str, str, str], None] = lambda verb, kind, name: None

    def compact(self) -> None:
        """Forget history, as etcd does every five minutes: a watch from before now ends in HistoryGone."""
        self._forgotten = self._version

    # helpers -------------------------------------------------------------------------------------------
    def _key(self, kind: type[Resource], name: str, namespace: str | None) -> Key:
        return (kind.KIND, (namespace or "") if kind.NAMESPACED else "", name)

    def _load(self, kind: type[R], body: Body) -> R:
        return kind.model_validate(json.loads(json.dumps(body)))

    def _commit(self, key: Key, body: Body) -> Body:
        """Store a new state; an object that is being deleted and has no finalizer left is gone with it."""
        self._version += 1
        body = json.loads(json.dumps(body))
        meta = body["metadata"]
        meta["resourceVersion"] = str(self._version)
        gone = bool(meta.get("deletionTimestamp")) and not meta.get("finalizers")
        old = self._objects.pop(key, None)
        if not gone:
            self._objects[key] = body
        if self.silent:
            return body
        self._log.append(_Change(self._version, key[0], old, None if gone else body))
        for event in self._wake:
            event.set()
        return body

    def _begin(self, verb: str, obj: Resource) -> None:
        self.before_write(verb, obj.KIND, obj.name)
        self.writes.append((verb, obj.KIND, obj.name))

    def _judge_metadata(self, obj: Resource) -> None:
        if not _NAME.fullmatch(obj.name) or len(obj.name) > 253:
            raise Rejected(f"{obj.KIND} {obj.name!r} is invalid: metadata.name", status=422)
        if obj.NAMESPACED and not obj.namespace:
            raise Rejected(f"{obj.KIND} {obj.name!r} is invalid: no namespace", status=400)
        for key, value in obj.metadata.labels.items():
            if not _LABEL_VALUE.fullmatch(value):
                raise Rejected(
                    f"{obj.KIND} {obj.name!r} is invalid: metadata.labels {key}: {value!r}", status=422
                )

    # reads ---------------------------------------------------------------------------------------------
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
        matches = _selector(kind, namespace, field_selector, label_selector)
        await asyncio.sleep(0)
        found = [
            self._load(kind, body)
            for key, body in sorted(self._objects.items())
            if key[0] == kind.KIND and matches(body)
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
        matches = _selector(kind, namespace, field_selector, label_selector)
        seen, wake = int(resource_version), asyncio.Event()
        if seen < self._forgotten:
            raise HistoryGone(f"too old resource version: {seen} ({self._forgotten})", status=410)
        at = next((i for i, change in enumerate(self._log) if change.version > seen), len(self._log))
        self._wake.append(wake)
        try:
            while True:
                while at < len(self._log):
                    change = self._log[at]
                    at += 1
                    event = self._event(change, kind, matches)
                    if event is not None:
                        yield event
                wake.clear()
                if at == len(self._log):
                    await wake.wait()
        finally:
            self._wake.remove(wake)

    def _event(self, change: _Change, kind: type[R], matches: Selector) -> WatchEvent[R] | None:
        """What a watch sees of a change: an object that starts or stops matching is added or deleted to it."""
        if change.kind != kind.KIND:
            return None
        before = change.old is not None and matches(change.old)
        after = change.new is not None and matches(change.new)
        if after and change.new is not None:
            return WatchEvent(WatchType.MODIFIED if before else WatchType.ADDED, self._load(kind, change.new))
        if before and change.old is not None:
            meta = {**change.old["metadata"], "resourceVersion": str(change.version)}
            return WatchEvent(WatchType.DELETED, self._load(kind, {**change.old, "metadata": meta}))
        return None

    # writes --------------------------------------------------------------------------------------------
    async def create(self, obj: R) -> R:
        await asyncio.sleep(0)
        self._begin("create", obj)
        self._judge_metadata(obj)
        key = self._key(type(obj), obj.name, obj.namespace)
        if obj.metadata.resource_version:
            raise Rejected("resourceVersion should not be set on objects to be created", status=500)
        if key in self._objects:
            raise ObjectExists(f"{obj.PLURAL} {obj.name!r} already exists", status=409)
        body = obj.to_api()
        meta = body["metadata"]
        meta.pop("deletionTimestamp", None)
        meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": _now()}
        if isinstance(obj, CustomResource):
            body.pop("status", None)
            meta["generation"] = 1
        stored = self._load(type(obj), self._commit(key, body))
        self.after_write("create", obj.KIND, obj.name)
        return stored

    def _current(self, before: Resource) -> tuple[Key, Body]:
        key = self._key(type(before), before.name, before.namespace)
        body = self._objects.get(key)
        if body is None:
            raise ObjectNotFound(f"{before.PLURAL} {before.name!r} not found", status=404)
        meta = body["metadata"]
        if meta["resourceVersion"] != before.metadata.resource_version or meta["uid"] != before.uid:
            raise Conflict(f"{before.PLURAL} {before.name!r} has changed", status=409)
        return key, body

    async def apply(self, obj: R, *, manager: str) -> R:
        """Server-side apply without owners: what `obj` says is put over what is there."""
        try:
            known = await self.get(type(obj), obj.name, obj.namespace)
        except ObjectNotFound:
            return await self.create(obj)
        changed = {**known.to_api(), **{k: v for k, v in obj.to_api().items() if k != "metadata"}}
        return await self.update(known, self._load(type(obj), changed))

    async def update(self, before: R, after: R) -> R:
        old, new = before.to_api(), after.to_api()
        old.pop("status", None)
        new.pop("status", None)
        patch = merge_patch(old, new)
        await asyncio.sleep(0)
        if not patch:
            return before
        self._begin("update", before)
        key, body = self._current(before)
        self._judge_metadata(after)
        assert isinstance(patch, dict)
        changed = _apply(body, patch)
        meta = changed["metadata"]
        added = set(meta.get("finalizers", ())) - set(body["metadata"].get("finalizers", ()))
        if added and meta.get("deletionTimestamp"):
            raise Rejected(
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted,"
                f" found new finalizers {sorted(added)}",
                status=422,
            )
        if isinstance(before, CustomResource) and changed.get("spec") != body.get("spec"):
            meta["generation"] = body["metadata"]["generation"] + 1
        stored = self._load(type(before), self._commit(key, changed))
        self.after_write("update", before.KIND, before.name)
        return stored

    async def update_status(self, before: R, after: R) -> R:
        patch = merge_patch(before.to_api().get("status", {}), after.to_api().get("status", {}))
        await asyncio.sleep(0)
        if not patch:
            return before
        self._begin("status", before)
        key, body = self._current(before)
        assert isinstance(patch, dict)
        changed = {**body, "status": _apply(body.get("status", {}), patch)}
        _judge_status(before.KIND, body.get("status", {}), changed["status"])
        stored = self._load(type(before), self._commit(key, changed))
        self.after_write("status", before.KIND, before.name)
        return stored

    async def delete(self, obj: R, *, unchanged: bool = False) -> None:
        await asyncio.sleep(0)
        self._begin("delete", obj)
        key = self._key(type(obj), obj.name, obj.namespace)
        body = self._objects.get(key)
        if body is None:
            return
        meta = body["metadata"]
        if meta["uid"] != obj.uid:
            raise Conflict(f"{obj.PLURAL} {obj.name!r} is another object by now", status=409)
        if unchanged and meta["resourceVersion"] != obj.metadata.resource_version:
            raise Conflict(f"{obj.PLURAL} {obj.name!r} has changed", status=409)
        if meta.get("finalizers") and meta.get("deletionTimestamp"):
            return
        meta = {**meta, "deletionTimestamp": _now()}
        if "generation" in meta:
            meta["generation"] += (
                1  # the API server counts the request to delete as a change of what is wanted
            )
        self._commit(key, {**body, "metadata": meta})
        self.after_write("delete", obj.KIND, obj.name)
