"""The operator's caches, one Store per kind, with the indexes that keep every event below O(all volumes)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from cinderblock.core.api import Attachment, Backend, Pool, Snapshot, StorageNode, Volume, VolumeType
from cinderblock.core.api.builtin import Node, PersistentVolume
from cinderblock.core.kube.store import Store
from cinderblock.core.names import CSI_DRIVER, LABEL_CSI_NAME, LABEL_HOST


@dataclass(frozen=True)
class Stores:
    """volumes by handle, host, pool, backend, csi-name (the label's value), type ("" = none named);
    attachments by volume ("namespace/name"), node, host (the label); snapshots by handle, host, source;
    pools by backend, host; persistent_volumes (ours only are indexed) by handle."""

    volumes: Store[Volume]
    attachments: Store[Attachment]
    snapshots: Store[Snapshot]
    backends: Store[Backend]
    pools: Store[Pool]
    volume_types: Store[VolumeType]
    storage_nodes: Store[StorageNode]
    nodes: Store[Node]
    persistent_volumes: Store[PersistentVolume]

    def each(self) -> tuple[Store[Any], ...]:
        return tuple(getattr(self, field.name) for field in fields(self))


def make_stores() -> Stores:
    return Stores(
        volumes=Store(
            Volume,
            {
                "handle": lambda v: _some(v.status.handle),
                "host": lambda v: [v.status.allocation.host] if v.status.allocation else (),
                "pool": lambda v: [v.status.allocation.pool] if v.status.allocation else (),
                "backend": lambda v: [v.status.allocation.backend] if v.status.allocation else (),
                "csi-name": lambda v: _some(v.metadata.labels.get(LABEL_CSI_NAME)),
            },
        ),
        attachments=Store(
            Attachment,
            {
                "volume": lambda a: ("/".join(a.volume_key),),
                "node": lambda a: (a.spec.node,),
                "host": lambda a: _some(a.metadata.labels.get(LABEL_HOST)),
            },
        ),
        snapshots=Store(
            Snapshot,
            {
                "handle": lambda s: _some(s.status.handle),
                "host": lambda s: _some(s.status.host),
                "source": lambda s: _some(s.status.source_handle),
            },
        ),
        backends=Store(Backend),
        pools=Store(Pool, {"backend": lambda p: (p.spec.backend,), "host": lambda p: (p.spec.host,)}),
        volume_types=Store(VolumeType),
        storage_nodes=Store(StorageNode),
        nodes=Store(Node),
        persistent_volumes=Store(PersistentVolume, {"handle": _our_handle}),
    )


def _some(value: str | None) -> Iterable[str]:
    return (value,) if value else ()


def _our_handle(volume: PersistentVolume) -> Iterable[str]:
    csi = volume.spec.csi
    return (csi.volume_handle,) if csi is not None and csi.driver == CSI_DRIVER else ()
