"""kill -9 of the host before and after each of its effects; the next host finishes or undoes.

Watched at every moment: one backend object for a handle, exports only for what attachments[] names, no format over
data. In the end: everything was reached, and nothing is left.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
from fake_clock import settle
from host_world import NodeActor, World

from cinderblock.core.api import Attachment
from cinderblock.core.api.volume import FilesystemState, Use
from cinderblock.core.units import GIB

# Hundreds of lives of a volume each; a loaded machine takes its time.
pytestmark = pytest.mark.timeout(600)

Question = Callable[[], Awaitable[bool]]
_MOST_MOMENTS = 400


class Mortal:
    """Runs a host that dies at its n-th moment and is followed by one that lives."""

    def __init__(self, world: World, die_at: int) -> None:
        self.world = world
        self.die_at = die_at
        self.died = False
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        await self._stack.enter_async_context(self.world.host(die_at=self.die_at))

    async def stop(self) -> None:
        await self._stack.aclose()

    async def until(self, what: Question) -> None:
        for _ in range(600):
            await settle(60)
            if self.world.life.dead and not self.died:
                self.died = True
                await self._stack.aclose()
                await self._stack.enter_async_context(self.world.host())
            for actor in self.world.actors:
                await actor()
            if await what():
                return
            await self.world.clock.advance(0.5)
        raise AssertionError(f"never so after dying at {self.die_at}: {self.world.life.log[-20:]}")


def _guards(world: World) -> None:
    async def one_object_and_no_stranger() -> None:
        handles = [v.handle for v in world.objects.values()]
        assert len(handles) == len(set(handles)), f"two objects of one handle: {sorted(world.objects)}"
        for held in world.objects.values():
            if held.exports:
                volume = await world.get()
                assert set(held.exports) <= {e.node for e in volume.status.attachments}

    world.actors.append(one_object_and_no_stranger)


async def _whole_life(world: World, mortal: Mortal) -> NodeActor:
    """Create, attach, format, extend, detach, delete."""
    _guards(world)
    node = NodeActor(world, "n1")
    world.actors.append(node.step)
    await world.backend()
    await world.node("n1")
    await mortal.start()
    try:
        await mortal.until(world.pool_ready)
        await world.volume(fs_type="ext4")
        await world.grant()
        await mortal.until(world.ready)
        await mortal.until(lambda: _sealed(world))
        await world.attach("n1", use=Use.MOUNT)
        await mortal.until(lambda: _mounted(node))
        await world.resize("2Gi")
        await mortal.until(lambda: _connection(world, 2 * GIB))
        filesystem = (await world.get()).status.filesystem
        assert filesystem is not None
        assert filesystem.state is FilesystemState.FORMATTED
        await world.detach("v-n1")
        await mortal.until(lambda: world.gone("v-n1", Attachment))
        assert not (await world.get()).status.attachments
        await world.remove()
        await mortal.until(world.gone)
    finally:
        await mortal.stop()
    return node


async def _sealed(world: World) -> bool:
    return all(held.sealed for held in world.objects.values())


async def _mounted(node: NodeActor) -> bool:
    return "v" in node.mounted


async def _connection(world: World, size_bytes: int) -> bool:
    connection = (await world.attachment("v-n1")).status.connection
    return connection is not None and connection.size_bytes == size_bytes


async def test_a_whole_life_with_death_at_every_moment(tmp_path: Path) -> None:
    moments = 0
    for die_at in range(1, _MOST_MOMENTS):
        world = World(tmp_path)
        mortal = Mortal(world, die_at)
        node = await _whole_life(world, mortal)
        assert not world.objects, f"left after dying at moment {die_at}"
        assert node.formats == ["v"]
        assert world.effects["create"] == 1
        moments = die_at
        if not mortal.died:
            break
    assert 20 < moments < _MOST_MOMENTS - 1, "the host must outlive the last run, and die in those before"


async def _refused_life(world: World, mortal: Mortal) -> None:
    """Two pools refuse, a third grant works; the leader is played."""

    async def leader() -> None:
        volume = await world.get()
        refusal, allocation = volume.status.refusal, volume.status.allocation
        if refusal is not None and allocation is not None and refusal.grant == allocation.grant:
            assert f"{volume.uid}-{refusal.grant}" not in world.objects, "refused, and not cleaned up"
            await world.grant()

    await world.backend(
        config={"faults": [{"verb": "create", "error": "BackendFault", "when": "Half", "times": 2}]}
    )
    await mortal.start()
    try:
        await mortal.until(world.pool_ready)
        await world.volume()
        world.actors.append(leader)
        _guards(world)
        await world.grant()
        await mortal.until(world.ready)
        volume = await world.get()
        assert volume.status.allocation is not None
        assert list(world.objects) == [f"{volume.uid}-{volume.status.allocation.grant}"]
        world.actors.clear()
        await world.remove()
        await mortal.until(world.gone)
    finally:
        await mortal.stop()


async def test_refusals_with_death_at_every_moment(tmp_path: Path) -> None:
    for die_at in range(1, _MOST_MOMENTS):
        world = World(tmp_path)
        mortal = Mortal(world, die_at)
        await _refused_life(world, mortal)
        assert not world.objects, f"left after dying at moment {die_at}"
        if not mortal.died:
            return
    pytest.fail("the host never outlived its chosen death")


async def test_a_grant_that_moved_on_while_the_host_was_dead(tmp_path: Path) -> None:
    """The old host died with something made; the leader gave the volume elsewhere; nothing is left here."""
    for die_at in range(1, _MOST_MOMENTS):
        world = World(tmp_path)
        await world.backend()
        volume = await world.volume()
        async with world.host(die_at=die_at):
            await world.grant()
            died = await world.until_dead()
        if not died:
            return
        fresh = await world.get()
        if fresh.status.capacity_bytes is not None:
            continue  # recorded: the leader takes a provisioned volume from nobody
        await world.grant(host="elsewhere")
        async with world.host():
            await world.until(world.pool_ready)
            await world.until(partial(_inventoried, world))
        assert not world.objects, f"left after dying at moment {die_at}"
        assert (await world.get()).uid == volume.uid


async def _inventoried(world: World) -> bool:
    return world.role is not None and "b" in world.role.inventory.findings


async def test_two_hosts_at_once_admit_one_node_and_make_one_object(tmp_path: Path) -> None:
    """A predecessor that has not noticed its end yet: conflicts decide, never luck."""
    for round_ in range(8):
        world = World(tmp_path)
        _guards_of_all(world)
        await world.backend()
        for name in ("n1", "n2"):
            await world.node(name)
        async with world.host(), world.host():
            await world.until(world.pool_ready)
            await world.volume()
            await world.grant()
            await world.attach("n1", name="a" if round_ % 2 else "b")
            await world.attach("n2", name="b" if round_ % 2 else "a")
            await world.until(world.ready, step=0.05)
            await world.until(partial(_one_exported, world), step=0.05)
            await world.quiet(30)
            assert await _one_exported(world)
        [held] = world.objects.values()
        [entry] = (await world.get()).status.attachments
        assert held.exports == {entry.node: entry.generation}
        assert world.effects["create"] == 1


def _guards_of_all(world: World) -> None:
    async def exports_stand_in_the_volume() -> None:
        for held in world.objects.values():
            if held.exports:
                assert set(held.exports) <= {e.node for e in (await world.get()).status.attachments}

    world.actors.append(exports_stand_in_the_volume)


async def _one_exported(world: World) -> bool:
    exported = [await world.is_(name, "Exported") for name in ("a", "b")]
    return exported.count(True) == 1
