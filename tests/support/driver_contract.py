"""The contract suite that every driver must pass: ours, or a stranger's.

Subclass `DriverContract` in a test module and give it a fixture `subject`. Tests of an ability that the driver does
not have are skipped; everything else runs. The suite knows nothing of how a driver works: what it needs beyond the
contract are the hooks of `Subject`.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable
from typing import Protocol, TypeVar

import pytest

from cinderblock.core.errors import (
    BackendUnavailable,
    IncompatibleExists,
    Lost,
    NotFound,
    NotSupported,
    OutOfCapacity,
    StorageError,
    VolumeInUse,
)
from cinderblock.core.units import MIB
from cinderblock.drivers.base import (
    CanExtend,
    CanFence,
    CreateVolume,
    ExportRequest,
    InitiatorFacts,
    PoolReport,
    VolumeDriver,
    VolumeRef,
)

T = TypeVar("T")
SIZE = 4 * MIB


class Subject(Protocol):
    """One backend, empty at first. Every instance that `new_driver` makes works on the same place."""

    pool: str | None  # the driver's name of the pool to test in
    node: str  # a node that can reach the volumes
    foreign_node: str | None  # one that cannot; None: every node can

    def new_driver(self) -> VolumeDriver:
        """Constructed, not opened."""

    def read(self, ref: VolumeRef, offset: int, length: int) -> bytes | None:
        """Bytes of the volume as its node sees them; None: the backend has no bytes."""

    def write(self, ref: VolumeRef, offset: int, data: bytes) -> None: ...

    async def half_make(self, ref: VolumeRef) -> None:
        """Leave what a create leaves that was killed in the middle."""

    def hide_marker(self) -> bool:
        """Make the place look as if its disk were not mounted. False: there is no such thing here."""

    def show_marker(self) -> None: ...

    def hold_open(self, ref: VolumeRef) -> contextlib.AbstractAsyncContextManager[None] | None:
        """Use the volume as a node would. None: the backend cannot know."""


def new_ref(grant: int = 1) -> VolumeRef:
    return VolumeRef(str(uuid.uuid4()), grant)


async def pool_of(driver: VolumeDriver, subject: Subject) -> PoolReport:
    return next(report for report in await driver.pools() if report.name == subject.pool)


async def outcome(call: Awaitable[T]) -> T | StorageError:
    try:
        return await call
    except StorageError as error:
        return error


class DriverContract:
    @pytest.fixture
    async def driver(self, subject: Subject) -> AsyncIterator[VolumeDriver]:
        driver = subject.new_driver()
        await driver.open({})
        yield driver
        await driver.close()

    def request(
        self, subject: Subject, ref: VolumeRef, size_bytes: int = SIZE, *, thick: bool = False
    ) -> CreateVolume:
        return CreateVolume(ref=ref, pool=subject.pool, size_bytes=size_bytes, thick=thick)

    # create, get

    @pytest.mark.parametrize("thick", [False, True])
    async def test_create_and_get(self, subject: Subject, driver: VolumeDriver, thick: bool) -> None:
        ref = new_ref()
        made = await driver.create_volume(self.request(subject, ref, thick=thick))
        assert (made.ref, made.size_bytes, made.sealed) == (ref, SIZE, False)
        assert await driver.get_volume(ref) == made

    async def test_create_again_is_success(self, subject: Subject, driver: VolumeDriver) -> None:
        ref = new_ref()
        made = await driver.create_volume(self.request(subject, ref))
        assert await driver.create_volume(self.request(subject, ref)) == made
        assert len(await driver.inventory()) == 1

    async def test_create_again_keeps_the_data(self, subject: Subject, driver: VolumeDriver) -> None:
        ref = new_ref()
        await driver.create_volume(self.request(subject, ref))
        if subject.read(ref, 0, 4) is None:
            pytest.skip("the backend has no bytes")
        subject.write(ref, 8192, b"kept")
        await driver.create_volume(self.request(subject, ref))
        assert subject.read(ref, 8192, 4) == b"kept"

    async def test_create_with_another_size_is_refused(self, subject: Subject, driver: VolumeDriver) -> None:
        ref = new_ref()
        made = await driver.create_volume(self.request(subject, ref))
        for other in (SIZE * 2, SIZE // 2):
            with pytest.raises(IncompatibleExists):
                await driver.create_volume(self.request(subject, ref, other))
        assert await driver.get_volume(ref) == made

    async def test_an_odd_size_is_never_too_small_and_repeats(
        self, subject: Subject, driver: VolumeDriver
    ) -> None:
        ref = new_ref()
        made = await driver.create_volume(self.request(subject, ref, SIZE + 1))
        assert made.size_bytes >= SIZE + 1
        assert await driver.create_volume(self.request(subject, ref, SIZE + 1)) == made

    async def test_grants_of_one_handle_are_different_volumes(
        self, subject: Subject, driver: VolumeDriver
    ) -> None:
        first = new_ref()
        second = VolumeRef(first.handle, 12)
        await driver.create_volume(self.request(subject, first))
        await driver.create_volume(self.request(subject, second, SIZE * 2))
        await driver.delete_volume(first)
        assert await driver.get_volume(first) is None
        found = await driver.get_volume(second)
        assert found is not None
        assert found.size_bytes == SIZE * 2

    async def test_what_was_never_made_is_certainly_absent(self, driver: VolumeDriver) -> None:
        assert await driver.get_volume(new_ref()) is None

    @pytest.mark.parametrize("thick", [False, True])
    async def test_a_new_volume_reads_as_zeros(
        self, subject: Subject, driver: VolumeDriver, thick: bool
    ) -> None:
        old = new_ref()
        await driver.create_volume(self.request(subject, old, thick=True))
        if subject.read(old, 0, 1) is None:
            pytest.skip("the backend has no bytes")
        subject.write(old, 0, b"secret!!" * (SIZE // 8))
        await driver.delete_volume(old)
        ref = new_ref()
        await driver.create_volume(self.request(subject, ref, thick=thick))
        assert subject.read(ref, 0, SIZE) == bytes(SIZE)

    # delete

    async def test_delete_and_delete_again(self, subject: Subject, driver: VolumeDriver) -> None:
        ref = new_ref()
        await driver.create_volume(self.request(subject, ref))
        for _ in range(2):
            await driver.delete_volume(ref)
            assert await driver.get_volume(ref) is None
            assert await driver.inventory() == []

    async def test_delete_of_what_never_was_is_success(self, driver: VolumeDriver) -> None:
        await driver.delete_volume(new_ref())

    async def test_delete_refuses_what_is_in_use(self, subject: Subject, driver: VolumeDriver) -> None:
        ref = new_ref()
        await driver.create_volume(self.request(subject, ref))
        await driver.export(ref, self.export_request(subject.node))
        held = subject.hold_open(ref)
        if held is None:
            pytest.skip("the backend cannot know")
        async with held:
            with pytest.raises(VolumeInUse):
                await driver.delete_volume(ref)
            assert await driver.get_volume(ref) is not None
        await driver.unexport(ref, subject.node)
        await driver.delete_volume(ref)
        assert await driver.get_volume(ref) is None

    # seal, inventory, restart

    async def test_seal_is_kept_and_repeatable(self, subject: Subject, driver: VolumeDriver) -> None:
        ref, other = new_ref(), new_ref()
        for each in (ref, other):
            await driver.create_volume(self.request(subject, each))
        for _ in range(2):
            await driver.seal_volume(ref)
        sealed = {info.ref: info.sealed for info in await driver.inventory()}
        assert sealed == {ref: True, other: False}
        again = await driver.create_volume(self.request(subject, ref))
        assert again.sealed

    async def test_seal_of_a_missing_volume(self, driver: VolumeDriver) -> None:
        with pytest.raises(NotFound):
            await driver.seal_volume(new_ref())

    async def test_a_half_made_volume_is_listed_finished_or_deleted(
        self, subject: Subject, driver: VolumeDriver
    ) -> None:
        finished, deleted = new_ref(), new_ref()
        for ref in (finished, deleted):
            await subject.half_make(ref)
            assert await driver.get_volume(ref) is None
            with pytest.raises(NotFound):
                await driver.export(ref, self.export_request(subject.node))
        listed = {info.ref: (info.complete, info.sealed) for info in await driver.inventory()}
        assert listed == {finished: (False, False), deleted: (False, False)}
        made = await driver.create_volume(self.request(subject, finished))
        await driver.delete_volume(deleted)
        assert await driver.inventory() == [made]
        assert made.complete
        if (data := subject.read(finished, 0, SIZE)) is not None:
            assert data == bytes(SIZE)

    async def test_a_restart_sees_the_same(self, subject: Subject, driver: VolumeDriver) -> None:
        refs = [new_ref() for _ in range(3)]
        for ref in refs:
            await driver.create_volume(self.request(subject, ref))
        await driver.seal_volume(refs[0])
        before = sorted(await driver.inventory(), key=lambda info: info.ref)
        pool_id = (await pool_of(driver, subject)).pool_id
        await driver.close()
        fresh = subject.new_driver()
        await fresh.open({subject.pool: pool_id})
        try:
            assert sorted(await fresh.inventory(), key=lambda info: info.ref) == before
            assert (await pool_of(fresh, subject)).pool_id == pool_id
        finally:
            await fresh.close()

    # open

    async def test_a_place_without_a_known_id_is_adopted(
        self, subject: Subject, driver: VolumeDriver
    ) -> None:
        pool_id = (await pool_of(driver, subject)).pool_id
        assert pool_id
        await driver.close()
        fresh = subject.new_driver()
        await fresh.open({})
        assert (await pool_of(fresh, subject)).pool_id == pool_id
        await fresh.close()

    async def test_another_pool_than_the_known_one_is_refused(
        self, subject: Subject, driver: VolumeDriver
    ) -> None:
        await driver.close()
        fresh = subject.new_driver()
        with pytest.raises(Lost):
            await fresh.open({subject.pool: str(uuid.uuid4())})
        await fresh.close()

    async def test_a_known_pool_without_its_marker_is_refused_and_never_made_anew(
        self, subject: Subject, driver: VolumeDriver
    ) -> None:
        ref = new_ref()
        await driver.create_volume(self.request(subject, ref))
        pool_id = (await pool_of(driver, subject)).pool_id
        await driver.close()
        if not subject.hide_marker():
            pytest.skip("the place cannot go without the driver's state")
        try:
            for _ in range(2):
                fresh = subject.new_driver()
                with pytest.raises(Lost):
                    await fresh.open({subject.pool: pool_id})
                assert isinstance(await outcome(fresh.get_volume(ref)), BackendUnavailable)
                await fresh.close()
        finally:
            subject.show_marker()
        fresh = subject.new_driver()
        await fresh.open({subject.pool: pool_id})
        assert await fresh.get_volume(ref) is not None
        await fresh.close()

    async def test_open_and_close_twice(self, subject: Subject, driver: VolumeDriver) -> None:
        await driver.open({})
        await driver.close()
        await driver.close()

    # concurrency

    async def test_equal_calls_at_once_have_one_effect(self, subject: Subject, driver: VolumeDriver) -> None:
        ref = new_ref()
        made = await asyncio.gather(*(driver.create_volume(self.request(subject, ref)) for _ in range(12)))
        assert len(set(made)) == 1
        assert await driver.inventory() == [made[0]]
        await asyncio.gather(*(driver.delete_volume(ref) for _ in range(12)))
        assert await driver.inventory() == []

    async def test_create_and_delete_at_once_end_in_one_of_both(
        self, subject: Subject, driver: VolumeDriver
    ) -> None:
        ref = new_ref()
        await asyncio.gather(
            *(
                outcome(
                    driver.delete_volume(ref) if i % 2 else driver.create_volume(self.request(subject, ref))
                )
                for i in range(16)
            )
        )
        found = await driver.get_volume(ref)
        assert list(await driver.inventory()) == ([] if found is None else [found])

    async def test_listings_at_once_are_all_complete(self, subject: Subject, driver: VolumeDriver) -> None:
        refs = {new_ref() for _ in range(40)}
        await asyncio.gather(*(driver.create_volume(self.request(subject, ref)) for ref in refs))
        listings = await asyncio.gather(*(driver.inventory() for _ in range(16)), driver.inventory())
        assert all({info.ref for info in listing} == refs for listing in listings)

    async def test_a_cancelled_create_can_be_repeated(self, subject: Subject, driver: VolumeDriver) -> None:
        ref = new_ref()
        call = asyncio.ensure_future(driver.create_volume(self.request(subject, ref)))
        await asyncio.sleep(0)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        made = await driver.create_volume(self.request(subject, ref))
        assert await driver.inventory() == [made]

    # capacity

    async def test_figures_move(self, subject: Subject, driver: VolumeDriver) -> None:
        before = await pool_of(driver, subject)
        assert before.total_bytes >= before.free_bytes > 0
        ref = new_ref()
        await driver.create_volume(self.request(subject, ref, thick=True))
        after = await pool_of(driver, subject)
        assert after.provisioned_bytes - before.provisioned_bytes == SIZE
        assert after.allocated_bytes - before.allocated_bytes >= SIZE
        assert after.free_bytes < before.free_bytes
        await driver.delete_volume(ref)
        assert (await pool_of(driver, subject)).provisioned_bytes == before.provisioned_bytes

    async def test_a_full_pool_says_so_and_keeps_nothing(
        self, subject: Subject, driver: VolumeDriver
    ) -> None:
        ref = new_ref()
        too_much = (await pool_of(driver, subject)).total_bytes + SIZE
        with pytest.raises(OutOfCapacity):
            await driver.create_volume(self.request(subject, ref, too_much, thick=True))
        assert await driver.get_volume(ref) is None
        assert await driver.inventory() == []

    # export

    def export_request(self, node: str, generation: int = 1) -> ExportRequest:
        return ExportRequest(initiator=InitiatorFacts(node=node), generation=generation, read_only=False)

    async def test_export_repeats_the_same_connection(self, subject: Subject, driver: VolumeDriver) -> None:
        ref = new_ref()
        await driver.create_volume(self.request(subject, ref))
        first = await driver.export(ref, self.export_request(subject.node))
        assert first.generation == 1
        assert first.size_bytes == SIZE
        assert await driver.export(ref, self.export_request(subject.node)) == first
        for _ in range(2):
            await driver.unexport(ref, subject.node)

    async def test_export_of_a_missing_volume(self, subject: Subject, driver: VolumeDriver) -> None:
        with pytest.raises(NotFound):
            await driver.export(new_ref(), self.export_request(subject.node))
        await driver.unexport(new_ref(), subject.node)

    async def test_export_to_a_node_that_cannot_reach_it(
        self, subject: Subject, driver: VolumeDriver
    ) -> None:
        if subject.foreign_node is None:
            pytest.skip("every node can")
        ref = new_ref()
        await driver.create_volume(self.request(subject, ref))
        with pytest.raises(NotSupported):
            await driver.export(ref, self.export_request(subject.foreign_node))

    async def test_a_fenced_generation_stays_out(self, subject: Subject, driver: VolumeDriver) -> None:
        if not isinstance(driver, CanFence):
            pytest.skip("the driver cannot fence")
        ref = new_ref()
        await driver.create_volume(self.request(subject, ref))
        await driver.export(ref, self.export_request(subject.node))
        for _ in range(2):
            await driver.fence(ref, subject.node, 1)
        with pytest.raises(StorageError):
            await driver.export(ref, self.export_request(subject.node, 1))
        assert (await driver.export(ref, self.export_request(subject.node, 2))).generation == 2
        await driver.unexport(ref, subject.node)

    # extend

    @pytest.mark.parametrize("thick", [False, True])
    @pytest.mark.parametrize("online", [False, True])
    async def test_extend(self, subject: Subject, driver: VolumeDriver, thick: bool, online: bool) -> None:
        extending = self.extending(driver)
        ref = new_ref()
        await driver.create_volume(self.request(subject, ref, thick=thick))
        await driver.seal_volume(ref)
        if subject.read(ref, 0, 1) is not None:
            subject.write(ref, SIZE - 8, b"the end.")
        if online:
            await driver.export(ref, self.export_request(subject.node))
        if online and not extending.online_extend:
            with pytest.raises(VolumeInUse):
                await extending.extend_volume(ref, SIZE * 2)
            return
        for _ in range(2):
            grown = await extending.extend_volume(ref, SIZE * 2)
            assert (grown.size_bytes, grown.sealed) == (SIZE * 2, True)
        assert (await extending.extend_volume(ref, SIZE)).size_bytes == SIZE * 2
        assert await driver.get_volume(ref) == grown
        if subject.read(ref, 0, 1) is not None:
            assert subject.read(ref, SIZE - 8, SIZE + 8) == b"the end." + bytes(SIZE)
        if online:
            again = await driver.export(ref, self.export_request(subject.node))
            assert again.size_bytes == SIZE * 2
            await driver.unexport(ref, subject.node)

    async def test_extend_of_a_missing_volume(self, driver: VolumeDriver) -> None:
        with pytest.raises(NotFound):
            await self.extending(driver).extend_volume(new_ref(), SIZE)

    async def test_extend_beyond_the_pool_keeps_the_old_size(
        self, subject: Subject, driver: VolumeDriver
    ) -> None:
        extending = self.extending(driver)
        ref = new_ref()
        made = await driver.create_volume(self.request(subject, ref, thick=True))
        before = await pool_of(driver, subject)
        with pytest.raises(OutOfCapacity):
            await extending.extend_volume(ref, SIZE + before.total_bytes)
        assert await driver.get_volume(ref) == made
        assert (await pool_of(driver, subject)).provisioned_bytes == before.provisioned_bytes

    def extending(self, driver: VolumeDriver) -> CanExtend:
        if not isinstance(driver, CanExtend):
            pytest.skip("the driver cannot extend")
        return driver
