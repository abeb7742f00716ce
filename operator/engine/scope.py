"""What a role watches: the leader everything, a host only what it owns.

Watches and listings both follow from this one table, so that they can never disagree about what belongs in a store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cinderblock.core.kube.store import Store
from cinderblock.core.names import LABEL_HOST
from cinderblock.operator.engine.stores import Stores


@dataclass(frozen=True)
class Watched:
    """One kind and the part of it that the server sends. The kind is the store's."""

    store: Store[Any]
    field_selector: str | None = None
    label_selector: str | None = None


Scope = tuple[Watched, ...]


def leader_scope(stores: Stores) -> Scope:
    return tuple(Watched(store) for store in stores.each())


def host_scope(stores: Stores, host: str, node: str) -> Scope:
    """An object that moves to another host leaves these watches as DELETED although it lives."""
    return (
        Watched(stores.volumes, field_selector=f"status.allocation.host={host}"),
        Watched(stores.attachments, label_selector=f"{LABEL_HOST}={host}"),
        Watched(stores.pools, field_selector=f"spec.host={host}"),
        Watched(stores.backends),
        Watched(stores.storage_nodes),
        Watched(stores.nodes, field_selector=f"metadata.name={node}"),
    )
