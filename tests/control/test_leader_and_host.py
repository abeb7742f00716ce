"""The leader and a real volume host on one API server: the nine steps from a Volume to Available, and back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from control_bench import Bench, LocalDriver

from cinderblock.core.api import Backend, Pool, Volume
from cinderblock.core.api.meta import find_condition, is_true
from cinderblock.core.api.volume import READY, VolumePhase
from cinderblock.core.kube.events import EventRecorder
from cinderblock.core.kube.informer import Informer
from cinderblock.core.kube.port import ObjectNotFound
from cinderblock.core.process import SystemRunner
from cinderblock.core.units import GIB
from cinderblock.drivers.fake import FakeDriver
from cinderblock.drivers.registry import Registry
from cinderblock.operator.engine.stores import make_stores
from cinderblock.operator.host.role import HostRole


class Pair(Bench):
    """A leader, and the host `operator` in a process of its own."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root
        self._tasks: list[asyncio.Task[None]] = []

    async def start_host(self) -> None:
        stores = make_stores()
        host = HostRole(
            self.kube,
            stores,
            self.clock,
            EventRecorder(self.kube, "host", self.clock),
            Registry.of(fake=FakeDriver, local=LocalDriver),
            "operator",
            None,
            self._root,
            SystemRunner(),
        )
        for store in stores.each():
            self._tasks.append(asyncio.create_task(Informer(self.kube, store, clock=self.clock).run()))
        for store in stores.each():
            await store.synced.wait()
        self._tasks.append(asyncio.create_task(host.run()))
        await self.settle()

    async def stop_host(self) -> None:
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = []

    async def backend(self, name: str = "b", *pools: str, **config: Any) -> None:
        names = [{"name": pool, "totalSize": "100Gi"} for pool in pools or ("p1",)]
        await self.add_backend(name, config={"pools": names, **config})
        await self.wait(12)

    async def until(self, true: Callable[[list[Volume]], bool], what: str) -> list[Volume]:
        """Let fake time pass, and real time for what runs in threads, until it is true of all Volumes."""
        async with asyncio.timeout(20):
            while True:
                volumes = list((await self.kube.list(Volume)).items)
                if true(volumes):
                    return volumes
                try:
                    await self.wait(0.5)
                except TimeoutError:
                    raise AssertionError(f"never {what}: {volumes}") from None

    async def becomes(self, phase: VolumePhase) -> Volume:
        (volume,) = await self.until(lambda all_: [v.status.phase for v in all_] == [phase], phase)
        return volume


def available(volumes: list[Volume]) -> int:
    return sum(v.status.phase is VolumePhase.AVAILABLE for v in volumes)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with Pair(tmp_path) as made:
        await made.start_host()
        try:
            yield made
        finally:
            await made.stop_host()


async def test_from_a_volume_to_available_and_back(pair: Pair) -> None:
    await pair.add_type()
    await pair.backend()
    await pair.add_volume("v")
    volume = await pair.becomes(VolumePhase.AVAILABLE)
    assert is_true(volume.status.conditions, READY)
    assert volume.status.capacity_bytes == 10 * GIB
    # born, granted, available
    assert [w[0] for w in pair.kube.writes if w[1] == "Volume"] == ["create", "status", "status"]

    await pair.resize("v", "20Gi")
    (volume,) = await pair.until(lambda all_: all_[0].status.capacity_bytes == 20 * GIB, "20Gi large")

    await pair.kube.delete(volume)
    await pair.until(lambda all_: not all_, "gone")
    await pair.kube.delete(await pair.kube.get(Backend, "b"))
    await pair.wait(12)
    with pytest.raises(ObjectNotFound):
        await pair.kube.get(Backend, "b")
    assert (await pair.kube.list(Pool)).items == []


async def test_a_pool_that_fails_is_left_for_another(pair: Pair) -> None:
    await pair.add_type()
    fault = {"verb": "create", "error": "BackendFault", "message": "bad disk", "pool": "p1"}
    await pair.backend("b", "p1", "p2", faults=[fault])
    await pair.add_volume("v")
    volume = await pair.becomes(VolumePhase.AVAILABLE)
    assert volume.status.allocation is not None
    assert (volume.status.allocation.pool, volume.status.allocation.grant) == ("b-p2", 2)
    assert volume.status.scheduling is not None
    (attempt,) = volume.status.scheduling.attempts
    assert (attempt.pool, attempt.reason, attempt.message) == ("b-p1", "BackendFault", "bad disk")


async def test_three_refusals_then_a_new_cycle_that_succeeds(pair: Pair) -> None:
    await pair.add_type()
    fault = {"verb": "create", "error": "OutOfCapacity", "message": "no extents", "times": 3}
    await pair.backend("b", "p1", "p2", "p3", faults=[fault])
    await pair.add_volume("v")
    failed = await pair.becomes(VolumePhase.ERROR)
    assert failed.status.scheduling is not None
    assert len(failed.status.scheduling.attempts) == 3
    assert failed.status.scheduling.error is not None
    assert failed.status.scheduling.error.grpc_code == "RESOURCE_EXHAUSTED"
    volume = await pair.becomes(VolumePhase.AVAILABLE)
    assert volume.status.last_grant == 4
    assert find_condition(volume.status.conditions, READY) is not None


async def test_a_burst_larger_than_the_pools(pair: Pair) -> None:
    await pair.add_type()
    await pair.backend("b", "p1", "p2", thin=False)
    for number in range(30):
        await pair.add_volume(f"v{number}")
    volumes = await pair.until(
        lambda all_: available(all_) == 20 and all(v.status.scheduling for v in all_), "20 available"
    )
    waiting = [v for v in volumes if v.status.phase is VolumePhase.PENDING]
    assert len(waiting) == 10
    assert {v.status.scheduling.error.reason for v in waiting if v.status.scheduling} == {"OutOfCapacity"}
    made = next(v for v in volumes if v.status.allocation)
    await pair.kube.delete(made)
    volumes = await pair.until(lambda all_: len(all_) == 29 and available(all_) == 20, "refilled")
