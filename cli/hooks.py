"""What the chart's hooks do: apply the image's CRDs before an upgrade, empty the installation before a removal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from cinderblock.core.api import Attachment, Backend, Pool, Snapshot, Volume, VolumeType
from cinderblock.core.api.builtin import CustomResourceDefinition
from cinderblock.core.api.meta import Resource
from cinderblock.core.clock import Clock
from cinderblock.core.kube.port import Conflict, Kube, ObjectNotFound

R = TypeVar("R", bound=Resource)
Say = Callable[[str], None]
_FIELD_MANAGER = "helm"
_DROP_TRIES = 50
_DROP_PAUSE_SECONDS = 0.05
_SHOWN = 20


class HookRefused(Exception):
    """The hook must fail; the message says what to do."""


class ApplyingKube(Kube, Protocol):
    async def apply(self, obj: R, *, manager: str) -> R:
        """Server-side apply, taking fields over from whoever had them."""


async def apply_crds(kube: ApplyingKube, crds: Sequence[CustomResourceDefinition], say: Say) -> None:
    """Create or bring up to date every CRD; others' fields (labels, conversion) stay.

    In helm's name: a later `helm install` applies its CRDs too, and would refuse fields that another manager owns.
    """
    for crd in crds:
        try:
            before = (await kube.get(CustomResourceDefinition, crd.name)).metadata.resource_version
        except ObjectNotFound:
            before = ""
        after = await kube.apply(crd, manager=_FIELD_MANAGER)
        same = after.metadata.resource_version == before
        say(f"{crd.name}: {'unchanged' if same else 'updated' if before else 'created'}")


async def pre_delete(kube: Kube, clock: Clock, say: Say, *, force: bool, timeout: float = 180.0) -> None:
    """Refuse while data exists; else delete the Backends, wait until they and their Pools are gone, then the types.

    Forced: finalizers are dropped, what stays on disk is listed, and nothing on disk is touched.
    """
    if force:
        await _abandon(kube, clock, say)
    else:
        await _refuse_while_data_exists(kube)
    for backend in (await kube.list(Backend)).items:
        await kube.delete(backend)
        say(f"backend {backend.name}: deletion asked")
    deadline = clock.monotonic() + timeout
    while left := [*(await kube.list(Backend)).items, *(await kube.list(Pool)).items]:
        if force:
            for obj in left:
                await _drop(kube, clock, obj)
        else:
            await _refuse_while_data_exists(kube)  # made since: the leader holds its Backend, no use to wait
        if clock.monotonic() > deadline:
            names = ", ".join(f"{obj.KIND} {obj.name}" for obj in left[:_SHOWN])
            raise HookRefused(
                f"still there after {timeout:.0f} s: {names}; are the cinderblock pods running?"
            )
        await clock.sleep(0.5)
    say("no Backend and no Pool is left")
    for type_ in (await kube.list(VolumeType)).items:
        await kube.delete(type_)
        say(f"volumetype {type_.name}: deleted")


async def _refuse_while_data_exists(kube: Kube) -> None:
    found: list[Resource] = []
    for kind in (Volume, Snapshot, Attachment):
        found.extend((await kube.list(kind)).items)
    if found:
        names = "\n".join(f"  {obj.KIND} {obj.namespace}/{obj.name}" for obj in found[:_SHOWN])
        more = f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise HookRefused(
            "refusing to uninstall while data exists; delete these (or their claims) first, or set"
            f" uninstall.force=true to leave the data on disk:\n{names}{more}"
        )


async def _abandon(kube: Kube, clock: Clock, say: Say) -> None:
    for volume in (await kube.list(Volume)).items:
        allocation = volume.status.allocation
        if allocation is not None:
            say(
                f"left on disk: {volume.status.handle}-{allocation.grant} in pool {allocation.pool}"
                f" ({allocation.size_bytes} bytes), was Volume {volume.namespace}/{volume.name}"
            )
        await _drop(kube, clock, volume)
    for kind in (Attachment, Snapshot):
        for obj in (await kube.list(kind)).items:
            await _drop(kube, clock, obj)


async def _drop(kube: Kube, clock: Clock, obj: Resource) -> None:
    """Take away the finalizers, then delete exactly that state.

    Never the other way round: whoever sees a deletion that a finalizer holds does what deleting means, and for a
    Volume that is to delete its data. A finalizer that comes back in between makes the delete a Conflict.
    """
    for _ in range(_DROP_TRIES):
        try:
            fresh = await kube.get(type(obj), obj.name, obj.namespace)
            if fresh.uid != obj.uid:
                return
            bare = await kube.update(fresh, fresh.with_(metadata=fresh.metadata.with_(finalizers=())))
            if not bare.deleting:
                await kube.delete(bare, unchanged=True)
        except ObjectNotFound:
            return
        except Conflict:
            await clock.sleep(_DROP_PAUSE_SECONDS)
            continue
        return
    where = f"{obj.namespace}/{obj.name}" if obj.namespace else obj.name
    raise HookRefused(f"{obj.KIND} {where} keeps changing under our hands; run the uninstall again")
