"""What a backend holds against what the CRs say: deleted, sealed, reported, missed."""

from __future__ import annotations

import pytest
from host_world import World

from cinderblock.core.api import Volume
from cinderblock.core.api.meta import ObjectMeta, set_condition
from cinderblock.core.api.volume import PROVISIONED, Allocation, VolumeSpec, VolumeStatus
from cinderblock.core.clock import SystemClock
from cinderblock.drivers.base import VolumeInfo, VolumeRef
from cinderblock.operator.host.decide_inventory import Verdict, judge_cached, judge_fresh

NOW = SystemClock().now()


def _volume(*, grant: int | None, last: int, host: str = "h", provisioned: bool = False) -> Volume:
    allocation = Allocation(backend="b", pool="p", host=host, size_bytes=1, grant=grant) if grant else None
    conditions = (
        set_condition((), PROVISIONED, True, reason="Created", generation=1, now=NOW) if provisioned else ()
    )
    return Volume(
        metadata=ObjectMeta(name="v", namespace="d", uid="u"),
        spec=VolumeSpec(size="1Gi"),
        status=VolumeStatus(handle="u", allocation=allocation, last_grant=last, conditions=conditions),
    )


def _info(grant: int, *, sealed: bool = False, complete: bool = True) -> VolumeInfo:
    return VolumeInfo(VolumeRef("u", grant), 1, None, sealed, complete)


@pytest.mark.parametrize(
    ("volume", "info", "verdict"),
    [
        (_volume(grant=1, last=1), _info(1), Verdict.KEEP),
        (_volume(grant=1, last=1), _info(1, complete=False), Verdict.KEEP),
        (_volume(grant=1, last=1, provisioned=True), _info(1), Verdict.SEAL),
        (_volume(grant=1, last=1, provisioned=True), _info(1, sealed=True), Verdict.KEEP),
        (_volume(grant=2, last=2), _info(1), Verdict.UNSURE),
        (_volume(grant=1, last=1, host="other"), _info(1), Verdict.UNSURE),
        (_volume(grant=None, last=1), _info(1), Verdict.UNSURE),
    ],
)
def test_the_cache_only_says_what_is_wanted(volume: Volume, info: VolumeInfo, verdict: Verdict) -> None:
    assert judge_cached(info, [volume], "h", "b") is verdict


@pytest.mark.parametrize(
    ("volumes", "info", "verdict"),
    [
        ([], _info(1), Verdict.DELETE),
        ([], _info(1, complete=False), Verdict.DELETE),
        ([], _info(1, sealed=True), Verdict.REPORT),
        ([_volume(grant=2, last=2)], _info(1), Verdict.DELETE),
        ([_volume(grant=2, last=2)], _info(1, sealed=True), Verdict.REPORT),
        ([_volume(grant=None, last=2)], _info(1), Verdict.DELETE),
        ([_volume(grant=None, last=1)], _info(1), Verdict.KEEP),
        ([_volume(grant=1, last=1)], _info(1), Verdict.KEEP),
        ([_volume(grant=1, last=1, host="other")], _info(1, sealed=True), Verdict.KEEP),
        ([_volume(grant=1, last=1)], _info(5), Verdict.KEEP),
        ([_volume(grant=1, last=1)], _info(5, sealed=True), Verdict.REPORT),
    ],
)
def test_only_the_unrecorded_and_unwanted_is_deleted(
    volumes: list[Volume], info: VolumeInfo, verdict: Verdict
) -> None:
    assert judge_fresh(info, volumes) is verdict


async def test_at_start_left_overs_go_and_strangers_are_reported(world: World) -> None:
    await world.backend()
    world.own("nobody", 1)
    world.own("somebody", 4, sealed=True)
    async with world.host():
        await world.until(lambda: _found(world))
        assert set(world.objects) == {"somebody-4"}
        assert world.role is not None
        assert world.role.inventory.findings["b"].unknown == ("somebody-4",)
        assert "UnknownObjects" in await world.events()
        labels = {"backend": "b"}
        assert world.metrics.get_sample_value("cinderblock_backend_unknown_objects", labels) == 1
        assert world.metrics.get_sample_value("cinderblock_backend_leftovers_deleted_total", labels) == 1


async def _found(world: World) -> bool:
    return world.role is not None and "b" in world.role.inventory.findings


async def test_every_ten_minutes_again(world: World) -> None:
    await world.backend()
    async with world.host():
        await world.until(world.pool_ready)
        kept = await world.available()
        await world.quiet(30)
        world.own("nobody", 1)
        await world.quiet(400)
        assert "nobody-1" in world.objects
        await world.quiet(300)
        assert set(world.objects) == {f"{kept.uid}-1"}


async def test_a_cache_that_misses_a_volume_deletes_nothing(world: World) -> None:
    """The watch tells nothing, so the store knows no Volume: the fresh list by handle does."""
    await world.backend()
    async with world.host() as role:
        await world.until(world.pool_ready)
        world.kube.silent = True
        volume = await world.volume()
        await world.grant(host="operator")
        world.own(volume.uid, 1)
        role.inventory.soon("b")
        await world.quiet(30)
        assert f"{volume.uid}-1" in world.objects
