"""The formatting dialogue, with nodes that play their part: data is never formatted over, half of it never mounted."""

from __future__ import annotations

import pytest
from host_world import NodeActor, World

from cinderblock.core.api import Attachment
from cinderblock.core.api.volume import FilesystemState, Use


async def _up(world: World, **config: object) -> None:
    await world.backend(config=dict(config))
    for name in ("n1", "n2"):
        await world.node(name)


def _actor(world: World, node: str, **content: str) -> NodeActor:
    actor = NodeActor(world, node, content=dict(content))
    world.actors.append(actor.step)
    return actor


async def _mounted(actor: NodeActor) -> bool:
    return "v" in actor.mounted


@pytest.mark.parametrize("planned", ["ext4", None])
async def test_a_blank_device_is_formatted_once(world: World, planned: str | None) -> None:
    await _up(world)
    disk: dict[str, str] = {}
    for name in ("n1", "n2"):
        actor = NodeActor(world, name, content=disk)
        world.actors.append(actor.step)
    async with world.host():
        await world.until(world.pool_ready)
        await world.available(fs_type=planned)
        first = _first_actor(world)
        await world.attach("n1", use=Use.MOUNT)
        await world.until(lambda: _mounted(first))
        volume = await world.get()
        assert volume.status.filesystem is not None
        assert (volume.status.filesystem.type, volume.status.filesystem.state) == ("ext4", "Formatted")
        await world.detach("v-n1")
        await world.until(lambda: world.gone("v-n1", Attachment))
        await world.attach("n2", use=Use.MOUNT)
        await world.until(lambda: _second_mounted(world))
    assert first.formats == ["v"]


def _first_actor(world: World) -> NodeActor:
    return world.actors[0].__self__  # type: ignore[attr-defined,no-any-return]


async def _second_mounted(world: World) -> bool:
    actor: NodeActor = world.actors[1].__self__  # type: ignore[attr-defined]
    return "v" in actor.mounted and not actor.formats


async def test_the_volume_says_formatting_before_any_permit(world: World) -> None:
    """At no moment does a permit stand while the Volume does not say Formatting."""
    await _up(world)
    actor = _actor(world, "n1")

    async def check() -> None:
        for attachment in (await world.kube.list(Attachment)).items:
            if attachment.status.format_permit is not None:
                filesystem = (await world.get()).status.filesystem
                assert filesystem is not None
                assert filesystem.state in (FilesystemState.FORMATTING, FilesystemState.FORMATTED)
                assert filesystem.permitted or filesystem.state is FilesystemState.FORMATTED

    world.actors.append(check)
    async with world.host():
        await world.until(world.pool_ready)
        await world.available()
        await world.attach("n1", use=Use.MOUNT)
        await world.until(lambda: _mounted(actor), step=0.05)


async def test_the_same_filesystem_found_is_recorded_and_mounted(world: World) -> None:
    await _up(world)
    actor = _actor(world, "n1", v="ext4")
    async with world.host():
        await world.until(world.pool_ready)
        await world.available()
        await world.attach("n1", use=Use.MOUNT)
        await world.until(lambda: _mounted(actor))
        assert (await world.attachment("v-n1")).status.format_permit is None
    assert not actor.formats


@pytest.mark.parametrize("found", ["xfs", "Other"])
async def test_other_content_is_never_formatted_over(world: World, found: str) -> None:
    await _up(world)
    actor = _actor(world, "n1", v=found)
    async with world.host():
        await world.until(world.pool_ready)
        await world.available(fs_type="ext4")
        await world.attach("n1", use=Use.MOUNT)
        await world.until(lambda: world.attachment_error("v-n1", "InvalidRequest"))
        await world.quiet(120)
        status = (await world.attachment("v-n1")).status
        assert status.format_permit is None
        assert status.last_error is not None
        assert "not formatted over" in status.last_error.message
    assert not actor.formats
    assert not actor.mounted


@pytest.mark.parametrize("left", ["ext4", "Other", "Blank"])
@pytest.mark.parametrize("planned", ["ext4", None])
async def test_a_mkfs_that_was_cut_off_is_made_anew_by_the_next_attachment(
    world: World, planned: str | None, left: str
) -> None:
    """Half a filesystem may look like a whole one: only the report of a finished one counts."""
    await _up(world)
    disk: dict[str, str] = {}
    actors = [NodeActor(world, name, content=disk) for name in ("n1", "n2")]
    actors[1].half_made = actors[0].half_made
    world.actors.extend(actor.step for actor in actors)
    actors[0].cut_off_with = left
    async with world.host():
        await world.until(world.pool_ready)
        await world.available(fs_type=planned)
        await world.attach("n1", use=Use.MOUNT)
        await world.until(lambda: _true("v" in disk))
        await world.detach("v-n1")
        await world.until(lambda: world.gone("v-n1", Attachment))
    async with world.host():
        await world.until(world.pool_ready)
        await world.attach("n2", use=Use.MOUNT)
        await world.until(lambda: _mounted(actors[1]))
    assert actors[1].formats == ["v"]


async def test_what_a_bare_device_left_after_a_cut_off_mkfs_is_never_formatted_over(world: World) -> None:
    await _up(world)
    actor = _actor(world, "n1")
    actor.cut_off_with = "ext4"
    async with world.host():
        await world.until(world.pool_ready)
        await world.available(fs_type="ext4")
        await world.attach("n1", use=Use.MOUNT)
        await world.until(lambda: _true("v" in actor.content))
        await world.detach("v-n1")
        await world.until(lambda: world.gone("v-n1", Attachment))
        await world.attach("n1", name="bare", use=Use.BARE)
        await world.until(lambda: world.is_("bare", "Exported"))
        actor.content["v"] = "xfs"  # somebody's own work
        actor.half_made.clear()
        await world.detach("bare")
        await world.until(lambda: world.gone("bare", Attachment))
        await world.attach("n1", use=Use.MOUNT)
        await world.until(lambda: world.attachment_error("v-n1", "InvalidRequest"))
        assert (await world.attachment("v-n1")).status.format_permit is None
    assert actor.content == {"v": "xfs"}


async def _true(value: bool) -> bool:
    return value


async def test_two_nodes_of_a_shared_volume_never_both_format(world: World) -> None:
    await _up(world)
    disk: dict[str, str] = {}
    actors = [NodeActor(world, name, content=disk) for name in ("n1", "n2")]
    world.actors.extend(actor.step for actor in actors)
    async with world.host():
        await world.until(world.pool_ready)
        await world.available(access_modes=("ReadWriteMany",))
        await world.attach("n1", use=Use.MOUNT)
        await world.attach("n2", use=Use.MOUNT)
        await world.until(lambda: _all_mounted(actors))
    assert len(actors[0].formats + actors[1].formats) == 1


async def _all_mounted(actors: list[NodeActor]) -> bool:
    return all("v" in actor.mounted for actor in actors)


async def test_a_block_volume_is_raw_for_ever(world: World) -> None:
    await _up(world)
    _actor(world, "n1")
    async with world.host():
        await world.until(world.pool_ready)
        await world.available(volume_mode="Block")
        await world.attach("n1", use=Use.BLOCK, name="a")
        await world.until(lambda: world.is_("a", "Exported"))
        filesystem = (await world.get()).status.filesystem
        assert filesystem is not None
        assert filesystem.state is FilesystemState.RAW
        await world.detach("a")
        await world.until(lambda: world.gone("a", Attachment))
        await world.attach("n1", use=Use.MOUNT, name="b")
        await world.until(lambda: world.refused_for("b", "InvalidRequest"))
        await world.detach("b")
        await world.attach("n1", use=Use.BARE, name="c")
        await world.until(lambda: world.is_("c", "Exported"))
