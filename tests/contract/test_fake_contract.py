"""The fake driver keeps the driver contract, in memory and in a state file."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cinderblock.core.clock import SystemClock
from cinderblock.core.errors import BackendUnavailable
from cinderblock.core.process import SystemRunner
from cinderblock.drivers.base import CreateVolume, DriverContext, VolumeRef
from cinderblock.drivers.fake import FakeConfig, FakeDriver
from cinderblock.drivers.fake.state import FilePlace, MemoryPlace, Place

pytest.register_assert_rewrite("driver_contract")
from driver_contract import SIZE, DriverContract  # noqa: E402


class FakeSubject:
    node = "n1"
    foreign_node = None

    def __init__(self, root: Path, place: Place, pools: list[str]) -> None:
        self.pool = pools[0] if pools else None
        self.place = place
        self.pool_config = [{"name": name, "totalSize": "1Gi"} for name in pools]
        self.context = DriverContext(
            backend="fake", node=None, pools_root=root, runner=SystemRunner(), clock=SystemClock()
        )

    def new_driver(self, **config: object) -> FakeDriver:
        parsed = FakeConfig.model_validate({"pools": self.pool_config, **config})
        return FakeDriver(parsed, self.context, place=self.place)

    def read(self, ref: VolumeRef, offset: int, length: int) -> bytes | None:
        return None

    def write(self, ref: VolumeRef, offset: int, data: bytes) -> None:
        raise NotImplementedError

    async def half_make(self, ref: VolumeRef) -> None:
        faults = [{"verb": "create", "when": "Half", "times": 1, "label": ref.handle}]
        driver = self.new_driver(faults=faults)
        await driver.open({})
        with pytest.raises(BackendUnavailable, match="injected"):
            await driver.create_volume(CreateVolume(ref=ref, pool=self.pool, size_bytes=SIZE))

    def hide_marker(self) -> bool:
        if isinstance(self.place, FilePlace):
            self.place.path.rename(self.place.path.with_suffix(".away"))
        return isinstance(self.place, FilePlace)

    def show_marker(self) -> None:
        assert isinstance(self.place, FilePlace)
        self.place.path.with_suffix(".away").rename(self.place.path)

    @contextlib.asynccontextmanager
    async def hold_open(self, ref: VolumeRef) -> AsyncIterator[None]:
        yield  # an export is what the fake calls use


class TestFakeContract(DriverContract):
    @pytest.fixture(params=["memory", "memory-pools", "file", "file-pools"])
    def subject(self, request: pytest.FixtureRequest, tmp_path: Path) -> FakeSubject:
        place: Place = MemoryPlace() if "memory" in request.param else FilePlace(tmp_path / "state.json")
        return FakeSubject(tmp_path, place, ["a", "b"] if "pools" in request.param else [])
