"""Attachments on a node: how long from POST to a device, and from DELETE to nothing left."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from cinderblock.core.api.attachment import CONNECTED, Attachment, AttachmentSpec
from cinderblock.core.api.meta import ObjectMeta, is_true
from cinderblock.core.api.volume import Volume
from cinderblock.core.kube.adapter import connect
from cinderblock.core.kube.port import Kube
from cinderblock.core.names import FINALIZER_PROTECT, LABEL_HOST, host_name
from tools.bench.creates import available, volume
from tools.bench.figures import Figure, percentile
from tools.bench.load import Load
from tools.bench.scale import Scale
from tools.bench.world import FILE, NAMESPACE, NODE, World
from tools.shell import say

_SERIAL = "local attach"


def attachment(name: str, of: str) -> Attachment:
    """As our own clients make it."""
    meta = ObjectMeta(
        name=name,
        namespace=NAMESPACE,
        finalizers=(FINALIZER_PROTECT,),
        labels={LABEL_HOST: host_name(NODE)},
    )
    return Attachment(metadata=meta, spec=AttachmentSpec(volume=of, node=NODE))


def connected(obj: Attachment) -> bool:
    return is_true(obj.status.conditions, CONNECTED)


@contextlib.asynccontextmanager
async def file_volumes(kube: Kube, names: list[str], size: str) -> AsyncIterator[None]:
    """Volumes of the file driver for as long as the block lasts."""
    load = Load(kube, Volume, NAMESPACE, available)
    async with load.watching():
        await load.burst([volume(name, FILE, size) for name in names])
        yield
        for name in names:
            await load.delete(name)


async def attach(world: World, scale: Scale) -> list[Figure]:
    """One at a time, then all at once."""
    say(f"  {scale.attachments} Attachments one at a time, then at once")
    names = [f"attach-{i}" for i in range(scale.attachments)]
    async with connect(world.plane.kubeconfig) as kube, file_volumes(kube, names, "64Mi"):
        load = Load(kube, Attachment, NAMESPACE, connected)
        async with load.watching():
            serial, detached = [], []
            for name in names:
                serial.append((await load.create(attachment(name, name))).seconds)
                detached.append((await load.delete(name)).seconds)
            burst = await load.burst([attachment(f"{name}-b", name) for name in names])
            await load.delete_all()
    rows = (
        ("POST to Connected", serial),
        ("DELETE to gone", detached),
        ("burst", [t.seconds for t in burst]),
    )
    return [
        Figure(
            _SERIAL, f"{what}, p{percent}", percentile(times, percent) * 1000, "ms", note=f"n={len(times)}"
        )
        for what, times in rows
        for percent in (50, 99)
    ]
