"""The leader's reconciler of Backends: judges the configuration, counts the Pools, holds what is in use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from cinderblock.core.api.backend import ACCEPTED, BACKEND_IN_USE, POOL_READY, Backend
from cinderblock.core.api.meta import Condition, drop_condition, is_true, set_condition
from cinderblock.core.api.volume import Volume
from cinderblock.core.errors import InvalidRequest
from cinderblock.core.names import FINALIZER_PROTECT
from cinderblock.operator.control.ledger import Ledger
from cinderblock.operator.control.tools import Tools
from cinderblock.operator.engine.queue import Key
from cinderblock.operator.engine.writer import StatusWriter

_NAMED = 3
_VOLUMES_EXIST = "VolumesExist"
_IN_USE_RECHECK_SECONDS = 30.0


class Judge(Protocol):
    """drivers.registry.Registry; hosts judge by the same function."""

    def judge(
        self, driver: str, config: Mapping[str, Any], node_selector: Mapping[str, str] | None
    ) -> object: ...


class BackendReconciler:
    def __init__(self, tools: Tools, judge: Judge, ledger: Ledger) -> None:
        self._tools = tools
        self._judge = judge
        self._ledger = ledger
        self._writer = StatusWriter(tools.kube, tools.stores.backends)

    async def reconcile(self, key: Key) -> float | None:
        backend = self._tools.stores.backends.get(*key)
        if backend is None:
            return None
        if backend.deleting:
            return await self._release(backend)
        backend = await self._writer.update(backend, backend.with_finalizer(FINALIZER_PROTECT))
        conditions, error = self._judged(backend)
        written = await self._report(backend, drop_condition(conditions, BACKEND_IN_USE))
        if error is not None and written is not backend:
            await self._tools.recorder.warn(backend, error.reason, error.message)
        return None

    def _judged(self, backend: Backend) -> tuple[tuple[Condition, ...], InvalidRequest | None]:
        spec, error = backend.spec, None
        try:
            self._judge.judge(spec.driver, spec.config, spec.node_selector)
        except InvalidRequest as refused:
            error = refused
        conditions = set_condition(
            backend.status.conditions,
            ACCEPTED,
            error is None,
            reason="Valid" if error is None else error.reason,
            message="" if error is None else error.message,
            generation=backend.metadata.generation,
            now=self._tools.clock.now(),
        )
        return conditions, error

    async def _report(self, backend: Backend, conditions: tuple[Condition, ...]) -> Backend:
        pools = self._tools.stores.pools.by("backend", backend.name)
        status = backend.status.with_(
            observed_generation=backend.metadata.generation,
            pools=len(pools),
            ready_pools=sum(is_true(p.status.conditions, POOL_READY) for p in pools),
            conditions=conditions,
        )
        return await self._writer.status(backend, backend.with_(status=status))

    async def _release(self, backend: Backend) -> float | None:
        """Let it go once no allocation names it; from the first sight of its deletion it gets no new grant."""
        if not backend.has_finalizer(FINALIZER_PROTECT):
            return None
        volumes = self._tools.stores.volumes.by("backend", backend.name)
        if not volumes and not self._ledger.assumed_in_backend(backend.name):
            listing = await self._tools.kube.list(Volume)
            volumes = [v for v in listing.items if _is_in(v, backend.name)]
            # a grant that was under way before the list could not see it must be settled first
            if not volumes and not self._ledger.assumed_in_backend(backend.name):
                await self._writer.update(backend, backend.without_finalizer(FINALIZER_PROTECT))
                return None
        names = sorted(f"{v.namespace}/{v.name}" for v in volumes)
        count = "1 volume is" if len(names) == 1 else f"{len(names)} volumes are"
        listed = f"{', '.join(names[:_NAMED])}{', ...' if names[_NAMED:] else ''}"
        message = f"{count} in it ({listed}): delete them, and the Backend goes"
        conditions = set_condition(
            backend.status.conditions,
            BACKEND_IN_USE,
            True,
            reason=_VOLUMES_EXIST,
            message=message,
            generation=backend.metadata.generation,
            now=self._tools.clock.now(),
        )
        written = await self._report(backend, conditions)
        if written is not backend:
            await self._tools.recorder.warn(backend, _VOLUMES_EXIST, message)
        return _IN_USE_RECHECK_SECONDS


def _is_in(volume: Volume, backend: str) -> bool:
    allocation = volume.status.allocation
    return allocation is not None and allocation.backend == backend
