"""Opens the drivers of the Backends that this host serves and keeps their Pools reported.

One queue key per Backend, so that one that hangs or fails never delays its neighbours. What is served follows
from the Backend, the Node's labels and the volumes that are here already: a Backend that does not select this
node any more, or is being deleted, serves its volumes to their end and takes no new ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from cinderblock.core.api.backend import Backend
from cinderblock.core.errors import StorageError
from cinderblock.core.kube.port import ObjectNotFound
from cinderblock.core.names import OPERATOR_HOST
from cinderblock.core.process import Runner
from cinderblock.drivers.base import DriverContext
from cinderblock.drivers.registry import Registry
from cinderblock.operator.engine.queue import Backoff, Key, WorkQueue
from cinderblock.operator.host.decide_pool import PoolOwner
from cinderblock.operator.host.drivers import OpenBackend, ask
from cinderblock.operator.host.identity import HostIdentity
from cinderblock.operator.host.pools import REPORT_EVERY_SECONDS, Pools
from cinderblock.operator.host.tools import HostTools

POLL_SECONDS = 30.0  # figures that change without us, such as the free bytes of a shared filesystem
_EMPTY_POLL_SECONDS = 30.0
_WORKERS = 16

_log = logging.getLogger(__name__)


def selects(backend: Backend, host: str, labels: dict[str, str]) -> bool:
    """Whether this Backend wants pools on this host."""
    selector = backend.spec.node_selector
    if selector is None:
        return host == OPERATOR_HOST
    return host != OPERATOR_HOST and all(labels.get(key) == value for key, value in selector.items())


class Backends:
    def __init__(
        self,
        tools: HostTools,
        *,
        registry: Registry,
        identity: HostIdentity,
        pools_root: Path,
        runner: Runner,
    ) -> None:
        self.open = tools.drivers
        self.queue = WorkQueue(
            "host-backends",
            self.reconcile,
            workers=_WORKERS,
            clock=tools.clock,
            backoff=Backoff(1.0, 60.0),
            metrics=tools.metrics,
        )
        self._tools = tools
        self._registry = registry
        self._identity = identity
        self._pools_root = pools_root
        self._runner = runner
        self._pools = Pools(tools.kube, tools.stores.pools, tools.clock)
        self._listeners: tuple[Callable[[str], None], ...] = ()

    def on_verdict(self, listener: Callable[[str], None]) -> None:
        """Call listener(backend) whenever a driver began to serve, or it became known why it does not."""
        self._listeners = (*self._listeners, listener)

    def open_soon(self, name: str) -> None:
        """A Volume waits for the verdict on this Backend."""
        self.queue.add(("", name))

    def granted(self, name: str) -> None:
        """A Volume came here: a Backend that this host has let go of is needed again."""
        if self.open.get(name) is None and not self.open.undecided(name):
            self.queue.add(("", name))

    def report_soon(self, name: str) -> None:
        """Something changed on this backend: report within five seconds, once for all changes until then."""
        self.queue.add(("", name), after=REPORT_EVERY_SECONDS)

    async def close(self) -> None:
        for name in self.open.names():
            await self.open.close(name)

    async def reconcile(self, key: Key) -> float | None:
        name = key[1]
        backend = await self._find(name)
        if backend is None:
            return await self._retire(name, "BackendGone", f"Backend {name} was deleted")
        owner = PoolOwner(backend, self._identity.host, self._identity.node)
        closed: tuple[str, str] | None = None
        if backend.deleting:
            closed = ("BackendDeleting", "the Backend is being deleted: no new volumes")
        elif not selects(backend, self._identity.host, self._identity.labels):
            closed = ("NotSelected", "the Backend does not select this host any more: no new volumes")
        if closed is not None and not self._concerned(name):
            return None
        if closed is not None and not await self._pools.still_granted(name, self._identity.host):
            if backend.deleting:  # its finalizer stands: until that goes, the pools say why nothing is placed
                self._explain(name, closed[1])
                await self._pools.close(name, self._identity.host, *closed)
                return None
            return await self._retire(name, *closed)
        return await self._serve(owner, closed)

    async def _find(self, name: str) -> Backend | None:
        """The Backend; a miss is believed only when a fresh read says so."""
        known = self._tools.stores.backends.get(None, name)
        if known is not None:
            return known
        try:
            fresh = await self._tools.kube.get(Backend, name)
        except ObjectNotFound:
            return None
        self._tools.stores.backends.apply(fresh)
        return fresh

    def _concerned(self, name: str) -> bool:
        """Whether this host has, or may have, anything of a Backend that does not want it."""
        host = self._identity.host
        return (
            self.open.get(name) is not None
            or bool(self._pools.of(name, host))
            or any(
                v.status.allocation is not None and v.status.allocation.host == host
                for v in self._tools.stores.volumes.by("backend", name)
            )
        )

    async def _retire(self, name: str, reason: str, message: str) -> float | None:
        if not self._concerned(name):
            self.open.explain(name, None)
            return None
        self._explain(name, message)
        host = self._identity.host
        if await self._pools.still_granted(name, host):
            # Forced: volumes without their Backend. What is open keeps serving them, the Pool stays with its id.
            await self._pools.close(name, host, reason, message)
            return _EMPTY_POLL_SECONDS
        await self.open.close(name)
        await self._pools.remove(name, host)
        return None

    async def _serve(self, owner: PoolOwner, closed: tuple[str, str] | None) -> float:
        backend = owner.backend
        try:
            opened = await self._opened(owner)
            async with opened.used():
                reports = await ask(f"pools of {backend.name}", opened.driver.pools())
                again = await self._pools.report(owner, opened.driver, reports, closed)
        except StorageError as error:
            self._explain(backend.name, error.message)
            # The Event first: where a Pool's name is taken, there is no Pool that could say it.
            await self._tools.recorder.warn(backend, error.reason, f"host {owner.host}: {error.message}")
            await self._pools.report_failure(owner, error)
            raise
        self.open.explain(backend.name, None)
        if not opened.serving:
            opened.serving = True
            _log.info("backend %s is open on host %s", backend.name, owner.host)
            self._tell(backend.name)
        return POLL_SECONDS if again is None else min(again, POLL_SECONDS)

    def _explain(self, name: str, why: str) -> None:
        news = self.open.undecided(name)
        self.open.explain(name, why)
        if news:
            self._tell(name)

    def _tell(self, name: str) -> None:
        for listener in self._listeners:
            listener(name)

    async def _opened(self, owner: PoolOwner) -> OpenBackend:
        """The open driver of this Backend with its present configuration."""
        backend, spec = owner.backend, owner.backend.spec
        config = self._registry.judge(spec.driver, spec.config, spec.node_selector)
        opened = self.open.get(backend.name)
        if opened is not None:
            same = (opened.backend_uid, opened.driver_name, opened.config) == (
                backend.uid,
                spec.driver,
                config,
            )
            if same and not opened.closing:
                return opened
            await self.open.close(backend.name)
        known = await self._pools.known_ids(backend.name, owner.host)
        factory = self._registry.get(spec.driver)
        driver = factory(
            config,
            DriverContext(
                backend=backend.name,
                node=owner.node,
                pools_root=self._pools_root,
                runner=self._runner,
                clock=self._tools.clock,
            ),
        )
        try:
            await ask(f"open of {backend.name}", driver.open(known))
        except StorageError:
            await ask(f"close of {backend.name}", driver.close())  # a lock taken half-way must not stay
            raise
        opened = OpenBackend(
            name=backend.name,
            backend_uid=backend.uid,
            driver_name=spec.driver,
            driver=driver,
            config=config,
            node_local=factory.node_local,
        )
        self.open.put(opened)
        return opened
