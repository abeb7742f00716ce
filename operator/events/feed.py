"""From kopf's raw event to a change of a Store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from cinderblock.core.api.meta import Resource
from cinderblock.core.kube.port import WatchType
from cinderblock.core.kube.store import Store
from cinderblock.core.kube.wire import watched

R = TypeVar("R", bound=Resource)


def names(kind: type[Resource]) -> tuple[str, str, str]:
    """(group, version, plural) of a kind, as kopf selects it."""
    group, _, version = kind.API_VERSION.rpartition("/")
    return (group, version, kind.PLURAL)


def feed(store: Store[R], event: Mapping[Any, Any]) -> None:
    """Take in one event. Type None is an object of a first listing."""
    seen = watched(store.kind, event["type"] or WatchType.ADDED, event["object"])
    if seen is None:
        return
    if seen.type is WatchType.DELETED:
        store.remove(seen.object)
    else:
        store.apply(seen.object)
