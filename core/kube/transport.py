"""HTTP to the API server: one connection pool, a deadline on every call, answers turned into the port's errors.

Plain aiohttp below the official client's configuration: half the CPU per call of the generated API classes.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from yarl import URL

from cinderblock.core.kube.credentials import Credentials
from cinderblock.core.kube.fence import before_send
from cinderblock.core.kube.port import (
    Conflict,
    Forbidden,
    HistoryGone,
    KubeError,
    KubeUnavailable,
    ObjectExists,
    ObjectNotFound,
    Rejected,
)

_POOL_SIZE = 100
_KEEPALIVE_SECONDS = 75.0  # the API server closes idle connections after 90 s
_CONNECT_SECONDS = 5.0
_MESSAGE_MAX = 1000


class _CheckedRequest(aiohttp.ClientRequest):
    """Asks the task's send check when the connection is there and nothing has been written yet."""

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        before_send()
        return await super().send(conn)


class Transport:
    def __init__(self, credentials: Credentials, context: ssl.SSLContext | None) -> None:
        self._credentials = credentials
        self._connector = aiohttp.TCPConnector(
            limit=_POOL_SIZE,
            keepalive_timeout=_KEEPALIVE_SECONDS,
            ssl=context if context is not None else True,
        )
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            request_class=_CheckedRequest,
            # identity: compressing on both sides costs more CPU than the bytes are worth inside a cluster
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "User-Agent": "cinderblock",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def close(self) -> None:
        await self._session.close()

    def open_session(self) -> aiohttp.ClientSession:
        """A plain session for others on the same pool, authorised anew at every request; the caller closes it."""

        async def authorize(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            authorization = await self._credentials.authorization()
            if authorization is not None:
                request.headers["Authorization"] = authorization
            response = await handler(request)
            if response.status == 401:
                self._credentials.forget_token()
            return response

        return aiohttp.ClientSession(
            connector=self._connector,
            connector_owner=False,
            headers={"User-Agent": "cinderblock", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            middlewares=(authorize,),
            read_bufsize=2**21,  # a line of a watch is a whole object
        )

    async def call(
        self,
        method: str,
        path: str,
        *,
        timeout: float,
        query: str = "",
        body: bytes | None = None,
        content_type: str = "application/json",
        name: str | None = None,
    ) -> bytes:
        """One request and its whole answer. `name` is the object meant: only its own 404 says that it is gone."""
        for last in (False, True):
            headers = {"Content-Type": content_type} if body is not None else {}
            await self._authorize(headers)
            try:
                async with self._session.request(
                    method,
                    self._url(path, query),
                    data=body,
                    headers=headers,
                    timeout=aiohttp.ClientTimeout(total=timeout),
                    proxy=self._credentials.proxy,
                    server_hostname=self._credentials.server_hostname,
                ) as response:
                    answer = await response.read()
                    status = response.status
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise _unanswered(method, path, error, timeout) from error
            if status < 400:
                return answer
            if status == 401 and not last:  # the token was replaced; nothing has happened, so once more
                self._credentials.forget_token()
                continue
            raise error_of(status, answer, name=name)
        raise AssertionError("unreachable")

    async def lines(self, path: str, *, query: str, silence: float) -> AsyncIterator[bytes]:
        """The lines of an endless answer; KubeUnavailable after `silence` seconds without a byte."""
        headers: dict[str, str] = {}
        await self._authorize(headers)
        buffer = bytearray()
        try:
            async with self._session.get(
                self._url(path, query),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=silence),
                proxy=self._credentials.proxy,
                server_hostname=self._credentials.server_hostname,
            ) as response:
                if response.status >= 400:
                    if response.status == 401:
                        self._credentials.forget_token()
                    raise error_of(response.status, await response.read())
                async for chunk in response.content.iter_any():
                    buffer += chunk
                    if b"\n" not in chunk:
                        continue
                    *complete, rest = bytes(buffer).split(b"\n")
                    buffer = bytearray(rest)
                    for line in complete:
                        if line:
                            yield line
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unanswered("WATCH", path, error, silence) from error

    async def _authorize(self, headers: dict[str, str]) -> None:
        authorization = await self._credentials.authorization()
        if authorization is not None:
            headers["Authorization"] = authorization

    def _url(self, path: str, query: str) -> URL:
        return URL(f"{self._credentials.server}{path}{'?' + query if query else ''}", encoded=True)


def _unanswered(method: str, path: str, error: BaseException, timeout: float) -> KubeUnavailable:
    what = f"no answer within {timeout:g} s" if isinstance(error, TimeoutError) else str(error) or repr(error)
    return KubeUnavailable(f"{method} {path}: {what}"[:_MESSAGE_MAX])


def error_of(status: int, answer: bytes, *, name: str | None = None) -> KubeError:
    """The port's error of an HTTP status and the Status object beside it."""
    try:
        body = json.loads(answer)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        body = {}
    reason = body.get("reason", "")
    details = body.get("details") or {}
    message = str(body.get("message") or answer[:200].decode(errors="replace") or f"HTTP {status}")
    message = message[:_MESSAGE_MAX]
    if status == 404:
        # "the server could not find the requested resource" speaks of a kind that is not served (yet), not of
        # an object, and must never be taken for its deletion
        if reason == "NotFound" and details.get("name") and name is not None:
            return ObjectNotFound(message, status=status)
        return KubeUnavailable(f"not served: {message}", status=status)
    if status == 409:
        cls: type[KubeError] = ObjectExists if reason == "AlreadyExists" else Conflict
        return cls(message, status=status)
    if status == 410:
        return HistoryGone(message, status=status)
    if status in (401, 403):
        return Forbidden(message, status=status)
    if status == 429 or status >= 500:
        return KubeUnavailable(message, status=status)
    return Rejected(message, status=status)
