"""Compares what each backend holds with the Volumes, at start, every ten minutes, and when something may be left.

The order matters: the backend first, the Volumes after. A Volume is always older than its object, so one that a
later list does not know is gone; and what an older inventory lacks is only a suspicion, which the Volume's own
reconcile proves by a fresh question to the backend.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from cinderblock.core.api.backend import Backend
from cinderblock.core.api.volume import Volume
from cinderblock.core.errors import StorageError
from cinderblock.drivers.base import VolumeInfo
from cinderblock.operator.engine.queue import Backoff, Key, WorkQueue
from cinderblock.operator.host.decide_inventory import Verdict, judge_cached, judge_fresh
from cinderblock.operator.host.decide_volume import current_ref
from cinderblock.operator.host.drivers import OpenBackend, ask
from cinderblock.operator.host.tools import HostTools
from cinderblock.operator.host.volume_status import is_lost, is_provisioned
from cinderblock.operator.host.volumes import Volumes

EVERY_SECONDS = 600.0
_SOON_SECONDS = 1.0
_WORKERS = 4
_NAMED = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Findings:
    """What one comparison ended in."""

    deleted: int = 0
    unknown: tuple[str, ...] = ()  # sealed objects that no Volume names: reported, never deleted
    missing: int = 0


@dataclass
class _Tally:
    deleted: int = 0
    missing: int = 0
    unknown: list[str] = field(default_factory=list)


class Inventory:
    def __init__(self, tools: HostTools) -> None:
        self.queue = WorkQueue(
            "host-inventory",
            self.reconcile,
            workers=_WORKERS,
            clock=tools.clock,
            backoff=Backoff(1.0, 60.0),
            metrics=tools.metrics,
        )
        self.findings: dict[str, Findings] = {}
        self._tools = tools
        self._volumes: Volumes | None = None

    def serve(self, volumes: Volumes) -> None:
        """Hand what is found to this reconciler; once, before the queue runs."""
        self._volumes = volumes

    def soon(self, backend: str) -> None:
        self.queue.add(("", backend), after=_SOON_SECONDS)

    async def reconcile(self, key: Key) -> float | None:
        name = key[1]
        opened = self._tools.drivers.get(name)
        if opened is None or not opened.serving or opened.closing:
            self.findings.pop(name, None)
            return None  # asked for again when it opens
        tally = _Tally()
        async with self._tools.drivers.use(name):
            entries = await ask(f"inventory of {name}", opened.driver.inventory())
            for info in entries:
                await self._judge(opened, info, tally)
        self._find_missing(name, entries, tally)
        self.findings[name] = Findings(tally.deleted, tuple(tally.unknown), tally.missing)
        self._tools.host_metrics.inventory(
            name, unknown=len(tally.unknown), missing=tally.missing, deleted=tally.deleted
        )
        await self._report(name, tally.unknown)
        return EVERY_SECONDS

    async def _judge(self, opened: OpenBackend, info: VolumeInfo, tally: _Tally) -> None:
        cached = self._tools.stores.volumes.by("handle", info.ref.handle)
        verdict = judge_cached(info, cached, self._tools.host, opened.name)
        if verdict is Verdict.UNSURE:
            fresh = await self._tools.kube.list(Volume, field_selector=f"status.handle={info.ref.handle}")
            for volume in fresh.items:
                if volume.status.allocation is not None and volume.status.allocation.host == self._tools.host:
                    self._tools.stores.volumes.apply(volume)
            verdict = judge_fresh(info, fresh.items)
        if verdict is Verdict.SEAL and self._volumes is not None:
            self._volumes.seal(cached[0], info.ref)
        elif verdict is Verdict.FOUND and self._volumes is not None:
            self._volumes.suspect(cached[0], info.ref)
        elif verdict is Verdict.REPORT:
            tally.unknown.append(info.ref.object_name)
        elif verdict is Verdict.DELETE:
            await self._delete(opened, info, tally)

    async def _delete(self, opened: OpenBackend, info: VolumeInfo, tally: _Tally) -> None:
        try:
            await ask(f"delete of {info.ref.object_name}", opened.driver.delete_volume(info.ref))
        except StorageError as error:  # the next inventory tries again; the others must not wait for this one
            _log.warning("left-over %s was not deleted: %s", info.ref.object_name, error)
            return
        tally.deleted += 1
        _log.info("deleted %s: it was never recorded and nobody is granted it", info.ref.object_name)

    def _find_missing(self, backend: str, entries: Sequence[VolumeInfo], tally: _Tally) -> None:
        present = {info.ref for info in entries if info.complete}
        for volume in self._tools.stores.volumes.by("backend", backend):
            allocation, ref = volume.status.allocation, current_ref(volume)
            if allocation is None or allocation.host != self._tools.host or ref is None or ref in present:
                continue
            if is_provisioned(volume) and not is_lost(volume) and not volume.deleting:
                tally.missing += 1
                if self._volumes is not None:
                    self._volumes.suspect(volume, ref)

    async def _report(self, name: str, unknown: Sequence[str]) -> None:
        backend = self._tools.stores.backends.get(None, name)
        if not unknown or not isinstance(backend, Backend):
            return
        some = ", ".join(sorted(unknown)[:_NAMED])
        await self._tools.recorder.warn(
            backend,
            "UnknownObjects",
            f"host {self._tools.host} holds {len(unknown)} volumes that no Volume names ({some}): nothing deletes them",
        )
