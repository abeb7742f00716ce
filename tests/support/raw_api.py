"""Requests to a real API server without any of our models between: what would a person's manifest do?"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.cluster.apiclient import ApiClient

Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    code: int
    body: Json

    @property
    def ok(self) -> bool:
        return self.code in (200, 201)

    @property
    def message(self) -> str:
        return str(self.body.get("message", ""))


class RawApi:
    """One connection, kept open; close it with `close`."""

    def __init__(self, kubeconfig: Path) -> None:
        client = ApiClient.from_kubeconfig(kubeconfig)
        self._connection = http.client.HTTPSConnection(
            client.host, client.port, timeout=20, context=client.context
        )

    def close(self) -> None:
        self._connection.close()

    def call(
        self, method: str, path: str, body: Json | None = None, content_type: str = "application/json"
    ) -> Answer:
        payload = None if body is None else json.dumps(body)
        self._connection.request(method, path, payload, {"Content-Type": content_type})
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.headers.get_content_type() != "application/json":  # such as the 404 of an unknown group
            return Answer(answer.status, {"message": content.decode()})
        return Answer(answer.status, json.loads(content))

    def get(self, path: str) -> Answer:
        return self.call("GET", path)

    def post(self, path: str, body: Json) -> Answer:
        return self.call("POST", path, body)

    def patch(self, path: str, body: Json) -> Answer:
        return self.call("PATCH", path, body, "application/merge-patch+json")


def until(what: str, condition: Callable[[], bool], *, seconds: float = 30) -> None:
    """Wait for a condition of the API server, which takes over a new CRD a moment after it accepted it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)
