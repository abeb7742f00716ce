"""Leader election on one Lease.

Rules (those of client-go, with its gaps closed): a term lasts 15 s; its holder renews every 2 s and stops all
effects 10 s after the last renewal that it began and that succeeded; others take over when they themselves have seen
no change of the record for 15 s. No clock of another machine is ever read. leaseTransitions is the epoch.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from enum import StrEnum

from cinderblock.core.api.builtin import Lease, LeaseSpec
from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.clock import Clock
from cinderblock.core.kube.port import Conflict, Kube, KubeError, ObjectExists, ObjectNotFound
from cinderblock.operator.engine.guard import Guard, LeaseLost

LEASE_SECONDS = 15.0
RENEW_SECONDS = 10.0
RETRY_SECONDS = 2.0
CALL_SECONDS = 4.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sight:
    """A Lease as it was seen, and since when (local monotonic time) it has looked like that."""

    lease: Lease | None
    since: float

    def next(self, lease: Lease | None, now: float) -> Sight:
        """The record counts, not its resourceVersion: only the holder changes it to say that it lives."""
        same = self.lease is not None and lease is not None and self.lease.spec == lease.spec
        return Sight(lease, self.since if same else now)


class Move(StrEnum):
    CREATE = "Create"
    TAKE = "Take"
    WAIT = "Wait"


def decide(sight: Sight, now: float, me: str) -> Move:
    """What a candidate that does not lead does next."""
    if sight.lease is None:
        return Move.CREATE
    spec = sight.lease.spec
    if spec.holder_identity in (None, "", me):
        return Move.TAKE  # free, or our own try whose answer was lost: nothing was done under it
    term = max(LEASE_SECONDS, float(spec.lease_duration_seconds or 0))
    return Move.TAKE if now - sight.since >= term else Move.WAIT


class Elector:
    """One candidate. `identity` must be new at every start of a process."""

    def __init__(self, kube: Kube, clock: Clock, *, namespace: str, name: str, identity: str) -> None:
        self._kube = kube
        self._clock = clock
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._lease: Lease | None = None
        self.asked_at: float | None = (
            None  # monotonic time of the last answer about the Lease, for health checks
        )

    async def acquire(self) -> Guard:
        """Wait until this process leads. Errors of the API server are waited out."""
        sight = Sight(None, self._clock.monotonic())
        while True:
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    lease = await self._read()
                self.asked_at = self._clock.monotonic()
                sight = sight.next(lease, self._clock.monotonic())
                move = decide(sight, self._clock.monotonic(), self._identity)
                if move is not Move.WAIT:
                    return await self._take(lease)
            except (Conflict, ObjectExists, ObjectNotFound):
                _log.debug("another candidate was faster")
            except (KubeError, TimeoutError) as error:
                _log.warning("election of %s: %s", self._name, str(error) or "no answer in time")
            await self._clock.sleep(RETRY_SECONDS)

    async def hold(self, guard: Guard) -> None:
        """Renew until the term cannot be kept; then the Guard has ended and LeaseLost is raised."""
        try:
            while True:
                await self._clock.sleep(min(RETRY_SECONDS, max(guard.remaining(), 0.0)))
                guard.check()
                await self._renew(guard)
        finally:
            # also on cancellation: whoever stops renewing has stopped leading
            guard.end()

    async def release(self) -> None:
        """Give the Lease back after everything that leads has stopped. Best effort: it would expire anyway."""
        held, self._lease = self._lease, None
        if held is None:
            return
        free = held.spec.with_(holder_identity=None, lease_duration_seconds=1, renew_time=self._stamp())
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._kube.update(held, held.with_(spec=free))
        except (KubeError, TimeoutError) as error:
            _log.info("the Lease was not given back: %s", error)

    async def _renew(self, guard: Guard) -> None:
        held = self._lease
        assert held is not None, "hold() comes after acquire()"
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(min(CALL_SECONDS, guard.remaining())):
                renewed = held.spec.with_(renew_time=self._stamp())
                self._lease = await self._kube.update(held, held.with_(spec=renewed))
        except Conflict:
            await self._reread(guard)
        except ObjectNotFound:
            raise LeaseLost("the Lease was deleted") from None
        except (KubeError, TimeoutError) as error:
            left = guard.remaining()
            _log.warning("lease not renewed, %.1f s left: %s", left, str(error) or "no answer in time")
        else:
            self.asked_at = self._clock.monotonic()
            guard.extend(began + RENEW_SECONDS)

    async def _reread(self, guard: Guard) -> None:
        """A conflict: an earlier renewal of ours arrived although its answer did not, or we have a successor."""
        try:
            async with asyncio.timeout(min(CALL_SECONDS, max(guard.remaining(), 0.0))):
                lease = await self._read()
        except (KubeError, TimeoutError) as error:
            _log.warning("lease could not be read: %s", str(error) or "no answer in time")
            return
        if lease is None or lease.spec.holder_identity != self._identity:
            holder = lease.spec.holder_identity if lease is not None else "nobody"
            raise LeaseLost(f"the Lease belongs to {holder}")
        self._lease = lease

    async def _read(self) -> Lease | None:
        try:
            return await self._kube.get(Lease, self._name, self._namespace)
        except ObjectNotFound:
            return None

    async def _take(self, lease: Lease | None) -> Guard:
        began = self._clock.monotonic()
        stamp = self._stamp()
        async with asyncio.timeout(CALL_SECONDS):
            if lease is None:
                # A Lease that somebody deleted must not bring an old epoch back: minutes grow faster than terms.
                first = int(self._clock.now().timestamp() // 60)
                spec = self._spec(first, stamp)
                meta = ObjectMeta(name=self._name, namespace=self._namespace)
                self._lease = await self._kube.create(Lease(metadata=meta, spec=spec))
            else:
                spec = self._spec((lease.spec.lease_transitions or 0) + 1, stamp)
                self._lease = await self._kube.update(lease, lease.with_(spec=spec))
        guard = Guard(self._clock, self._lease.spec.lease_transitions or 0)
        guard.extend(began + RENEW_SECONDS)
        _log.info("leading %s as %s, epoch %d", self._name, self._identity, guard.epoch)
        return guard

    def _spec(self, epoch: int, stamp: str) -> LeaseSpec:
        return LeaseSpec(
            holder_identity=self._identity,
            lease_duration_seconds=int(LEASE_SECONDS),
            acquire_time=stamp,
            renew_time=stamp,
            lease_transitions=epoch,
        )

    def _stamp(self) -> str:
        """A MicroTime; the fraction of our monotonic clock makes every renewal differ from the one before."""
        fraction = int(self._clock.monotonic() % 1 * 1_000_000)
        return f"{self._clock.now():%Y-%m-%dT%H:%M:%S}.{fraction:06d}Z"
