"""Grants: decided one at a time, counted before they are written.

Ranking and counting happen in one step without an await, so two decisions never see the same room. What becomes
of the write decides over the assumption: certain failure drops it, anything else leaves it to the ledger, which
settles it with the next version of the Volume that is seen.
"""

from __future__ import annotations

from cinderblock.core.api.volume import Rejection, Volume
from cinderblock.core.clock import Clock
from cinderblock.core.errors import NotReady, OutOfCapacity, StorageError
from cinderblock.core.kube.port import Conflict, Forbidden, ObjectNotFound, Rejected
from cinderblock.core.kube.store import key_of
from cinderblock.operator.control import volume_status as status
from cinderblock.operator.control.ledger import Ledger
from cinderblock.operator.control.views import PoolViews
from cinderblock.operator.control.volume_decide import Place, Resize
from cinderblock.operator.engine.writer import StatusWriter
from cinderblock.operator.scheduler.filters.capacity import CapacityFilter
from cinderblock.operator.scheduler.rank import rank
from cinderblock.operator.scheduler.report import no_pool, rejections

_CERTAIN_FAILURES = (Conflict, ObjectNotFound, Rejected, Forbidden)


class Granting:
    def __init__(
        self, writer: StatusWriter[Volume], ledger: Ledger, views: PoolViews, clock: Clock, epoch: int
    ) -> None:
        self._writer = writer
        self._ledger = ledger
        self._views = views
        self._clock = clock
        self._epoch = epoch
        self._room = CapacityFilter()

    async def place(
        self, volume: Volume, decision: Place
    ) -> tuple[StorageError, tuple[Rejection, ...]] | None:
        """Write the best grant; otherwise say why there is none. Errors are the port's."""
        verdict = rank(decision.request, self._views.all(key_of(volume)))
        if not verdict.candidates:
            return no_pool(decision.request, verdict), rejections(verdict)
        after = status.granted(
            volume,
            verdict,
            request=decision.request,
            volume_type=decision.volume_type,
            type_revision=decision.type_revision,
            attempts=decision.attempts,
            epoch=self._epoch,
            now=self._clock.now(),
        )
        await self._write(volume, after)
        return None

    async def resize(self, volume: Volume, decision: Resize) -> StorageError | None:
        """Write another size of the standing grant; growing needs room, lowering none."""
        allocation = volume.status.allocation
        assert allocation is not None
        after = status.resized(volume, decision.size_bytes, epoch=self._epoch)
        if decision.grows(volume):
            view = self._views.one(allocation.pool, volume)
            if view is None:
                return NotReady(f"pool {allocation.pool} does not exist at the moment")
            refusal = self._room.refuse(decision.request, view)
            if refusal is not None:
                return OutOfCapacity(f"pool {allocation.pool}: {refusal}")
        await self._write(volume, after)
        return None

    async def _write(self, before: Volume, after: Volume) -> None:
        assumption = self._ledger.assume(before, after)
        try:
            await self._writer.status(before, after)
        except _CERTAIN_FAILURES:
            self._ledger.drop(key_of(before), assumption)
            raise
