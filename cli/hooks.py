"""What the chart's hooks do: apply the image's CRDs before an upgrade, empty the installation before a removal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cinderblock.core.api import Attachment, Backend, Pool, Snapshot, Volume, VolumeType
from cinderblock.core.api.builtin import CustomResourceDefinition
from cinderblock.core.api.meta import Resource
from cinderblock.core.clock import Clock
from cinderblock.core.kube.port import Conflict, Kube, ObjectNotFound

Say = Callable[[str], None]
_TRIES = 5
_SHOWN = 20


class HookRefused(Exception):
    """The hook must fail; the message says what to do."""


async def apply_crds(kube: Kube, crds: Sequence[CustomResourceDefinition], say: Say) -> None:
    """Create or bring up to date every CRD; others' fields (labels, conversion) stay."""
    for crd in crds:
        for _ in range(_TRIES):
            try:
                before = await kube.get(CustomResourceDefinition, crd.name)
            except ObjectNotFound:
                await kube.create(crd)
                say(f"{crd.name}: created")
                break
            try:
                after = await kube.update(before, before.with_(spec=crd.spec))
            except Conflict:
                continue
            changed = after.metadata.resource_version != before.metadata.resource_version
            say(f"{crd.name}: {'updated' if changed else 'unchanged'}")
            break
        else:
            raise HookRefused(f"{crd.name} keeps changing under our hands; run the upgrade again")


async def pre_delete(kube: Kube, clock: Clock, say: Say, *, force: bool, timeout: float = 180.0) -> None:
    """Refuse while data exists; else delete Backends and VolumeTypes and wait until they and their Pools are gone.

    Forced: finalizers are dropped, what stays on disk is listed, and nothing on disk is touched.
    """
    if force:
        await _abandon(kube, say)
    else:
        await _refuse_while_data_exists(kube)
    for kind in (Backend, VolumeType):
        for obj in (await kube.list(kind)).items:
            await kube.delete(obj)
            say(f"{kind.SINGULAR} {obj.name}: deletion asked")
    deadline = clock.monotonic() + timeout
    while left := [*(await kube.list(Backend)).items, *(await kube.list(Pool)).items]:
        if force:
            for obj in left:
                await _drop(kube, obj)
        elif clock.monotonic() > deadline:
            names = ", ".join(f"{obj.KIND} {obj.name}" for obj in left[:_SHOWN])
            raise HookRefused(
                f"still there after {timeout:.0f} s: {names}; are the cinderblock pods running?"
            )
        await clock.sleep(0.5)
    say("no Backend and no Pool is left")


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


async def _abandon(kube: Kube, say: Say) -> None:
    for attachment in (await kube.list(Attachment)).items:
        await _drop(kube, attachment)
    for volume in (await kube.list(Volume)).items:
        allocation = volume.status.allocation
        if allocation is not None:
            say(
                f"left on disk: {volume.status.handle}-{allocation.grant} in pool {allocation.pool}"
                f" ({allocation.size_bytes} bytes), was Volume {volume.namespace}/{volume.name}"
            )
        await _drop(kube, volume)
    for snapshot in (await kube.list(Snapshot)).items:
        await _drop(kube, snapshot)


async def _drop(kube: Kube, obj: Resource) -> None:
    """Delete without waiting for whoever holds a finalizer."""
    for _ in range(_TRIES):
        try:
            fresh = await kube.get(type(obj), obj.name, obj.namespace)
            if fresh.uid != obj.uid:
                return
            if not fresh.deleting:
                await kube.delete(fresh)
                fresh = await kube.get(type(obj), obj.name, obj.namespace)
            await kube.update(fresh, fresh.with_(metadata=fresh.metadata.with_(finalizers=())))
        except ObjectNotFound:
            return
        except Conflict:
            continue
        return
