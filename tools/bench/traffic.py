"""How many requests the API server has served, by its own count (apiserver_request_total)."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from tools.cluster.apiclient import ApiClient
from tools.shell import ToolError

WRITES = frozenset({"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"})
_NAME = "apiserver_request_total{"
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Request:
    group: str
    resource: str
    subresource: str
    verb: str
    code: str


def parse(text: str) -> Counter[Request]:
    """The counters of a /metrics page."""
    found: Counter[Request] = Counter()
    for line in text.splitlines():
        if not line.startswith(_NAME):
            continue
        labels, _, value = line[len(_NAME) :].rpartition("} ")
        said = dict(_LABEL.findall(labels))
        request = Request(
            *(said.get(key, "") for key in ("group", "resource", "subresource", "verb", "code"))
        )
        found[request] += int(float(value))
    return found


def read(client: ApiClient) -> Counter[Request]:
    """Now. The page is large: not while something is measured."""
    status, body = client.get("/metrics", timeout=30)
    if status != 200:
        raise ToolError(f"the API server does not tell its metrics: {status} {body[:200]!r}")
    return parse(body.decode())


def writes(before: Counter[Request], after: Counter[Request], group: str) -> Counter[Request]:
    """What was written between two looks to the kinds of a group, refused writes included."""
    return Counter(
        {
            request: count - before[request]
            for request, count in after.items()
            if request.group == group and request.verb in WRITES and count > before[request]
        }
    )


def by_resource(counted: Counter[Request]) -> Counter[str]:
    total: Counter[str] = Counter()
    for request, count in counted.items():
        total[request.resource] += count
    return total


def conflicts(counted: Counter[Request]) -> int:
    return sum(count for request, count in counted.items() if request.code == "409")
