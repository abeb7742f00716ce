"""The leader on a real API server: every status it writes passes the schemas, by real watches and conflicts."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cinderblock.core.api import Backend, Pool, Volume, VolumeType
from cinderblock.core.api.backend import ACCEPTED, POOL_READY, BackendSpec, PoolSpec
from cinderblock.core.api.meta import ObjectMeta, is_true, set_condition
from cinderblock.core.api.volume import PROVISIONED, Refusal, VolumePhase, VolumeSpec
from cinderblock.core.clock import SystemClock
from cinderblock.core.errors import GrpcCode
from cinderblock.core.kube.adapter import connect
from cinderblock.core.kube.events import EventRecorder
from cinderblock.core.kube.informer import Informer
from cinderblock.core.kube.port import Conflict, KubeError, ObjectNotFound
from cinderblock.core.units import GIB
from cinderblock.drivers.fake import FakeDriver
from cinderblock.drivers.registry import Registry
from cinderblock.operator.control.role import ControlRole
from cinderblock.operator.engine.stores import make_stores

pytestmark = pytest.mark.apiserver


class Real:
    """One leader; its pools are in a zone of their own, apart from what other tests left."""

    def __init__(self, kube: Any, name: str) -> None:
        self.kube = kube
        self.name = name
        self.clock = SystemClock()

    async def add_pool(self, name: str) -> None:
        name = f"{self.name}-{name}"
        pool = await self.kube.create(
            Pool(metadata=ObjectMeta(name=name), spec=PoolSpec(backend=self.name, host="operator"))
        )
        conditions = set_condition(
            (), POOL_READY, True, reason="Reported", generation=1, now=self.clock.now()
        )

        def ready(status: Any) -> Any:
            return status.with_(
                total_bytes=100 * GIB,
                free_bytes=100 * GIB,
                over_subscription_ratio="1",
                availability_zone=self.name,
                conditions=conditions,
            )

        await self.write(Pool, pool.name, None, ready)

    async def write(
        self, kind: type[Any], name: str, namespace: str | None, change: Callable[[Any], Any]
    ) -> None:
        """As another process does: read, change, again on a conflict."""
        while True:
            before = await self.kube.get(kind, name, namespace)
            with contextlib.suppress(Conflict):
                await self.kube.update_status(before, before.with_(status=change(before.status)))
                return

    async def volume(self) -> Volume:
        return await self.kube.get(Volume, "v", self.name)

    async def until(self, true: Callable[[Volume], bool]) -> Volume:
        deadline = time.monotonic() + 30
        while True:
            volume = await self.volume()
            if true(volume):
                return volume
            assert time.monotonic() < deadline, volume
            await asyncio.sleep(0.02)

    async def refuse(self) -> None:
        def refused(status: Any) -> Any:
            refusal = Refusal(
                grant=status.allocation.grant,
                reason="BackendFault",
                message="no",
                grpc_code=GrpcCode.INTERNAL,
                at=self.clock.now(),
            )
            return status.with_(refusal=refusal)

        await self.write(Volume, "v", self.name, refused)

    async def clean(self) -> None:
        listing = await self.kube.list(Pool)
        for pool in listing.items:
            if pool.spec.backend == self.name:
                await self.kube.delete(pool)
        for kind, name in ((VolumeType, self.name), (Backend, self.name)):
            with contextlib.suppress(KubeError):
                found = await self.kube.get(kind, name)
                await self.kube.delete(found)


@pytest.fixture
async def real(apiserver: Any) -> AsyncIterator[Real]:
    apiserver.apply_crds()
    name = f"leader-{uuid.uuid4().hex[:8]}"
    apiserver.kubectl("create", "namespace", name)
    async with connect(apiserver.kubeconfig) as kube:
        stores, clock = make_stores(), SystemClock()
        recorder = EventRecorder(kube, "leader", clock)
        # above every epoch that an earlier test may have left behind
        role = ControlRole(kube, stores, clock, 10**6, recorder, Registry.of(fake=FakeDriver), "release")
        tasks = [asyncio.create_task(Informer(kube, store).run()) for store in stores.each()]
        tasks.append(asyncio.create_task(role.run()))
        made = Real(kube, name)
        try:
            await asyncio.wait_for(role.started.wait(), 30)
            yield made
            await made.clean()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    apiserver.kubectl("delete", "namespace", name, "--wait=false")


async def test_the_life_of_a_volume(real: Real) -> None:
    kube, name = real.kube, real.name
    backend = Backend(metadata=ObjectMeta(name=name), spec=BackendSpec(driver="fake"))
    await kube.create(backend)
    # no finalizer of a client, no type, no pool
    spec = VolumeSpec(size="10Gi", volume_type=name, availability_zone=name)
    await kube.create(Volume(metadata=ObjectMeta(name="v", namespace=name), spec=spec))
    volume = await real.until(lambda v: bool(v.status.scheduling and v.status.scheduling.error))
    assert volume.status.scheduling is not None
    assert volume.status.scheduling.error is not None
    assert volume.status.scheduling.error.reason == "VolumeTypeNotFound"
    assert volume.status.phase is VolumePhase.PENDING

    await kube.create(VolumeType(metadata=ObjectMeta(name=name)))
    for pool in ("p1", "p2", "p3"):
        await real.add_pool(pool)
    first = await real.until(lambda v: v.status.allocation is not None)
    assert first.status.handle == first.uid
    assert first.status.scheduling is not None
    assert first.status.scheduling.error is None
    assert is_true((await kube.get(Backend, name)).status.conditions, ACCEPTED)

    for grant in (2, 3):
        await real.refuse()
        volume = await real.until(
            lambda v, grant=grant: bool(v.status.allocation and v.status.allocation.grant == grant)
        )
    await real.refuse()
    volume = await real.until(lambda v: v.status.allocation is None)
    assert volume.status.phase is VolumePhase.ERROR
    assert volume.status.scheduling is not None
    assert len(volume.status.scheduling.attempts) == 3
    volume = await real.until(lambda v: v.status.allocation is not None)  # the next cycle
    assert volume.status.last_grant == 4

    def made(status: Any) -> Any:
        conditions = set_condition(
            status.conditions, PROVISIONED, True, reason="Created", generation=1, now=real.clock.now()
        )
        return status.with_(capacity_bytes=status.allocation.size_bytes, conditions=conditions)

    await real.write(Volume, "v", name, made)
    while True:
        volume = await real.volume()
        with contextlib.suppress(Conflict):
            await kube.update(volume, volume.with_(spec=volume.spec.with_(size="20Gi")))
            break
    volume = await real.until(
        lambda v: bool(v.status.allocation and v.status.allocation.size_bytes == 20 * GIB)
    )
    assert volume.status.allocation is not None
    assert volume.status.allocation.grant == 4

    # its allocation goes as a host would end it: the leader lets nothing go while it stands
    await kube.delete(volume)
    await kube.delete(await kube.get(Backend, name))
    held = await real.until(lambda v: v.deleting)
    assert (await kube.get(Backend, name)).metadata.finalizers
    while True:
        with contextlib.suppress(Conflict):
            held = await real.volume()
            await kube.update(held, held.without_finalizer(held.metadata.finalizers[0]))
            break
    deadline = time.monotonic() + 30
    while True:
        try:
            await kube.get(Backend, name)
        except ObjectNotFound:
            break
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
