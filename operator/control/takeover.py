"""What a new leader does before its first grant.

It writes its epoch into each Volume for which a predecessor may still have a grant under way: that late write was
decided on an older resourceVersion and conflicts from now on. Then it lists afresh, so that it counts whatever
the predecessor did write.
"""

from __future__ import annotations

import asyncio
import logging

from cinderblock.core.api.volume import Volume
from cinderblock.core.clock import Clock
from cinderblock.core.kube.port import Conflict, Kube, KubeUnavailable, Listing, ObjectNotFound, Rejected
from cinderblock.core.kube.store import Store
from cinderblock.operator.control.volume_decide import wants_grant
from cinderblock.operator.control.volume_status import stamped

_AT_ONCE = 64
_RETRY_SECONDS = 1.0

_log = logging.getLogger(__name__)


async def take_over(kube: Kube, volumes: Store[Volume], epoch: int, clock: Clock) -> None:
    """Errors are the port's, but for KubeUnavailable, which is outlasted, and what concerns one Volume alone."""
    waiting = [v for v in (await _listed(kube, clock)).items if _needs_stamp(v, epoch)]
    slots = asyncio.Semaphore(_AT_ONCE)

    async def stamp(volume: Volume) -> None:
        async with slots:
            await _stamp(kube, volume, epoch, clock)

    async with asyncio.TaskGroup() as group:
        for volume in waiting:
            group.create_task(stamp(volume))
    volumes.replace(await _listed(kube, clock))
    _log.info("leadership taken over with epoch %d, %d volumes wait for a grant", epoch, len(waiting))


async def _listed(kube: Kube, clock: Clock) -> Listing[Volume]:
    while True:
        try:
            return await kube.list(Volume)
        except KubeUnavailable as error:
            _log.warning("volumes cannot be listed, leadership waits: %s", error)
        await clock.sleep(_RETRY_SECONDS)


def _needs_stamp(volume: Volume, epoch: int) -> bool:
    scheduling = volume.status.scheduling
    return wants_grant(volume) and (scheduling is None or scheduling.epoch < epoch)


async def _stamp(kube: Kube, volume: Volume, epoch: int, clock: Clock) -> None:
    current = volume
    while _needs_stamp(current, epoch):
        try:
            await kube.update_status(current, stamped(current, epoch))
            return
        except ObjectNotFound:
            return
        except Conflict:
            pass
        except Rejected as error:
            # It does not keep the others from a leader. A predecessor's write of it is refused as well.
            _log.error("volume %s/%s refuses every write: %s", volume.namespace, volume.name, error)
            return
        except KubeUnavailable as error:
            _log.warning("volume %s/%s is not taken over yet: %s", volume.namespace, volume.name, error)
            await clock.sleep(_RETRY_SECONDS)
        try:
            current = await kube.get(Volume, volume.name, volume.namespace)
        except ObjectNotFound:
            return
        except KubeUnavailable:
            await clock.sleep(_RETRY_SECONDS)
