"""The volume host as a whole: stores feed queues, queues run the reconcilers.

The same role serves a node's own pools (in the DaemonSet) and, as host `operator`, the backends that no node owns
(beside the leader).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from cinderblock.core.api.attachment import ADMITTED, EXPORTED, Attachment
from cinderblock.core.api.backend import Backend, Pool
from cinderblock.core.api.builtin import Node
from cinderblock.core.api.meta import drop_condition
from cinderblock.core.api.node import StorageNode
from cinderblock.core.api.volume import READY, Volume
from cinderblock.core.clock import Clock
from cinderblock.core.kube.events import EventRecorder
from cinderblock.core.kube.port import Kube
from cinderblock.core.metrics import NO_QUEUE_METRICS, QueueMetrics
from cinderblock.core.process import Runner
from cinderblock.drivers.registry import Registry
from cinderblock.operator.engine.queue import WorkQueue
from cinderblock.operator.engine.stores import Stores
from cinderblock.operator.host.attachments import Attachments
from cinderblock.operator.host.backends import Backends
from cinderblock.operator.host.drivers import OpenBackends
from cinderblock.operator.host.identity import ConfirmedKube, HostGone, HostIdentity
from cinderblock.operator.host.inventory import Inventory
from cinderblock.operator.host.metrics import NO_HOST_METRICS, HostMetrics
from cinderblock.operator.host.tools import HostTools
from cinderblock.operator.host.volumes import Volumes


class HostRole:
    """`run` ends only by cancellation, or with HostGone when this host's Node is gone or another one."""

    def __init__(  # noqa: PLR0917 - one composition, handed down whole
        self,
        kube: Kube,
        stores: Stores,
        clock: Clock,
        recorder: EventRecorder,
        registry: Registry,
        host: str,
        node: str | None,
        pools_root: Path,
        runner: Runner,
        *,
        release_namespace: str | None = None,
        metrics: QueueMetrics = NO_QUEUE_METRICS,
        host_metrics: HostMetrics = NO_HOST_METRICS,
    ) -> None:
        self.host = host
        self._stores = stores
        self._identity = HostIdentity(kube, stores.nodes, clock, host, node)
        tools = HostTools(
            kube=ConfirmedKube(kube, self._identity),
            stores=stores,
            clock=clock,
            recorder=recorder,
            host=host,
            node=node,
            drivers=OpenBackends(self._identity.confirm),
            release_namespace=release_namespace,
            metrics=metrics,
            host_metrics=host_metrics,
        )
        self.backends = Backends(
            tools, registry=registry, identity=self._identity, pools_root=pools_root, runner=runner
        )
        self.inventory = Inventory(tools)
        self.volumes = Volumes(
            tools,
            Attachments(tools),
            changed=self.backends.report_soon,
            take_inventory=self.inventory.soon,
            open_backend=self.backends.open_soon,
        )
        self.inventory.serve(self.volumes)
        self.backends.on_verdict(self._opened)

    @property
    def queues(self) -> tuple[WorkQueue, ...]:
        return (self.backends.queue, self.volumes.queue, self.inventory.queue)

    async def run(self) -> None:
        """Serve until cancelled. Expects that something feeds the stores."""
        await self._identity.start()
        stores = self._stores
        for store in (
            stores.volumes,
            stores.attachments,
            stores.backends,
            stores.pools,
            stores.storage_nodes,
        ):
            await store.synced.wait()
        unsubscribe = self._subscribe()
        try:
            self._seed()
            async with asyncio.TaskGroup() as group:
                for queue in self.queues:
                    group.create_task(queue.run())
                group.create_task(self._identity.watch())
        except BaseExceptionGroup as group_error:
            gone = group_error.subgroup(HostGone)
            if gone is None:
                raise
            raise HostGone(f"host {self.host} has lost its Node") from gone
        finally:
            for end in unsubscribe:
                end()
            await self.backends.close()

    def _seed(self) -> None:
        """Everything that may concern this host, once: what was begun before is finished or undone now."""
        for backend in self._stores.backends.all():
            self.backends.queue.add(("", backend.name))
        for pool in self._stores.pools.by("host", self.host):
            self.backends.queue.add(("", pool.spec.backend))
        for volume in self._stores.volumes.all():
            self._on_volume(None, volume)
        for attachment in self._stores.attachments.all():
            self._on_attachment(None, attachment)

    def _subscribe(self) -> list[Callable[[], None]]:
        stores = self._stores
        return [
            stores.volumes.subscribe(self._on_volume),
            stores.attachments.subscribe(self._on_attachment),
            stores.backends.subscribe(self._on_backend),
            stores.pools.subscribe(self._on_pool),
            stores.storage_nodes.subscribe(self._on_storage_node),
            stores.nodes.subscribe(self._on_node),
        ]

    def _opened(self, backend: str) -> None:
        """A driver serves, or why it does not is known: its volumes may go on, or say so."""
        self.inventory.queue.add(("", backend))
        for volume in self._stores.volumes.by("backend", backend):
            self._on_volume(None, volume)

    def _on_volume(self, old: Volume | None, new: Volume | None) -> None:
        volume = new or old
        if volume is None or (old is not None and new is not None and _only_told(old, new)):
            return
        hosts = {
            v.status.allocation.host for v in (old, new) if v is not None and v.status.allocation is not None
        }
        key = (volume.namespace or "", volume.name)
        if self._newly_granted(old, new):
            self.backends.granted(volume.status.allocation.backend if volume.status.allocation else "")
        if self.host in hosts or self._stores.attachments.by("volume", "/".join(key)):
            self.volumes.queue.add(key)

    def _newly_granted(self, old: Volume | None, new: Volume | None) -> bool:
        allocation = new.status.allocation if new is not None else None
        if allocation is None or allocation.host != self.host:
            return False
        before = old.status.allocation if old is not None else None
        return before is None or (before.host, before.backend) != (allocation.host, allocation.backend)

    def _on_attachment(self, old: Attachment | None, new: Attachment | None) -> None:
        attachment = new or old
        if attachment is not None and not (old is not None and new is not None and _only_answered(old, new)):
            self.volumes.queue.add(attachment.volume_key)

    def _on_backend(self, old: Backend | None, new: Backend | None) -> None:
        if old is not None and new is not None and _same(old, new):
            return  # a status write of the leader
        backend = new or old
        if backend is not None:
            self.backends.queue.add(("", backend.name))

    def _on_pool(self, old: Pool | None, new: Pool | None) -> None:
        if new is None and old is not None and old.spec.host == self.host:
            self.backends.queue.add(("", old.spec.backend))  # removed by hand: it comes back

    def _on_storage_node(self, old: StorageNode | None, new: StorageNode | None) -> None:
        if new is None or (old is not None and old.status == new.status):
            return
        for attachment in self._stores.attachments.by("node", new.name):
            self.volumes.queue.add(attachment.volume_key)

    def _on_node(self, old: Node | None, new: Node | None) -> None:
        seen = new or old
        if seen is None or seen.name != self._identity.node:
            return
        if new is None or self._identity.is_another(new):
            self._identity.doubt()
            return
        if old is None or old.metadata.labels != new.metadata.labels:
            for backend in self._stores.backends.all():
                self.backends.queue.add(("", backend.name))


def _only_told(old: Volume, new: Volume) -> bool:
    """Whether only an error, or its end, was told: our own report must not wake us out of its back-off."""

    def rest(volume: Volume) -> Volume:
        status = volume.status
        conditions = drop_condition(status.conditions, READY)
        return volume.with_(
            metadata=volume.metadata.with_(resource_version=""),
            status=status.with_(last_error=None, phase=None, conditions=conditions),
        )

    return rest(old) == rest(new)


def _only_answered(old: Attachment, new: Attachment) -> bool:
    """As `_only_told`, of an Attachment."""

    def rest(attachment: Attachment) -> Attachment:
        status = attachment.status
        conditions = drop_condition(drop_condition(status.conditions, ADMITTED), EXPORTED)
        return attachment.with_(
            metadata=attachment.metadata.with_(resource_version=""),
            status=status.with_(last_error=None, observed_generation=0, conditions=conditions),
        )

    return rest(old) == rest(new)


def _same(old: Backend, new: Backend) -> bool:
    return (old.uid, old.metadata.generation, old.deleting) == (
        new.uid,
        new.metadata.generation,
        new.deleting,
    )
