"""An operator process from start to end: who leads, what runs in which order, and how it stops.

Start: connect, (leader: wait for the Lease,) list every kind, watch through kopf, run the roles.
Stop, within 10 s of SIGTERM: roles, kopf, Lease. A leader that loses its Lease does not stop, it ends at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector

from cinderblock.core.clock import Clock, SystemClock
from cinderblock.core.collector import calm_collector
from cinderblock.core.health import Health, endpoint
from cinderblock.core.kube.adapter import ApiServerKube, connect
from cinderblock.core.kube.events import EventRecorder
from cinderblock.core.kube.port import Kube
from cinderblock.core.metrics import PrometheusQueueMetrics, QueueMetrics
from cinderblock.core.names import OPERATOR_HOST, OPERATOR_LEASE, host_name
from cinderblock.core.process import Runner, SystemRunner
from cinderblock.core.shutdown import on_signals
from cinderblock.drivers.registry import Registry
from cinderblock.operator.control.role import ControlRole
from cinderblock.operator.engine.election import Elector
from cinderblock.operator.engine.guard import (
    Guard,
    GuardedKube,
    GuardedRunner,
    LeaseLost,
    end_process,
    watchdog,
)
from cinderblock.operator.engine.heartbeat import Heartbeat
from cinderblock.operator.engine.relist import Relister
from cinderblock.operator.engine.scope import Scope, host_scope, leader_scope
from cinderblock.operator.engine.stores import make_stores
from cinderblock.operator.events.edge import watch
from cinderblock.operator.host.metrics import HostMetrics, PrometheusHostMetrics
from cinderblock.operator.host.role import HostRole
from cinderblock.operator.options import OperatorOptions, Role

COMPONENT = "cinderblock"
STOP_SECONDS = 10.0
_STALE_LISTING = 1800.0
_STALE_LEASE = 300.0
_ROLES_STOP, _KOPF_STOP, _LEASE_STOP = 4.0, 2.5, 1.0

_log = logging.getLogger(__name__)
T = TypeVar("T")
Part = tuple[str, Coroutine[object, object, None]]


async def run_operator(options: OperatorOptions) -> int:
    """Serve until SIGTERM or SIGINT (0), or until a part fails (1). Errors: ConfigurationError."""
    calm_collector()
    clock, health, registry = SystemClock(), Health(), CollectorRegistry()
    ProcessCollector(registry=registry)
    metrics, host_metrics = PrometheusQueueMetrics(registry), PrometheusHostMetrics(registry)
    stop = asyncio.Event()
    on_signals(stop.set, limit=STOP_SECONDS)
    async with connect(options.kubeconfig) as kube:
        process = _Process(
            options,
            kube,
            clock=clock,
            health=health,
            metrics=metrics,
            host_metrics=host_metrics,
            stop=stop,
        )
        async with endpoint(health, registry, port=options.metrics_port, address=options.metrics_address):
            if options.role is Role.HOST:
                return await process.host()
            return await process.leader()


class _Process:
    def __init__(
        self,
        options: OperatorOptions,
        kube: ApiServerKube,
        *,
        clock: Clock,
        health: Health,
        metrics: QueueMetrics,
        host_metrics: HostMetrics,
        stop: asyncio.Event,
    ) -> None:
        self._options = options
        self._kube = kube
        self._clock = clock
        self._health = health
        self._metrics = metrics
        self._host_metrics = host_metrics
        self._stop = stop
        self._drivers = Registry.load()
        self._stores = make_stores()

    async def host(self) -> int:
        node = self._options.node
        if not node:
            raise ValueError("role host needs the name of its node")
        host = host_name(node)
        scope = host_scope(self._stores, host, node)
        recorder = EventRecorder(self._kube, COMPONENT, self._clock, instance=self._options.identity)
        role = self._host_role(self._kube, recorder, host, node, SystemRunner())
        return await self._serve(
            scope, [("heartbeat", self._heartbeat(self._kube, host, node)), ("host", role.run())]
        )

    async def leader(self) -> int:
        elector = Elector(
            self._kube,
            self._clock,
            namespace=self._options.namespace,
            name=OPERATOR_LEASE,
            identity=self._options.identity,
        )
        self._fresh("election", lambda: elector.asked_at, _STALE_LEASE)
        try:
            guard = await self._unless_stopped(elector.acquire())
            if guard is None:
                return 0
            with watchdog(guard):
                return await self._lead(elector, guard)
        finally:
            await elector.release()

    async def _lead(self, elector: Elector, guard: Guard) -> int:
        kube = GuardedKube(self._kube, guard)
        recorder = EventRecorder(kube, COMPONENT, self._clock, instance=self._options.identity)
        control = ControlRole(
            kube,
            self._stores,
            self._clock,
            guard.epoch,
            recorder,
            self._drivers,
            self._options.namespace,
            metrics=self._metrics,
        )
        host = self._host_role(kube, recorder, OPERATOR_HOST, None, GuardedRunner(SystemRunner(), guard))
        lease = asyncio.create_task(self._hold(elector, guard), name="lease")
        try:
            return await self._serve(
                leader_scope(self._stores),
                [
                    ("heartbeat", self._heartbeat(kube, OPERATOR_HOST)),
                    ("control", control.run()),
                    ("host", host.run()),
                ],
            )
        finally:
            # last, so that the roles could end under a Lease that is still theirs
            await _cancelled({lease}, _LEASE_STOP)

    async def _hold(self, elector: Elector, guard: Guard) -> None:
        try:
            await elector.hold(guard)
        except LeaseLost as error:
            end_process(str(error))
        except Exception as error:  # whatever it is: nobody renews any more
            _log.exception("renewing the Lease failed")
            end_process(repr(error))

    # parts -----------------------------------------------------------------------------------------------
    def _host_role(
        self, kube: Kube, recorder: EventRecorder, host: str, node: str | None, runner: Runner
    ) -> HostRole:
        return HostRole(
            kube,
            self._stores,
            self._clock,
            recorder,
            self._drivers,
            host,
            node,
            self._options.pools_root,
            runner,
            release_namespace=self._options.namespace,
            metrics=self._metrics,
            host_metrics=self._host_metrics,
        )

    async def _heartbeat(self, kube: Kube, host: str, node: str | None = None) -> None:
        heart = Heartbeat(
            kube,
            self._clock,
            namespace=self._options.namespace,
            host=host,
            identity=self._options.identity,
            node=node,
        )
        self._fresh("heartbeat", lambda: heart.beat_at, _STALE_LEASE)
        await heart.run()

    async def _serve(self, scope: Scope, roles: list[Part]) -> int:
        """Feed the stores and run the roles until a stop is asked for (0) or a part ends (1)."""
        self._health.ready("stores", lambda: _unsynced(scope))
        relister = Relister(self._kube, scope, self._clock)
        kopf_stop, kopf_ready = asyncio.Event(), asyncio.Event()
        parts: dict[asyncio.Task[None], str] = {}
        kopf_task: asyncio.Task[None] | None = None
        stopping = asyncio.create_task(self._stop.wait())
        try:
            if await self._unless_stopped(self._listed(relister)) is None:
                return 0
            kopf_task = asyncio.create_task(
                watch(self._kube, scope, self._stores, stop=kopf_stop, ready=kopf_ready), name="watches"
            )
            parts[kopf_task] = "watches"
            await self._unless_stopped(_either(kopf_ready, kopf_task))
            on_signals(self._stop.set, limit=STOP_SECONDS)  # kopf has put its own handlers there
            self._fresh("listing", lambda: relister.listed_at, _STALE_LISTING)
            for name, part in (("relist", relister.run()), *roles):
                parts[asyncio.create_task(part, name=name)] = name
            roles = []
            await asyncio.wait({*parts, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return _verdict(parts, asked=self._stop.is_set())
        finally:
            for _, never_run in roles:
                never_run.close()
            stopping.cancel()
            await _cancelled({task for task in parts if task is not kopf_task}, _ROLES_STOP)
            if kopf_task is not None:
                kopf_stop.set()
                await asyncio.wait({kopf_task}, timeout=_KOPF_STOP)

    @staticmethod
    async def _listed(relister: Relister) -> bool:
        await relister.first()
        return True

    def _fresh(self, name: str, seen_at: Callable[[], float | None], limit: float) -> None:
        started = self._clock.monotonic()

        def check() -> str | None:
            age = self._clock.monotonic() - (seen_at() or started)
            return None if age <= limit else f"nothing for {age:.0f} s"

        self._health.alive(name, check)

    async def _unless_stopped(self, work: Coroutine[object, object, T]) -> T | None:
        """The result of work, or None when a stop was asked for before it was there."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            stopping.cancel()
            await _cancelled({task}, _ROLES_STOP)


async def _either(event: asyncio.Event, task: asyncio.Task[None]) -> None:
    """Until the event is set or the task has ended."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


async def _cancelled(tasks: set[asyncio.Task[T]], timeout: float) -> None:
    """Cancel and wait; what does not end in time is left to the end of the process."""
    for task in tasks:
        task.cancel()
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=timeout)
        for task in late:
            _log.warning("%s did not stop within %g s", task.get_name(), timeout)


def _unsynced(scope: Scope) -> str | None:
    missing = [watched.store.kind.PLURAL for watched in scope if not watched.store.synced.is_set()]
    return f"not listed yet: {', '.join(missing)}" if missing else None


def _verdict(parts: dict[asyncio.Task[None], str], *, asked: bool) -> int:
    """The exit code: 0 for a stop that was asked for, 1 when a part ended by itself."""
    failed = False
    for task, name in parts.items():
        if not task.done() or task.cancelled():
            continue
        error = task.exception()
        if error is not None:
            failed = True
            _log.error("%s failed: %s", name, error, exc_info=error)
        elif not asked:
            failed = True
            _log.error("%s ended though nobody asked for it", name)
    return 1 if failed else 0
