"""What happens to a granted Volume: made, refused, grown, lost, found, deleted."""

from __future__ import annotations

import pytest
from host_world import World

from cinderblock.core.api import Backend, Volume
from cinderblock.core.api.meta import is_true
from cinderblock.core.api.volume import FilesystemState, OperationKind, VolumePhase
from cinderblock.core.errors import BackendUnavailable
from cinderblock.core.units import GIB
from cinderblock.drivers.fake import FakeDriver
from cinderblock.operator.host import volume_status as say


def _writes(world: World, kind: str = "Volume") -> int:
    return sum(1 for _, written, _ in world.kube.writes if written == kind)


async def test_a_granted_volume_becomes_available_in_one_write(world: World) -> None:
    await world.backend()
    async with world.host():
        await world.until(world.pool_ready)
        await world.volume(fs_type="ext4")
        await world.grant()
        before = _writes(world)
        await world.until(world.ready)
        volume = await world.get()
        await world.quiet(5)
    assert _writes(world) - before == 1
    assert volume.status.phase is VolumePhase.AVAILABLE
    assert volume.status.capacity_bytes == GIB
    assert volume.status.filesystem is not None
    assert volume.status.filesystem.state is FilesystemState.FORMATTING
    assert is_true(volume.status.conditions, "Provisioned")
    assert world.objects[f"{volume.uid}-1"].sealed
    assert not await world.events()


async def test_a_quiet_host_writes_nothing(world: World) -> None:
    await world.backend()
    async with world.host():
        await world.until(world.pool_ready)
        await world.available("v1")
        await world.available("v2")
        await world.node("n1")
        await world.attach("n1", volume="v1")
        await world.until(lambda: world.is_("v1-n1", "Exported"))
        await world.quiet(30)
        before = list(world.kube.writes)
        await world.quiet(3700)
        assert world.kube.writes == before


async def test_a_slow_create_says_so_after_two_seconds(world: World) -> None:
    await world.backend(config={"latencySeconds": {"create": 30.0}})
    async with world.host():
        await world.until(world.pool_ready)
        await world.volume()
        await world.grant()
        await world.quiet(1.5)
        assert (await world.get()).status.phase is VolumePhase.SCHEDULED
        await world.quiet(1)
        volume = await world.get()
        assert volume.status.phase is VolumePhase.CREATING
        assert volume.status.operation is not None
        assert volume.status.operation.kind is OperationKind.CREATE
        assert volume.status.operation.grant == 1
        await world.until(world.ready)
        volume = await world.get()
    assert volume.status.operation is None
    assert world.effects["create"] == 1


async def test_no_room_is_cleaned_up_and_refused_once(world: World) -> None:
    await world.backend(config={"totalSize": "1Gi", "thin": False})
    async with world.host():
        await world.until(world.pool_ready)
        await world.volume(size="2Gi")
        await world.grant()
        await world.until(lambda: _refused(world, 1))
        await world.quiet(60)
        volume = await world.get()
        assert volume.status.refusal is not None
        assert volume.status.refusal.reason == "OutOfCapacity"
        assert volume.status.refusal.grpc_code == "RESOURCE_EXHAUSTED"
        assert volume.status.last_error is None
        assert "OutOfCapacity" in await world.events()
    assert not world.objects


async def test_a_half_made_fault_is_cleaned_up_before_it_is_refused(world: World) -> None:
    await world.backend(
        config={"faults": [{"verb": "create", "error": "BackendFault", "when": "Half", "times": 1}]}
    )
    async with world.host():
        await world.until(world.pool_ready)
        await world.volume()
        await world.grant()
        await world.until(lambda: _refused(world, 1))
        assert not world.objects
        await world.grant()
        await world.until(world.ready)
        volume = await world.get()
        assert volume.status.refusal is None
    assert list(world.objects) == [f"{volume.uid}-2"]


async def test_a_refusal_waits_for_the_cleaning_up(world: World) -> None:
    await world.backend(
        config={
            "faults": [
                {"verb": "create", "error": "BackendFault", "when": "Half"},
                {"verb": "delete", "times": 3},
            ]
        }
    )
    async with world.host():
        await world.until(world.pool_ready)
        await world.volume()
        await world.grant()
        await world.until(lambda: _failed(world, "BackendFault"))
        volume = await world.get()
        assert volume.status.refusal is None
        assert "cleaning up failed" in (volume.status.last_error.message if volume.status.last_error else "")
        await world.until(lambda: _refused(world, 1))
    assert not world.objects


async def test_an_unavailable_backend_is_tried_again_here(world: World) -> None:
    await world.backend(config={"faults": [{"verb": "create", "when": "After", "times": 3}]})
    async with world.host():
        await world.until(world.pool_ready)
        await world.volume()
        await world.grant()
        await world.until(lambda: _failed(world, "BackendUnavailable"))
        volume = await world.get()
        assert volume.status.last_error is not None
        assert (volume.status.last_error.grpc_code, volume.status.last_error.grant) == ("UNAVAILABLE", 1)
        assert await world.ready_reason() == "BackendUnavailable"
        await world.until(world.ready)
        volume = await world.get()
    assert volume.status.last_error is None
    assert world.effects["create"] == 1
    assert len(world.objects) == 1


async def test_tries_that_outlast_the_deadline_end_in_a_refusal(world: World) -> None:
    await world.backend(config={"faults": [{"verb": "create", "error": "OperationTimeout", "when": "After"}]})
    async with world.host():
        await world.until(world.pool_ready)
        await world.volume()
        await world.grant()
        await world.quiet(100)
        assert (await world.get()).status.refusal is None
        await world.until(lambda: _refused(world, 1), seconds=200)
    assert not world.objects


@pytest.mark.parametrize("breaks", ["create", "open"])
async def test_a_backend_that_stays_away_gives_the_grant_back(world: World, breaks: str) -> None:
    """Nobody waits for ever for a pool: what may be left there is the inventory's when it is back."""
    faults = [{"verb": "create", "when": "After"}, {"verb": "get"}, {"verb": "delete"}]
    await world.backend(config={"faults": faults if breaks == "create" else []})
    async with world.host():
        await world.until(world.pool_ready)
        await world.volume()
        if breaks == "open":
            await world.configure("b", faults=[{"verb": "open"}])
            await world.until(lambda: _pool_is(world, ready=False))
        await world.grant()
        await world.quiet(100)
        assert (await world.get()).status.refusal is None
        await world.until(lambda: _refused(world, 1), seconds=400)
        refusal = (await world.get()).status.refusal
        assert refusal is not None
        assert refusal.grpc_code == "UNAVAILABLE"  # not final: something may be left
        await world.backend("c")
        await world.until(lambda: world.pool_ready("c"))
        await world.grant(backend="c")
        await world.until(world.ready)
        await world.configure("b")
        await world.until(world.pool_ready)
        await world.until(lambda: _objects(world, 1), seconds=900)
        volume = await world.get()
    assert list(world.objects) == [f"{volume.uid}-2"]


@pytest.mark.parametrize("verb", ["create_volume", "export"])
async def test_an_error_that_reads_different_each_time_is_backed_off_all_the_same(
    world: World, verb: str
) -> None:
    """Arrays put request numbers into their messages; our own report of one must not wake us for the next try."""
    tries: list[str] = []

    async def fail(self: FakeDriver, *_: object) -> None:
        tries.append(f"request {len(tries)} failed")
        raise BackendUnavailable(tries[-1])

    await world.backend()
    await world.node("n1")
    async with world.host():
        await world.until(world.pool_ready)
        if verb == "export":
            await world.available()
        opened = world.role.backends.open.get("b") if world.role else None
        assert opened is not None
        setattr(opened.driver, verb, fail.__get__(opened.driver))
        if verb == "export":
            await world.attach("n1")
        else:
            await world.volume()
            await world.grant()
        for _ in range(100):
            await world.quiet(1)
    assert 5 <= len(tries) <= 12


async def test_a_create_that_fails_slowly_is_tried_once(world: World) -> None:
    fault = {"verb": "create", "error": "BackendFault", "when": "Half"}
    await world.backend(config={"latencySeconds": {"create": 10.0}, "faults": [fault]})
    async with world.host():
        await world.until(world.pool_ready)
        await world.volume()
        before = world.life.log.count("driver")
        await world.grant()
        await world.until(lambda: _refused(world, 1), seconds=25)
    assert not world.objects
    assert world.life.log.count("driver") == before + 2  # get and delete, once


async def test_a_create_that_fails_deletes_nothing_that_was_recorded_meanwhile(world: World) -> None:
    """A predecessor's last write: Available, and the process ended before it sealed the object."""
    fault = {"verb": "create", "error": "BackendFault"}
    await world.backend(config={"latencySeconds": {"create": 1.0}, "faults": [fault]})
    async with world.host():
        await world.until(world.pool_ready)
        await world.volume()
        granted = await world.grant()
        await world.quiet(0.5)
        world.own(granted.uid, 1)
        status = say.created(granted, GIB, world.clock.now())
        await world.kube.update_status(granted, granted.with_(status=status))
        await world.quiet(60)
        volume = await world.get()
        assert is_true(volume.status.conditions, "Provisioned")
        assert not is_true(volume.status.conditions, "Lost")
    assert list(world.objects) == [f"{granted.uid}-1"]


async def test_a_driver_that_raises_anything_is_not_believed(world: World) -> None:
    await world.backend()
    async with world.host():
        await world.until(world.pool_ready)
        original = world.place.transact

        async def broken(change: object) -> object:
            raise ZeroDivisionError("bug")

        world.place.transact = broken  # type: ignore[method-assign,assignment]
        await world.volume()
        await world.grant()
        await world.until(lambda: _failed(world, "DriverFault"))
        world.place.transact = original  # type: ignore[method-assign]
        await world.until(world.ready)


async def test_sealed_data_is_never_cleaned_up(world: World) -> None:
    await world.backend()
    async with world.host():
        await world.until(world.pool_ready)
        volume = await world.volume()
        world.own(volume.uid, 1, sealed=True, size_bytes=7 * GIB)
        await world.grant()
        await world.until(lambda: _failed(world, "IncompatibleExists"))
        await world.quiet(300)
    assert (await world.get()).status.refusal is None
    assert list(world.objects) == [f"{volume.uid}-1"]


async def test_what_was_made_goes_when_the_volume_is_gone_meanwhile(world: World) -> None:
    await world.backend(config={"latencySeconds": {"create": 10.0}})
    async with world.host():
        await world.until(world.pool_ready)
        volume = await world.volume()
        granted = await world.grant()
        await world.quiet(1)
        await world.kube.update(granted, granted.with_(metadata=granted.metadata.with_(finalizers=())))
        await world.kube.delete(await world.get())
        await world.volume()  # the same name, another UID
        await world.until(lambda: _effect(world, "delete"))
        await world.quiet(5)
    assert not world.objects
    assert (await world.get()).uid != volume.uid


async def test_what_was_made_goes_when_the_grant_moved_on(world: World) -> None:
    await world.backend(config={"latencySeconds": {"create": 10.0}})
    async with world.host():
        await world.until(world.pool_ready)
        volume = await world.volume()
        await world.grant()
        await world.quiet(1)
        await world.grant(host="elsewhere")
        await world.until(lambda: _effect(world, "delete"))
        await world.quiet(5)
        assert not is_true((await world.get()).status.conditions, "Provisioned")
    assert f"{volume.uid}-1" not in world.objects


async def test_extend_grows_capacity_and_keeps_serving(world: World) -> None:
    await world.backend()
    async with world.host():
        await world.until(world.pool_ready)
        await world.available()
        await world.resize("3Gi")
        await world.until(lambda: _capacity(world, 3 * GIB))
        volume = await world.get()
        assert (volume.status.phase, volume.status.operation) == (VolumePhase.AVAILABLE, None)
        assert world.objects[f"{volume.uid}-1"].size_bytes == 3 * GIB


async def test_the_extend_stands_in_the_status_before_it_happens(world: World) -> None:
    await world.backend(config={"faults": [{"verb": "extend", "times": 4}]})
    async with world.host():
        await world.until(world.pool_ready)
        await world.available()
        await world.resize("3Gi")
        await world.until(lambda: _failed(world, "BackendUnavailable"))
        volume = await world.get()
        assert volume.status.operation is not None
        assert (volume.status.operation.target_bytes, volume.status.phase) == (3 * GIB, VolumePhase.EXTENDING)
        assert await world.ready()  # the old size serves on
        await world.until(lambda: _capacity(world, 3 * GIB))


async def test_an_extend_without_room_keeps_the_old_size_and_does_not_spin(world: World) -> None:
    await world.backend(config={"totalSize": "2Gi", "thin": False})
    async with world.host():
        await world.until(world.pool_ready)
        await world.available()
        await world.resize("5Gi")
        await world.until(lambda: _failed(world, "OutOfCapacity"))
        before = _writes(world)
        await world.quiet(60)
        assert _writes(world) - before <= 10
        volume = await world.get()
        assert (volume.status.capacity_bytes, volume.status.operation) == (GIB, None)
        assert await world.ready()
        await world.resize("1Gi")  # the leader lowers the grant again
        await world.until(lambda: _no_error(world))


async def test_a_vanished_object_is_lost_and_never_made_anew(world: World) -> None:
    await world.backend()
    async with world.host():
        await world.until(world.pool_ready)
        volume = await world.available()
        await world.until(lambda: _sealed(world, f"{volume.uid}-1"))
    kept = world.objects.pop(f"{volume.uid}-1")
    async with world.host():
        await world.until(lambda: _phase(world, VolumePhase.LOST))
        await world.quiet(700)
        assert not world.objects
        assert "Lost" in await world.events()
        world.objects[f"{volume.uid}-1"] = kept  # somebody mounted the disk again
        await world.until(world.ready, seconds=900)
        assert not is_true((await world.get()).status.conditions, "Lost")


async def test_a_lost_volume_can_be_deleted(world: World) -> None:
    await world.backend()
    async with world.host():
        await world.until(world.pool_ready)
        volume = await world.available()
        world.objects.pop(f"{volume.uid}-1")
        await world.until(lambda: _phase(world, VolumePhase.LOST), seconds=700)
        await world.remove()
        await world.until(world.gone)


async def test_delete_leaves_nothing_not_even_of_older_grants(world: World) -> None:
    await world.backend()
    async with world.host():
        await world.until(world.pool_ready)
        await world.volume()
        await world.grant()
        await world.until(world.ready)
        volume = await world.get()
        status = volume.status.with_(last_grant=3)
        await world.kube.update_status(volume, volume.with_(status=status))
        world.own(volume.uid, 2)
        world.own(volume.uid, 3)
        await world.remove()
        await world.until(world.gone)
    assert not world.objects


async def test_a_delete_that_fails_says_why_and_goes_on(world: World) -> None:
    await world.backend(config={"faults": [{"verb": "delete", "times": 3}]})
    async with world.host():
        await world.until(world.pool_ready)
        await world.available()
        await world.remove()
        await world.until(lambda: _failed(world, "BackendUnavailable"))
        assert (await world.get()).status.phase is VolumePhase.DELETING
        await world.until(world.gone)
    assert not world.objects


async def test_data_stays_while_a_persistent_volume_names_it(world: World) -> None:
    await world.backend()
    async with world.host():
        await world.until(world.pool_ready)
        await world.available()
        volume = await world.get()
        await world.kube.update(volume, volume.with_finalizer("cinderblock.io/pv"))
        await world.remove()
        await world.until(lambda: _reason(world, "NamedByPV"))
        await world.quiet(120)
        assert len(world.objects) == 1
        volume = await world.get()
        await world.kube.update(volume, volume.without_finalizer("cinderblock.io/pv"))
        await world.until(world.gone)
    assert not world.objects


async def test_a_missing_finalizer_comes_back_before_the_create(world: World) -> None:
    await world.backend()
    async with world.host():
        await world.until(world.pool_ready)
        volume = await world.volume()
        await world.kube.update(volume, volume.with_(metadata=volume.metadata.with_(finalizers=())))
        await world.grant()
        await world.until(world.ready)
        assert (await world.get()).metadata.finalizers == ("cinderblock.io/protect",)


async def test_a_hanging_backend_does_not_delay_its_neighbours(world: World) -> None:
    await world.backend("b", config={"latencySeconds": {"create": 1000.0}})
    await world.backend("good")
    async with world.host():
        await world.until(world.pool_ready)
        await world.until(lambda: world.pool_ready("good"))
        for i in range(150):
            await world.volume(f"slow{i}")
            await world.grant(f"slow{i}")
        await world.quiet()
        await world.volume("quick")
        await world.grant("quick", backend="good")
        await world.until(lambda: world.ready("quick"), seconds=5)


async def test_other_hosts_volumes_are_left_alone(world: World) -> None:
    await world.backend()
    async with world.host():
        await world.until(world.pool_ready)
        await world.volume()
        await world.grant(host="elsewhere")
        await world.quiet(60)
        assert not world.objects
        assert (await world.get()).status.last_error is None


async def test_a_volume_of_a_backend_that_does_not_open_waits_and_says_so(world: World) -> None:
    await world.backend(config={"faults": [{"verb": "open"}]})
    async with world.host():
        await world.volume()
        await world.grant()
        await world.until(lambda: _failed(world, "BackendNotOpen"))
        await world.configure("b")
        await world.until(world.ready)
        assert await world.kube.get(Backend, "b")


async def test_a_volume_that_waits_while_the_host_starts_costs_no_extra_write(world: World) -> None:
    await world.backend(config={"latencySeconds": {"open": 20.0}})
    async with world.host():
        await world.volume()
        await world.grant()
        before = _writes(world)
        await world.quiet(15)
        assert _writes(world) == before
        await world.until(world.ready)
        await world.quiet(5)
        assert _writes(world) == before + 1


# questions -----------------------------------------------------------------------------------------------
async def _objects(world: World, count: int) -> bool:
    return len(world.objects) == count


async def _pool_is(world: World, *, ready: bool) -> bool:
    return await world.pool_ready() is ready


async def _refused(world: World, grant: int) -> bool:
    refusal = (await world.get()).status.refusal
    return refusal is not None and refusal.grant == grant


async def _failed(world: World, reason: str) -> bool:
    error = (await world.get()).status.last_error
    return error is not None and error.reason == reason


async def _no_error(world: World) -> bool:
    return (await world.get()).status.last_error is None


async def _capacity(world: World, size_bytes: int) -> bool:
    return (await world.get()).status.capacity_bytes == size_bytes


async def _phase(world: World, phase: VolumePhase) -> bool:
    volume: Volume = await world.get()
    return volume.status.phase is phase


async def _reason(world: World, reason: str) -> bool:
    return await world.ready_reason() == reason


async def _effect(world: World, verb: str) -> bool:
    return world.effects.get(verb, 0) > 0


async def _sealed(world: World, name: str) -> bool:
    return world.objects[name].sealed
