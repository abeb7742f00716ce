"""The Kubernetes port on a real API server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import aiohttp

from cinderblock.core.api.meta import Resource
from cinderblock.core.kube.credentials import Credentials
from cinderblock.core.kube.port import Conflict, HistoryGone, Listing, ObjectNotFound, WatchEvent
from cinderblock.core.kube.transport import Transport
from cinderblock.core.kube.wire import Codec, create_body, status_patch, update_patch

R = TypeVar("R", bound=Resource)

READ_SECONDS = 10.0
WRITE_SECONDS = 4.0  # so that a write sent at the last moment of a Lease ends before the Lease does
_PAGE = 500
_WATCH_SECONDS = (240, 420)  # spread, so that many watchers do not come back together
_SILENCE_SECONDS = 75.0  # bookmarks come every minute
_LIST_ATTEMPTS = 3
_MERGE_PATCH = "application/merge-patch+json"
_APPLY_PATCH = "application/apply-patch+yaml"  # JSON is YAML


@contextlib.asynccontextmanager
async def connect(kubeconfig: Path | None) -> AsyncIterator[ApiServerKube]:
    """The API server of a kubeconfig, or of the pod that we run in. One connection pool, closed at the end."""
    credentials = await Credentials.load(kubeconfig)
    transport = Transport(credentials, await asyncio.to_thread(credentials.ssl_context))
    try:
        yield ApiServerKube(transport, credentials)
    finally:
        await transport.close()


class ApiServerKube:
    """Implements `port.Kube`; made by `connect`."""

    def __init__(self, transport: Transport, credentials: Credentials) -> None:
        self._transport = transport
        self._codecs: dict[type[Resource], Codec[Any]] = {}
        self.credentials = credentials

    def open_session(self) -> aiohttp.ClientSession:
        """For a library that talks HTTP by itself: same pool, same identity. The caller closes it."""
        return self._transport.open_session()

    async def get(self, kind: type[R], name: str, namespace: str | None = None) -> R:
        path = _path(kind, namespace, name)
        return self._codec(kind).object(
            await self._transport.call("GET", path, timeout=READ_SECONDS, name=name)
        )

    async def list(
        self,
        kind: type[R],
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> Listing[R]:
        selectors = _selectors(label_selector, field_selector)
        for attempt in range(1, _LIST_ATTEMPTS + 1):
            # the last try asks for everything at once: no token that can expire in between
            page_size = _PAGE if attempt < _LIST_ATTEMPTS else 0
            try:
                return await self._list_pages(kind, namespace, selectors, page_size)
            except HistoryGone:
                if attempt == _LIST_ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    async def _list_pages(
        self, kind: type[R], namespace: str | None, selectors: dict[str, str], page_size: int
    ) -> Listing[R]:
        codec, items, following = self._codec(kind), list[R](), ""
        while True:
            query = dict(selectors)
            if page_size:
                query["limit"] = str(page_size)
            if following:
                query["continue"] = following
            answer = await self._transport.call(
                "GET", _path(kind, namespace), query=urlencode(query), timeout=READ_SECONDS
            )
            page = codec.page(answer)
            items += page.items
            following = page.following
            if not following:
                return Listing(items, page.resource_version)

    async def watch(
        self,
        kind: type[R],
        *,
        resource_version: str,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> AsyncIterator[WatchEvent[R]]:
        codec = self._codec(kind)
        query = urlencode(
            {
                "watch": "1",
                "allowWatchBookmarks": "true",
                "timeoutSeconds": str(random.randint(*_WATCH_SECONDS)),  # noqa: S311 - not a secret
                "resourceVersion": resource_version,
                **_selectors(label_selector, field_selector),
            }
        )
        lines = self._transport.lines(_path(kind, namespace), query=query, silence=_SILENCE_SECONDS)
        async with contextlib.aclosing(lines) as stream:  # type: ignore[type-var]
            async for line in stream:
                event = codec.event(line)
                if event is not None:
                    yield event

    async def create(self, obj: R) -> R:
        path = _path(type(obj), obj.namespace)
        if obj.NAMESPACED and not obj.namespace:
            raise ValueError(f"{obj.KIND} {obj.name!r} needs a namespace")
        answer = await self._transport.call(
            "POST", path, body=create_body(obj), timeout=WRITE_SECONDS, name=obj.name
        )
        return self._codec(type(obj)).object(answer)

    async def apply(self, obj: R, *, manager: str) -> R:
        """Server-side apply: these fields become `manager`'s, whoever had them; fields of others stay."""
        path = _path(type(obj), obj.namespace, obj.name)
        query = urlencode({"fieldManager": manager, "force": "true"})
        answer = await self._transport.call(
            "PATCH",
            path,
            query=query,
            body=create_body(obj),
            content_type=_APPLY_PATCH,
            timeout=WRITE_SECONDS,
            name=obj.name,
        )
        return self._codec(type(obj)).object(answer)

    async def update(self, before: R, after: R) -> R:
        patch = update_patch(before, after)
        return before if patch is None else await self._patch(before, patch, "")

    async def update_status(self, before: R, after: R) -> R:
        patch = status_patch(before, after)
        return before if patch is None else await self._patch(before, patch, "/status")

    async def _patch(self, before: R, patch: bytes, subresource: str) -> R:
        kind = type(before)
        answer = await self._transport.call(
            "PATCH",
            _path(kind, before.namespace, before.name) + subresource,
            body=patch,
            content_type=_MERGE_PATCH,
            timeout=WRITE_SECONDS,
            name=before.name,
        )
        return self._codec(kind).object(answer)

    async def delete(self, obj: R, *, unchanged: bool = False) -> None:
        if not obj.uid:
            raise Conflict(f"{obj.PLURAL} {obj.name!r} has no UID: nobody knows which object is meant")
        preconditions = {"uid": obj.uid}
        if unchanged:
            preconditions["resourceVersion"] = obj.metadata.resource_version
        body = json.dumps({"preconditions": preconditions}).encode()
        path = _path(type(obj), obj.namespace, obj.name)
        with contextlib.suppress(ObjectNotFound):
            await self._transport.call("DELETE", path, body=body, timeout=WRITE_SECONDS, name=obj.name)

    def _codec(self, kind: type[R]) -> Codec[R]:
        codec = self._codecs.get(kind)
        if codec is None:
            codec = self._codecs[kind] = Codec(kind)
        return codec


def _path(kind: type[Resource], namespace: str | None, name: str | None = None) -> str:
    version = kind.API_VERSION
    path = f"/apis/{version}" if "/" in version else f"/api/{version}"
    if kind.NAMESPACED and namespace:
        path += f"/namespaces/{quote(namespace, safe='')}"
    elif kind.NAMESPACED and name is not None:
        raise ValueError(f"{kind.KIND} {name!r} needs a namespace")
    path += f"/{kind.PLURAL}"
    return path if name is None else f"{path}/{quote(name, safe='')}"


def _selectors(label_selector: str | None, field_selector: str | None) -> dict[str, str]:
    found = {"labelSelector": label_selector, "fieldSelector": field_selector}
    return {key: value for key, value in found.items() if value}
