"""Attach, exclusivity, the formatting dialogue, detach and fence, with a node that plays its part."""

from __future__ import annotations

import pytest
from host_world import NS, LocalFakeDriver, NodeActor, OfflineFakeDriver, World

from cinderblock.core.api import Attachment, Volume
from cinderblock.core.api.attachment import AttachmentSpec, Fence
from cinderblock.core.api.builtin import Node
from cinderblock.core.api.meta import ObjectMeta, find_condition
from cinderblock.core.units import GIB


async def _up(world: World, **config: object) -> None:
    await world.backend(config=dict(config))
    for name in ("n1", "n2"):
        await world.node(name)


def _actor(world: World, node: str, **content: str) -> NodeActor:
    actor = NodeActor(world, node, content=dict(content))
    world.actors.append(actor.step)
    return actor


async def _reason(world: World, name: str) -> str:
    found = find_condition((await world.attachment(name)).status.conditions, "Admitted")
    return found.reason if found is not None and found.status == "False" else ""


async def _entries(world: World) -> list[str]:
    return [e.node for e in (await world.get()).status.attachments]


async def test_an_attachment_is_admitted_then_exported(world: World) -> None:
    await _up(world)
    async with world.host():
        await world.until(world.pool_ready)
        await world.available()
        await world.attach("n1")
        await world.until(lambda: world.is_("v-n1", "Exported"))
        attachment, volume = await world.attachment("v-n1"), await world.get()
        [entry] = volume.status.attachments
        assert (entry.attachment_uid, entry.node, entry.generation) == (attachment.uid, "n1", 1)
        assert attachment.has_finalizer("cinderblock.io/protect")
        connection = attachment.status.connection
        assert connection is not None
        assert (connection.generation, connection.size_bytes, attachment.status.generation) == (1, GIB, 1)
        assert world.objects[f"{volume.uid}-1"].exports == {"n1": 1}
        await world.detach("v-n1")
        _actor(world, "n1")
        await world.until(lambda: world.gone("v-n1", Attachment))
        assert not await _entries(world)
    assert world.objects[f"{volume.uid}-1"].exports == {}


async def test_two_nodes_at_once_exactly_one_is_admitted(world: World) -> None:
    await _up(world)
    async with world.host():
        await world.until(world.pool_ready)
        await world.available()
        await world.attach("n1", name="a")
        await world.attach("n2", name="b")
        await world.until(lambda: world.is_("a", "Admitted"))
        await world.until(lambda: world.is_("b", "Admitted", False))
        assert await _entries(world) == ["n1"]
        assert await _reason(world, "b") == "AttachedElsewhere"
        refused = (await world.attachment("b")).status
        assert refused.last_error is not None
        assert refused.last_error.grpc_code == "FAILED_PRECONDITION"
        assert refused.connection is None
        assert "AttachedElsewhere" in await world.events()
        actor = _actor(world, "n1")
        actor.lets_go = False
        await world.detach("a")
        await world.quiet(120)
        assert await _entries(world) == ["n1"]  # asked for, but the node has not let go
        actor.lets_go = True
        await world.until(lambda: world.is_("b", "Exported"))
        assert await _entries(world) == ["n2"]
        assert (await world.attachment("b")).status.generation == 2


@pytest.mark.parametrize(
    ("modes", "read_only", "both"),
    [
        (("ReadWriteMany",), False, True),
        (("ReadWriteOnce", "ReadOnlyMany"), True, True),
        (("ReadWriteOnce", "ReadOnlyMany"), False, False),
    ],
)
async def test_several_nodes_only_as_the_access_modes_allow(
    world: World, modes: tuple[str, ...], read_only: bool, both: bool
) -> None:
    await _up(world)
    async with world.host():
        await world.until(world.pool_ready)
        await world.available(access_modes=modes)
        await world.attach("n1", name="a", read_only=read_only)
        await world.attach("n2", name="b", read_only=read_only)
        await world.until(lambda: world.is_("a", "Exported"))
        await world.until(lambda: world.is_("b", "Admitted", both))
        assert await _entries(world) == (["n1", "n2"] if both else ["n1"])


async def test_refusals_name_their_reason_and_are_judged_again(world: World) -> None:
    await world.backend()
    async with world.host():
        await world.until(world.pool_ready)
        await world.attach("n1", volume="v", name="early")
        await world.until(lambda: world.is_("early", "Admitted", False))
        assert await _reason(world, "early") == "NotFound"  # no such Volume
        await world.volume()
        await world.until(lambda: world.refused_for("early", "NotReady"))  # made, but granted nowhere
        await world.grant()
        await world.until(world.ready)
        await world.until(lambda: world.refused_for("early", "NotFound"))  # no such node
        assert "node n1" in (await world.attachment("early")).status.last_error.message  # type: ignore[union-attr]
        await world.node("n1")
        await world.until(lambda: world.is_("early", "Exported"))
        assert (await world.attachment("early")).status.last_error is None


async def test_an_attachment_that_never_got_in_can_leave_before_the_volume_exists(world: World) -> None:
    await _up(world, faults=[{"verb": "create"}])
    async with world.host():
        await world.until(world.pool_ready)
        await world.volume()
        await world.grant()
        attachment = await world.attach("n1")
        await world.until(lambda: world.refused_for("v-n1", "NotReady"))
        attachment = await world.attachment("v-n1")
        await world.kube.update(attachment, attachment.with_finalizer("cinderblock.io/protect"))
        await world.detach("v-n1")
        await world.until(lambda: world.gone("v-n1", Attachment))


async def test_a_second_attachment_of_the_same_node_is_refused(world: World) -> None:
    await _up(world)
    async with world.host():
        await world.until(world.pool_ready)
        await world.available()
        await world.attach("n1", name="a")
        await world.until(lambda: world.is_("a", "Exported"))
        await world.attach("n1", name="b", read_only=True)
        await world.until(lambda: world.refused_for("b", "IncompatibleExists"))
        assert await _entries(world) == ["n1"]


async def test_a_driver_that_cannot_reach_a_node_withdraws_without_turning_in_circles(world: World) -> None:
    await _up(world, faults=[{"verb": "export", "error": "NotSupported"}])
    async with world.host():
        await world.until(world.pool_ready)
        await world.available()
        await world.attach("n1")
        await world.until(lambda: world.refused_for("v-n1", "NotSupported"))
        await world.quiet(10)
        before = len(world.kube.writes)
        await world.quiet(120)
        assert len(world.kube.writes) == before
        assert not await _entries(world)
        assert (await world.attachment("v-n1")).status.connection is None
        await world.detach("v-n1")
        await world.until(lambda: world.gone("v-n1", Attachment))


async def test_a_volume_in_use_is_not_deleted(world: World) -> None:
    await _up(world)
    _actor(world, "n1")
    async with world.host():
        await world.until(world.pool_ready)
        volume = await world.available()
        await world.attach("n1")
        await world.until(lambda: world.is_("v-n1", "Exported"))
        await world.remove()
        await world.until(lambda: _volume_reason(world, "VolumeInUse"))
        await world.quiet(300)
        assert f"{volume.uid}-1" in world.objects
        await world.attach("n2", name="late")
        await world.until(lambda: world.refused_for("late", "VolumeDeleting"))
        await world.detach("v-n1")
        await world.until(world.gone)
        assert await world.gone("v-n1", Attachment)
    assert not world.objects


async def _volume_reason(world: World, reason: str) -> bool:
    return await world.ready_reason() == reason


async def test_an_extend_reaches_the_connection(world: World) -> None:
    await _up(world)
    _actor(world, "n1")
    async with world.host():
        await world.until(world.pool_ready)
        await world.available()
        await world.attach("n1")
        await world.until(lambda: world.is_("v-n1", "Exported"))
        await world.resize("4Gi")
        await world.until(lambda: _connection_bytes(world, 4 * GIB))


async def _connection_bytes(world: World, size_bytes: int) -> bool:
    connection = (await world.attachment("v-n1")).status.connection
    return connection is not None and connection.size_bytes == size_bytes


async def test_offline_extend_waits_for_the_detach(world: World) -> None:
    world.driver_class = OfflineFakeDriver
    await _up(world)
    _actor(world, "n1")
    async with world.host():
        await world.until(world.pool_ready)
        await world.available()
        await world.attach("n1")
        await world.until(lambda: world.is_("v-n1", "Exported"))
        await world.resize("4Gi")
        await world.until(lambda: _volume_error(world, "VolumeInUse"))
        await world.detach("v-n1")
        await world.until(lambda: _capacity(world, 4 * GIB), seconds=400)
        assert (await world.get()).status.last_error is None


async def _volume_error(world: World, reason: str) -> bool:
    error = (await world.get()).status.last_error
    return error is not None and error.reason == reason


async def _capacity(world: World, size_bytes: int) -> bool:
    return (await world.get()).status.capacity_bytes == size_bytes


@pytest.mark.parametrize(("namespace", "admitted"), [("release", True), ("tenant", False)])
async def test_only_the_release_namespace_names_volumes_of_others(
    world: World, namespace: str, admitted: bool
) -> None:
    await _up(world)
    async with world.host():
        await world.until(world.pool_ready)
        await world.available()
        spec = AttachmentSpec(volume="v", volume_namespace=NS, node="n1")
        meta = ObjectMeta(name="foreign", namespace=namespace)
        await world.kube.create(Attachment(metadata=meta, spec=spec))
        await world.until(lambda: _condition(world, namespace, "Admitted", admitted))
        assert await _entries(world) == (["n1"] if admitted else [])
        error = (await world.kube.get(Attachment, "foreign", namespace)).status.last_error
        assert (error.reason if error is not None else None) == (None if admitted else "ForeignVolume")


async def _condition(world: World, namespace: str, type_: str, status: bool) -> bool:
    conditions = (await world.kube.get(Attachment, "foreign", namespace)).status.conditions
    found = find_condition(conditions, type_)
    return found is not None and (found.status == "True") is status


# fence and vanished Attachments --------------------------------------------------------------------------
async def _fence(world: World, name: str) -> None:
    attachment = await world.attachment(name)
    status = attachment.status.with_(fence=Fence(generation=attachment.status.generation, reason="NodeGone"))
    await world.kube.update_status(attachment, attachment.with_(status=status))


async def test_a_fence_cuts_off_and_makes_room(world: World) -> None:
    await _up(world)
    async with world.host():
        await world.until(world.pool_ready)
        volume = await world.available()
        await world.attach("n1", name="a")
        await world.until(lambda: world.is_("a", "Exported"))
        await world.attach("n2", name="b")
        await world.until(lambda: world.refused_for("b", "AttachedElsewhere"))
        await _fence(world, "a")
        await world.until(lambda: world.is_("b", "Exported"))
        held = world.objects[f"{volume.uid}-1"]
        assert held.fenced == {"n1": 1}
        assert held.exports == {"n2": 2}
        assert await world.is_("a", "Exported", False)
        await world.detach("a")
        await world.until(lambda: world.gone("a", Attachment))
        assert await _entries(world) == ["n2"]


async def test_a_driver_that_cannot_fence_keeps_the_data_and_says_so(world: World) -> None:
    world.driver_class = LocalFakeDriver
    world.driver_class = _NoFence
    await _up(world)
    async with world.host():
        await world.until(world.pool_ready)
        await world.available()
        await world.attach("n1", name="a")
        await world.until(lambda: world.is_("a", "Exported"))
        await world.detach("a")
        await _fence(world, "a")
        await world.until(lambda: world.attachment_error("a", "CannotFence"))
        await world.quiet(60)
        assert await _entries(world) == ["n1"]
        _actor(world, "n1")  # the node comes back and lets go
        await world.until(lambda: world.gone("a", Attachment))


class _NoFence(LocalFakeDriver):
    node_local = False
    fence = None  # type: ignore[assignment]


async def test_a_fence_that_cannot_be_done_is_told_once(world: World) -> None:
    """The node has another Node object by now, and the driver cannot cut it off: nothing turns in circles."""
    world.driver_class = _NoFence
    await _up(world)
    async with world.host():
        await world.until(world.pool_ready)
        await world.available()
        await world.attach("n1", name="a")
        await world.until(lambda: world.is_("a", "Exported"))
        await _fence(world, "a")
        await world.until(lambda: world.attachment_error("a", "CannotFence"))
        await world.quiet(60)
        before = len(world.kube.writes)
        await world.quiet(120)
        assert len(world.kube.writes) == before
        assert await world.attachment_error("a", "CannotFence")
        # the node lets go by itself, which is as good as a fence: others may have the volume
        attachment = await world.attachment("a")
        status = attachment.status.with_(released=attachment.status.generation)
        await world.kube.update_status(attachment, attachment.with_(status=status))
        await world.until(lambda: world.is_("a", "Exported", False))
        await world.attach("n2", name="b")
        await world.until(lambda: world.is_("b", "Exported"))


async def test_a_vanished_attachment_keeps_its_place_until_a_proof(world: World) -> None:
    world.driver_class = _NoFence
    await _up(world)
    async with world.host():
        await world.until(world.pool_ready)
        await world.available()
        await world.attach("n1", name="a")
        await world.until(lambda: world.is_("a", "Exported"))
        await world.force_away("a")
        await world.attach("n2", name="b")
        await world.until(lambda: world.refused_for("b", "AttachedElsewhere"))
        await world.quiet(120)
        assert await _entries(world) == ["n1"]
        assert "AttachmentVanished" in await world.events()
        await world.detach("b")
        await world.attach("n1", name="again")
        await world.until(lambda: world.is_("again", "Exported"))
        [entry] = (await world.get()).status.attachments
        assert (entry.attachment, entry.generation) == (f"{NS}/again", 2)
        _actor(world, "n1")
        await world.detach("again")
        await world.until(lambda: world.gone("again", Attachment))
        assert not await _entries(world)


async def test_a_vanished_attachment_is_fenced_when_another_node_wants_the_volume(world: World) -> None:
    await _up(world)
    async with world.host():
        await world.until(world.pool_ready)
        volume = await world.available()
        await world.attach("n1", name="a")
        await world.until(lambda: world.is_("a", "Exported"))
        await world.force_away("a")
        await world.quiet(30)
        assert await _entries(world) == ["n1"]  # nobody else needs it: the pod there goes on
        await world.attach("n2", name="b")
        await world.until(lambda: world.is_("b", "Exported"))
        assert world.objects[f"{volume.uid}-1"].fenced == {"n1": 1}
        assert await _entries(world) == ["n2"]


async def test_a_deleted_local_volume_with_a_vanished_attachment_waits_for_the_driver(world: World) -> None:
    class _LocalNoFence(LocalFakeDriver):
        fence = None  # type: ignore[assignment]

    world.driver_class = _LocalNoFence
    await world.node("n1")
    await world.backend(node_selector={})
    async with world.host("n1", "n1"):
        await world.until(lambda: world.pool_ready("b-n1"))
        await world.volume()
        await world.grant(host="n1", node="n1")
        await world.until(world.ready)
        await world.attach("n1", name="a")
        await world.until(lambda: world.is_("a", "Exported"))
        await world.force_away("a")
        await world.remove()
        await world.until(
            lambda: _volume_error(world, "VolumeInUse")
        )  # a device holds it: the driver says so
        volume: Volume = await world.get()
        world.objects[f"{volume.uid}-1"].exports.clear()
        await world.until(world.gone)
    assert not world.objects


async def test_a_local_driver_reaches_its_own_node_only(world: World) -> None:
    world.driver_class = LocalFakeDriver
    await world.node("n1")
    await world.node("n2")
    await world.backend(node_selector={})
    async with world.host("n1", "n1"):
        await world.until(lambda: world.pool_ready("b-n1"))
        await world.volume()
        await world.grant(host="n1", node="n1")
        await world.until(world.ready)
        await world.attach("n2", name="far")
        await world.until(lambda: world.refused_for("far", "NotSupported"))


async def test_a_node_made_anew_waits_for_its_agent(world: World) -> None:
    await _up(world)
    old = await world.kube.get(Node, "n1")
    await world.kube.delete(old)
    await world.kube.create(Node(metadata=old.metadata.with_(uid="", resource_version="")))
    async with world.host():
        await world.until(world.pool_ready)
        await world.available()
        await world.attach("n1")
        await world.until(lambda: world.refused_for("v-n1", "NotReady"))


async def test_a_restart_exports_again_what_attachments_names(world: World) -> None:
    await _up(world)
    async with world.host():
        await world.until(world.pool_ready)
        volume = await world.available()
        await world.attach("n1")
        await world.until(lambda: world.is_("v-n1", "Exported"))
    world.objects[f"{volume.uid}-1"].exports.clear()  # the target lost its configuration
    before = len(world.kube.writes)
    async with world.host():
        await world.until(lambda: _is_exported(world, f"{volume.uid}-1"))
        await world.quiet(5)
        assert [w for w in world.kube.writes[before:] if w[1] in ("Volume", "Attachment")] == []


async def _is_exported(world: World, name: str) -> bool:
    return world.objects[name].exports == {"n1": 1}
