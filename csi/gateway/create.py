"""CreateVolume: create or verify the Volume, wait for it, answer; or leave nothing behind.

The provisioner forgets a volume after a final error, so before such an answer the Volume of that name is deleted
and gone, whichever process made it. Who may still say OK and who may delete is settled on the Volume itself, by
one annotation that is written with its resourceVersion: the first verdict stands.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Hashable
from typing import NoReturn, TypeVar

from cinderblock.core.api.builtin import PersistentVolume
from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.api.volume import Volume, VolumeMode, VolumeSpec
from cinderblock.core.errors import (
    NON_FINAL_CODES,
    IncompatibleExists,
    InvalidRequest,
    OperationPending,
    SizeOutOfRange,
    StorageError,
    grpc_code,
)
from cinderblock.core.kube.port import (
    Conflict,
    Forbidden,
    Kube,
    ObjectExists,
    ObjectNotFound,
    Rejected,
)
from cinderblock.core.names import (
    CSI_DRIVER,
    FINALIZER_PROTECT,
    FINALIZER_PV,
    LABEL_CSI_NAME,
    csi_name_label,
    volume_cr_name,
)
from cinderblock.core.units import format_bytes
from cinderblock.csi.convert import error_of
from cinderblock.csi.gateway.caches import Caches
from cinderblock.csi.gateway.claims import claim_reference
from cinderblock.csi.gateway.judge import (
    ANSWERED,
    DISCARDED,
    csi_request_of,
    elsewhere,
    made_for,
    mismatch,
    verdict_of,
    volume_error,
    volume_progress,
    volume_ready,
    with_verdict,
)
from cinderblock.csi.gateway.requests import CreateRequest
from cinderblock.csi.interceptors import Call
from cinderblock.csi.work import KeyedWork

T = TypeVar("T")


class CreateGateway:
    """Every call may come again, also to another process, at any step of an earlier one."""

    def __init__(self, kube: Kube, caches: Caches, work: KeyedWork, namespace: str) -> None:
        self._kube = kube
        self._caches = caches
        self._work = work
        self._namespace = namespace

    async def create(self, request: CreateRequest, call: Call) -> Volume:
        """The ready Volume of that name. Errors: see `settle`, which the caller must pass them through."""
        name = volume_cr_name(request.name)
        made = await self._run(name, lambda: self._ensure(request), call, ("create", request.fingerprint))
        while True:
            ready = await self._caches.volumes.until(
                made,
                _judge,
                answer_by=call.answer_by,
                pending=lambda v: f"volume {request.name} is being made: {volume_progress(v)}",
            )
            await self._check(ready, request, call)
            answer = functools.partial(self._answer, ready)
            answered = await self._run(name, answer, call, ("answer", ready.uid))
            if answered is not None:
                return answered
            made = ready  # it changed in between: judge it again

    async def settle(self, csi_name: str, error: StorageError, call: Call) -> StorageError:
        """The error to answer: a final one only after nothing is left of that name, else a pending one."""
        if not csi_name or grpc_code(error) in NON_FINAL_CODES or isinstance(error, IncompatibleExists):
            return error
        name = volume_cr_name(csi_name)
        try:
            gone = await self._run(name, lambda: self._discard(csi_name), call, "discard")
            if gone is not None:
                await self._caches.volumes.until_gone(
                    gone, answer_by=call.answer_by, pending=lambda v: f"cleaning up after: {error.message}"
                )
        except OperationPending as pending:
            return pending
        return error

    # the steps, each detached from its caller ------------------------------------------------------------
    async def _ensure(self, request: CreateRequest) -> Volume:
        name = volume_cr_name(request.name)
        cache = self._caches.volumes
        existing = cache.store.get(self._namespace, name)
        if existing is not None and (
            existing.deleting or verdict_of(existing) is not None or mismatch(existing, request) is not None
        ):  # an answer that rests on it may be final, and the cache may be behind
            existing = await cache.fresh(self._namespace, name)
        if existing is None:
            volume = await self._new(request)
            try:
                made = await self._kube.create(volume)
            except ObjectExists:
                existing = await cache.fresh(self._namespace, name)
                if existing is None:
                    raise OperationPending(f"volume {request.name} is being deleted: ask again") from None
            except Rejected as error:
                raise InvalidRequest(str(error)) from error
            else:
                cache.store.apply(made)
                return made
        elif not volume_ready(existing) and made_for(existing, request.name):
            # Its claim may have gone while it could not be made.
            await claim_reference(self._kube, request.claim, request.name)
        return await self._verified(existing, request)

    async def _verified(self, existing: Volume, request: CreateRequest) -> Volume:
        if existing.deleting:
            raise OperationPending(f"volume {request.name} is being deleted: ask again")
        if verdict_of(existing) == DISCARDED and made_for(existing, request.name):
            await self._delete(existing)
            raise OperationPending(f"volume {request.name} is being cleaned up after an error: ask again")
        if (problem := mismatch(existing, request)) is not None:
            raise IncompatibleExists(f"a volume {request.name} exists already, but {problem}")
        if self._elsewhere(existing, request):
            await self._supersede(existing, request)
        return existing

    def _elsewhere(self, volume: Volume, request: CreateRequest) -> bool:
        allocation = volume.status.allocation
        pool = self._caches.pools.store.get(None, allocation.pool) if allocation else None
        return elsewhere(volume, pool, request)

    async def _supersede(self, volume: Volume, request: CreateRequest) -> NoReturn:
        """Its claim moved (the node of an earlier try is gone, say): what nobody was told of goes and is made anew.

        Errors: IncompatibleExists when it was handed out; else OperationPending.
        """
        if verdict_of(volume) == ANSWERED:
            raise IncompatibleExists(f"volume {request.name} exists already, but not where it is asked for")
        await self._discard(request.name, only=volume.uid)
        raise OperationPending(f"volume {request.name} was begun elsewhere and is made anew: ask again")

    async def _new(self, request: CreateRequest) -> Volume:
        first = request.capabilities[0]
        fs_type = next((c.fs_type for c in request.capabilities if c.fs_type), None)
        claim = await claim_reference(self._kube, request.claim, request.name)
        return Volume(
            metadata=ObjectMeta(
                name=volume_cr_name(request.name),
                namespace=self._namespace,
                labels={LABEL_CSI_NAME: csi_name_label(request.name)},
                finalizers=(FINALIZER_PROTECT,),
            ),
            spec=VolumeSpec(
                size=format_bytes(request.size.wanted_bytes),
                volume_type=request.volume_type,
                volume_mode=first.volume_mode,
                access_modes=tuple(dict.fromkeys(c.access for c in request.capabilities)),
                fs_type=fs_type if first.volume_mode is VolumeMode.FILESYSTEM else None,
                topology=request.topology,
                claim_ref=claim,
                csi=csi_request_of(request),
            ),
        )

    async def _answer(self, volume: Volume) -> Volume | None:
        """Record that OK is answered; None when the Volume changed meanwhile."""
        cache = self._caches.volumes
        if verdict_of(volume) == ANSWERED:
            # Nothing is written, so nothing would notice that the cache is behind: believe a fresh read only.
            fresh = await cache.fresh(volume.namespace, volume.name)
            same = fresh is not None and fresh.uid == volume.uid and not fresh.deleting
            return fresh if same else None
        try:
            written = await self._kube.update(volume, with_verdict(volume, ANSWERED))
        except (Conflict, ObjectNotFound):
            await cache.fresh(volume.namespace, volume.name)
            return None
        cache.store.apply(written)
        return written

    async def _discard(self, csi_name: str, *, only: str = "") -> Volume | None:
        """Condemn and delete the Volume of that name; what must go, None = nothing that is ours to delete.
        `only` that UID, where it is given.

        Errors: OperationPending when it must stay, so that the caller asks again instead of forgetting it.
        """
        cache = self._caches.volumes
        volume = await cache.fresh(self._namespace, volume_cr_name(csi_name))
        if volume is None or not made_for(volume, csi_name) or only not in ("", volume.uid):
            return None
        if volume.deleting:
            return volume
        if verdict_of(volume) == ANSWERED or await self._named_by_pv(volume, csi_name):
            raise OperationPending(f"volume {csi_name} was handed out: {volume_progress(volume)}")
        try:
            condemned = await self._kube.update(volume, with_verdict(volume, DISCARDED))
        except ObjectNotFound:
            return None
        except Conflict:
            raise OperationPending(f"volume {csi_name} has just changed: ask again") from None
        cache.store.apply(condemned)
        await self._delete(condemned)
        return condemned

    async def _delete(self, volume: Volume) -> None:
        try:
            await self._kube.delete(volume)
        except Conflict:  # another UID: this one is gone
            await self._caches.volumes.fresh(volume.namespace, volume.name)

    async def _named_by_pv(self, volume: Volume, csi_name: str) -> bool:
        """The leader's finalizer says so; the provisioner names its PV after the volume, so look there too."""
        if volume.has_finalizer(FINALIZER_PV):
            return True
        if volume.status.handle is None:
            return False
        try:
            pv = await self._kube.get(PersistentVolume, volume_cr_name(csi_name))
        except (ObjectNotFound, Forbidden):
            return False
        source = pv.spec.csi
        return (
            source is not None
            and source.driver == CSI_DRIVER
            and source.volume_handle == volume.status.handle
        )

    async def _check(self, volume: Volume, request: CreateRequest, call: Call) -> None:
        if self._elsewhere(volume, request):
            supersede = functools.partial(self._supersede, volume, request)
            await self._run(volume.name, supersede, call, ("supersede", volume.uid))
        capacity_bytes = volume.status.capacity_bytes or 0
        if verdict_of(volume) == ANSWERED:
            return  # it may have grown since, which takes nothing back
        if not request.size.holds(capacity_bytes):
            raise SizeOutOfRange(f"the backend made {capacity_bytes} bytes, outside of the asked range")

    async def _run(self, name: str, step: Callable[[], Awaitable[T]], call: Call, what: Hashable) -> T:
        return await self._work.run((self._namespace, name), step, call.time_left(), what=what)


def _judge(volume: Volume | None) -> Volume | None:
    if volume is None or volume.deleting or verdict_of(volume) == DISCARDED:
        raise OperationPending("the volume is being deleted: ask again")
    if volume_ready(volume):
        return volume
    if (error := volume_error(volume)) is not None:
        raise error_of(error)
    return None
