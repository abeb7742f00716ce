"""ListVolumes in pages that stay true while volumes come and go.

Pages are ordered by handle and a token names the last handle that was shown, so that a page begins after it
whether or not it still exists: nothing is shown twice and nothing that stays is left out.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from cinderblock.core.api.volume import Volume
from cinderblock.core.errors import OperationPending
from cinderblock.core.kube.store import Store

_TOKEN = "after:"  # noqa: S105 - a page token
_PAGE_MAX = 5_000  # with the longest names an answer stays below gRPC's 4 MiB


@dataclass(frozen=True)
class Page:
    volumes: list[Volume]
    next_token: str


class VolumeListing:
    def __init__(self, store: Store[Volume]) -> None:
        self._store = store

    def page(self, token: str, max_entries: int) -> Page:
        """Volumes that exist on a backend; max_entries 0 = as many as an answer can hold.

        Errors: OperationPending for a token that was never given out (the code ABORTED says: start anew).
        """
        if token and not token.startswith(_TOKEN):
            raise OperationPending(f"starting_token {token!r} is not valid: list again from the start")
        after = token.removeprefix(_TOKEN)
        size = min(max_entries or _PAGE_MAX, _PAGE_MAX)
        volumes = heapq.nsmallest(size + 1, self._listed(after), key=_handle)
        if len(volumes) <= size:
            return Page(volumes, "")
        return Page(volumes[:size], f"{_TOKEN}{_handle(volumes[size - 1])}")

    def _listed(self, after: str) -> Iterable[Volume]:
        return (v for v in self._store.all() if v.status.capacity_bytes is not None and _handle(v) > after)


def _handle(volume: Volume) -> str:
    return volume.status.handle or ""
