"""The Kubernetes port: all that the rest of the code may do with the API server.

Objects are models; a write is a pair (before, after) and carries before's resourceVersion, so a write that was
decided on something stale ends in Conflict: read again and decide again. A pair that does not differ writes
nothing and returns `before`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from cinderblock.core.api.meta import Resource

R = TypeVar("R", bound=Resource)


class KubeError(Exception):
    """Base of what the API server or the way to it answers. `status` is the HTTP code, 0 = no answer."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ObjectNotFound(KubeError):
    """404: a fresh read says so, hence the object is gone."""


class ObjectExists(KubeError):
    """409 AlreadyExists on a create."""


class Conflict(KubeError):
    """409 on a write: the resourceVersion or the UID is another one by now."""


class Rejected(KubeError):
    """422 or 400: the API server refuses the content; the message is its own and fit for the user."""


class Forbidden(KubeError):
    """401 or 403."""


class HistoryGone(KubeError):
    """410: list again and watch from there."""


class KubeUnavailable(KubeError):
    """No usable answer (connection, deadline, 429, 5xx). A write may or may not have happened."""


class WatchType(StrEnum):
    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"


@dataclass(frozen=True)
class WatchEvent(Generic[R]):
    """`DELETED` may only mean that the object stopped matching a selector: read it before believing."""

    type: WatchType
    object: R


@dataclass(frozen=True)
class Listing(Generic[R]):
    items: Sequence[R]
    resource_version: str


class Kube(Protocol):
    """Reads are fresh (quorum reads); caches live above (core/kube/store.py). Every call has a deadline."""

    async def get(self, kind: type[R], name: str, namespace: str | None = None) -> R:
        """Errors: ObjectNotFound, KubeUnavailable, Forbidden."""

    async def list(
        self,
        kind: type[R],
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> Listing[R]:
        """All pages; namespace None = all namespaces."""

    def watch(
        self,
        kind: type[R],
        *,
        resource_version: str,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> AsyncIterator[WatchEvent[R]]:
        """Events after that version; ends by itself when the server closes; HistoryGone on 410."""

    async def create(self, obj: R) -> R:
        """Errors: ObjectExists, Rejected, Forbidden, KubeUnavailable."""

    async def update(self, before: R, after: R) -> R:
        """Merge patch of metadata (labels, annotations, finalizers, owners) and spec; status is ignored.

        Errors: Conflict, ObjectNotFound, Rejected, KubeUnavailable.
        """

    async def update_status(self, before: R, after: R) -> R:
        """Merge patch of the status sub-resource. Errors as `update`."""

    async def delete(self, obj: R, *, unchanged: bool = False) -> None:
        """Delete this very object (UID precondition). Missing = success; another UID = Conflict.

        `unchanged`: only while it is as `obj` says (resourceVersion precondition), else Conflict.
        """


def event_of(obj: Resource) -> dict[str, str]:
    """The involvedObject of an Event about this object."""
    return {
        "apiVersion": obj.API_VERSION,
        "kind": obj.KIND,
        "name": obj.name,
        "uid": obj.uid,
        "resourceVersion": obj.metadata.resource_version,
        **({"namespace": obj.namespace} if obj.namespace else {}),
    }


def merge_patch(before: object, after: object) -> object:
    """RFC 7386: what to send so that `before` becomes `after`; {} when nothing differs.

    Only what both sides model is compared, so fields that a newer version added stay as they are.
    """
    if not isinstance(before, dict) or not isinstance(after, dict):
        return after
    patch: dict[str, object] = dict.fromkeys(before.keys() - after.keys())
    for key, value in after.items():
        if key not in before:
            patch[key] = value
        elif before[key] != value:
            patch[key] = merge_patch(before[key], value)
    return patch
