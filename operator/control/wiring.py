"""Which change of which object concerns which queue. Every rule costs what it touches, never all volumes."""

from __future__ import annotations

from collections.abc import Callable

from cinderblock.core.api.attachment import Attachment
from cinderblock.core.api.backend import ACCEPTED, POOL_READY, Backend, Pool, VolumeType
from cinderblock.core.api.builtin import Node, PersistentVolume
from cinderblock.core.api.meta import is_true
from cinderblock.core.api.node import StorageNode
from cinderblock.core.api.volume import PROVISIONED, Volume
from cinderblock.core.kube.store import key_of
from cinderblock.core.names import host_name
from cinderblock.operator.control.claims import APART_SECONDS
from cinderblock.operator.control.waiting import Waiting
from cinderblock.operator.engine.queue import WorkQueue
from cinderblock.operator.engine.stores import Stores


class Wiring:
    def __init__(
        self,
        stores: Stores,
        waiting: Waiting,
        *,
        volumes: WorkQueue,
        orphans: WorkQueue,
        attachments: WorkQueue,
        backends: WorkQueue,
        pools: WorkQueue,
        release_namespace: str,
    ) -> None:
        self._stores = stores
        self._waiting = waiting
        self._volumes = volumes
        self._orphans = orphans
        self._attachments = attachments
        self._backends = backends
        self._pools = pools
        self._release_namespace = release_namespace
        self._unsubscribe: list[Callable[[], None]] = []

    def connect(self) -> None:
        """Follow changes from now on, and bring in everything that is there."""
        stores = self._stores
        self._unsubscribe = [
            stores.volumes.subscribe(self._volume),
            stores.attachments.subscribe(self._attachment),
            stores.backends.subscribe(self._backend),
            stores.pools.subscribe(self._pool),
            stores.volume_types.subscribe(self._volume_type),
            stores.nodes.subscribe(self._node),
            stores.storage_nodes.subscribe(self._storage_node),
            stores.persistent_volumes.subscribe(self._persistent_volume),
        ]
        for backend in stores.backends.all():
            self._backends.add(key_of(backend))
        for pool in stores.pools.all():
            self._pools.add(key_of(pool))
        for volume in stores.volumes.all():
            self._volume(None, volume)
        for attachment in stores.attachments.all():
            self._attachments.add(key_of(attachment))

    def disconnect(self) -> None:
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe = []

    # called by the ledger and the liveness ----------------------------------------------------------------
    def pool_freed(self, pool: str) -> None:
        self._waiting.room_grew()
        self._pools.add(("", pool))  # it may be the last one of a node that is gone

    def host_turned(self, host: str) -> None:
        """A volume host came to life or died."""
        for pool in self._stores.pools.by("host", host):
            self._pools.add(key_of(pool))
        for volume in self._stores.volumes.by("host", host):
            if not is_true(volume.status.conditions, PROVISIONED):
                self._volumes.add(key_of(volume))
        self._waiting.world_changed()

    # watches ---------------------------------------------------------------------------------------------
    def _volume(self, old: Volume | None, new: Volume | None) -> None:
        seen = new or old
        if seen is None:
            return
        key = key_of(seen)
        self._volumes.add(key)
        if old is None and new is not None and self._serves_claim(new):
            self._orphans.add(key, APART_SECONDS)
        was, now = _host(old), _host(new)
        if was != now or old is None or new is None:
            for attachment in self._stores.attachments.by("volume", "/".join(key)):
                self._attachments.add(key_of(attachment))
        before, after = _backend(old), _backend(new)
        if before is not None and before != after:
            self._backends.add(("", before))  # it may wait for its last volume

    def _attachment(self, old: Attachment | None, new: Attachment | None) -> None:
        if new is not None:
            self._attachments.add(key_of(new))

    def _backend(self, old: Backend | None, new: Backend | None) -> None:
        seen = new or old
        if seen is None:
            return
        self._backends.add(key_of(seen))
        if new is not None and (old is None or (_accepted(new) and not _accepted(old))):
            self._waiting.world_changed()

    def _pool(self, old: Pool | None, new: Pool | None) -> None:
        seen = new or old
        if seen is None:
            return
        self._pools.add(key_of(seen))
        if old is None or new is None or _ready(old) != _ready(new):
            self._backends.add(("", seen.spec.backend))
        if new is None:
            return
        if old is None or _offer(old) != _offer(new):
            self._waiting.world_changed()
        elif (new.status.free_bytes or 0) > (old.status.free_bytes or 0) and _short(old):
            self._waiting.room_grew()

    def _volume_type(self, old: VolumeType | None, new: VolumeType | None) -> None:
        if new is not None and (old is None or old.spec != new.spec):
            self._waiting.world_changed()

    def _node(self, old: Node | None, new: Node | None) -> None:
        """Nodes report often; only that one came, went or became another matters."""
        if old is not None and new is not None and old.uid == new.uid:
            return
        seen = new or old
        if seen is None:
            return
        host = host_name(seen.name)
        for pool in self._stores.pools.by("host", host):
            self._pools.add(key_of(pool))
        for volume in self._stores.volumes.by("host", host):
            self._volumes.add(key_of(volume))
            for attachment in self._stores.attachments.by("volume", "/".join(key_of(volume))):
                self._attachments.add(key_of(attachment))
        for attachment in self._stores.attachments.by("node", seen.name):
            self._attachments.add(key_of(attachment))

    def _storage_node(self, old: StorageNode | None, new: StorageNode | None) -> None:
        if new is None or (old is not None and old.status.node_uid == new.status.node_uid):
            return
        for attachment in self._stores.attachments.by("node", new.name):
            self._attachments.add(key_of(attachment))

    def _persistent_volume(self, old: PersistentVolume | None, new: PersistentVolume | None) -> None:
        handles = {pv.spec.csi.volume_handle for pv in (old, new) if pv is not None and pv.spec.csi}
        for handle in handles:
            for volume in self._stores.volumes.by("handle", handle):
                self._volumes.add(key_of(volume))
                if new is None and self._serves_claim(volume):
                    self._orphans.add(key_of(volume), APART_SECONDS)

    def _serves_claim(self, volume: Volume) -> bool:
        return volume.spec.claim_ref is not None and volume.namespace == self._release_namespace


def _host(volume: Volume | None) -> str | None:
    allocation = volume.status.allocation if volume is not None else None
    return allocation.host if allocation is not None else None


def _backend(volume: Volume | None) -> str | None:
    allocation = volume.status.allocation if volume is not None else None
    return allocation.backend if allocation is not None else None


def _accepted(backend: Backend) -> bool:
    return is_true(backend.status.conditions, ACCEPTED)


def _ready(pool: Pool) -> bool:
    return is_true(pool.status.conditions, POOL_READY)


def _offer(pool: Pool) -> tuple[object, ...]:
    """What a pool offers apart from its free bytes, which change all the time."""
    status = pool.status
    return (
        _ready(pool),
        status.total_bytes,
        status.thin,
        status.over_subscription_ratio,
        status.reserved_percent,
        status.physical_floor_percent,
        status.availability_zone,
        status.capabilities,
    )


def _short(pool: Pool) -> bool:
    """Whether really free bytes were what this pool lacked."""
    status = pool.status
    if not status.thin:
        return True
    floor_bytes = (status.total_bytes or 0) * status.physical_floor_percent // 100
    return (status.free_bytes or 0) < floor_bytes
