"""What is special to the fake: faults and latency as data, several pools, a state that outlives the process."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cinderblock.core.errors import (
    BackendFault,
    BackendUnavailable,
    InvalidRequest,
    OperationTimeout,
    OutOfCapacity,
    PreconditionFailed,
    VolumeInUse,
)
from cinderblock.core.process import SystemRunner
from cinderblock.core.units import GIB, MIB
from cinderblock.drivers.base import CreateVolume, DriverContext, ExportRequest, InitiatorFacts, VolumeRef
from cinderblock.drivers.fake import FakeConfig, FakeDriver, FakeState

REF = VolumeRef("7d3a", 1)


class Ticker:
    """A clock whose sleeps are only written down."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


async def fake(root: Path, clock: Ticker | None = None, **config: Any) -> FakeDriver:
    context = DriverContext(
        backend="b", node=None, pools_root=root, runner=SystemRunner(), clock=clock or Ticker()
    )
    driver = FakeDriver(FakeConfig.model_validate(config), context)
    await driver.open({})
    return driver


def request(ref: VolumeRef = REF, size_bytes: int = MIB, pool: str | None = None) -> CreateVolume:
    return CreateVolume(ref=ref, pool=pool, size_bytes=size_bytes)


async def test_a_fault_before_the_effect_leaves_nothing(tmp_path: Path) -> None:
    driver = await fake(tmp_path, faults=[{"verb": "create", "error": "BackendFault", "times": 2}])
    for _ in range(2):
        with pytest.raises(BackendFault, match="injected"):
            await driver.create_volume(request())
        assert await driver.inventory() == []
    assert (await driver.create_volume(request())).size_bytes == MIB


async def test_a_fault_after_the_effect_loses_only_the_answer(tmp_path: Path) -> None:
    faults = [{"verb": "create", "error": "OperationTimeout", "times": 1, "when": "After"}]
    driver = await fake(tmp_path, stateFile="state.json", faults=faults)
    with pytest.raises(OperationTimeout):
        await driver.create_volume(request())
    assert await driver.get_volume(REF) is not None
    await driver.create_volume(request())
    state = FakeState.model_validate_json((tmp_path / "state.json").read_text())
    assert state.effects["create"] == 1


async def test_a_half_made_volume_is_in_the_inventory_only(tmp_path: Path) -> None:
    driver = await fake(tmp_path, faults=[{"verb": "create", "when": "Half", "times": 1}])
    with pytest.raises(BackendUnavailable):
        await driver.create_volume(request())
    assert await driver.get_volume(REF) is None
    assert [(v.ref, v.complete, v.sealed) for v in await driver.inventory()] == [(REF, False, False)]
    assert (await driver.create_volume(request())).complete
    await driver.delete_volume(REF)
    assert await driver.inventory() == []


async def test_faults_choose_calls_by_pool_handle_and_count(tmp_path: Path) -> None:
    driver = await fake(
        tmp_path,
        pools=[{"name": "a", "totalSize": "1Gi"}, {"name": "b", "totalSize": "2Gi"}],
        faults=[
            {"verb": "create", "error": "OutOfCapacity", "pool": "a"},
            {"verb": "delete", "handle": REF.handle, "skip": 1, "times": 1},
        ],
    )
    for _ in range(3):
        with pytest.raises(OutOfCapacity):
            await driver.create_volume(request(pool="a"))
    await driver.create_volume(request(pool="b"))
    other = VolumeRef("other", 1)
    await driver.create_volume(request(other, pool="b"))
    await driver.delete_volume(other)
    await driver.delete_volume(other)
    await driver.delete_volume(REF)
    with pytest.raises(BackendUnavailable):
        await driver.delete_volume(REF)
    await driver.delete_volume(REF)


async def test_counts_of_faults_survive_a_restart(tmp_path: Path) -> None:
    config = {"stateFile": "s.json", "faults": [{"verb": "get", "times": 1}]}
    driver = await fake(tmp_path, **config)
    with pytest.raises(BackendUnavailable):
        await driver.get_volume(REF)
    again = await fake(tmp_path, **config)
    assert await again.get_volume(REF) is None


async def test_latency_is_slept_on_the_clock(tmp_path: Path) -> None:
    clock = Ticker()
    driver = await fake(tmp_path, clock, latencySeconds={"create": 2.5})
    await driver.create_volume(request())
    await driver.get_volume(REF)
    assert clock.slept == [2.5]


async def test_each_pool_has_its_own_room(tmp_path: Path) -> None:
    driver = await fake(
        tmp_path,
        thin=False,
        pools=[{"name": "small", "totalSize": "1Gi"}, {"name": "big", "totalSize": "9Gi"}],
    )
    with pytest.raises(OutOfCapacity, match="small"):
        await driver.create_volume(request(size_bytes=2 * GIB, pool="small"))
    await driver.create_volume(request(size_bytes=2 * GIB, pool="big"))
    free = {report.name: report.free_bytes for report in await driver.pools()}
    assert free == {"small": GIB, "big": 7 * GIB}
    with pytest.raises(InvalidRequest, match="no pool 'other'"):
        await driver.create_volume(request(VolumeRef("x", 1), pool="other"))


async def test_exported_volumes_stay_and_fenced_generations_stay_out(tmp_path: Path) -> None:
    driver = await fake(tmp_path)
    await driver.create_volume(request())

    def to(node: str, generation: int) -> ExportRequest:
        return ExportRequest(initiator=InitiatorFacts(node=node), generation=generation, read_only=False)

    for node in ("n1", "n2"):
        await driver.export(REF, to(node, 1))
    with pytest.raises(VolumeInUse, match="n1, n2"):
        await driver.delete_volume(REF)
    await driver.unexport(REF, "n2")
    await driver.fence(REF, "n1", 1)
    with pytest.raises(PreconditionFailed, match="fenced"):
        await driver.export(REF, to("n1", 1))
    assert (await driver.export(REF, to("n1", 2))).generation == 2
    await driver.fence(REF, "n1", 1)
    with pytest.raises(VolumeInUse):
        await driver.delete_volume(REF)
    await driver.unexport(REF, "n1")
    await driver.delete_volume(REF)


async def test_a_damaged_state_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text("{broken")
    with pytest.raises(BackendUnavailable, match=r"s\.json"):
        await fake(tmp_path, stateFile="s.json")
    assert (tmp_path / "s.json").read_text() == "{broken"
