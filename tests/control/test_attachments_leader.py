"""The leader's part of Attachments: the label, fences, and finalizers that nobody else can remove."""

from __future__ import annotations

from control_bench import RELEASE, Bench

from cinderblock.core.api import Attachment, StorageNode, Volume
from cinderblock.core.api.attachment import ADMITTED
from cinderblock.core.api.builtin import Node
from cinderblock.core.api.meta import ObjectMeta, find_condition
from cinderblock.core.api.volume import Use, VolumeAttachmentEntry
from cinderblock.core.kube.port import ObjectNotFound
from cinderblock.core.names import FINALIZER_PROTECT, LABEL_HOST


async def get(bench: Bench, name: str = "a", namespace: str = "ns") -> Attachment | None:
    try:
        return await bench.kube.get(Attachment, name, namespace)
    except ObjectNotFound:
        return None


async def placed(bench: Bench, node: str | None = "n1") -> None:
    await bench.add_backend()
    await bench.add_type()
    for name in ("n1", "n2"):
        await bench.add_node(name)
    await bench.add_pool("p", node=node)
    await bench.add_volume("v")
    await bench.settle()
    await bench.make("v")


async def admit(bench: Bench) -> None:
    """What the host writes when it takes the Attachment in."""
    attachment, volume = await get(bench), await bench.volume("v")
    entry = VolumeAttachmentEntry(
        attachment_uid=attachment.uid, attachment="ns/a", node="n2", generation=1, use=Use.BARE
    )
    status = volume.status.with_(attachments=(entry,), attach_generation=1)
    await bench.kube.update_status(volume, volume.with_(status=status))
    status = attachment.status.with_(admitted=True, generation=1)
    await bench.kube.update_status(attachment, attachment.with_(status=status))
    await bench.settle()


async def test_the_label_follows_the_allocation():
    async with Bench() as bench:
        await placed(bench)
        await bench.add_attachment("a", "v", "n2")
        await bench.settle()
        found = await get(bench)
        assert found.metadata.labels[LABEL_HOST] == "n1"
        stale = found.with_(metadata=found.metadata.with_(labels={LABEL_HOST: "n9", "mine": "x"}))
        await bench.kube.update(found, stale)
        await bench.settle()
        assert (await get(bench)).metadata.labels == {LABEL_HOST: "n1", "mine": "x"}


async def test_the_label_comes_with_the_grant():
    async with Bench() as bench:
        await bench.add_backend()
        await bench.add_type()
        await bench.add_volume("v")
        await bench.add_attachment("a", "v", "n2")
        await bench.settle()
        assert LABEL_HOST not in (await get(bench)).metadata.labels
        await bench.add_pool("p")
        await bench.wait(0.2)
        assert (await get(bench)).metadata.labels[LABEL_HOST] == "operator"


async def test_other_namespaces_are_for_the_release_namespace():
    async with Bench() as bench:
        await placed(bench)
        await bench.add_attachment("a", "v", "n2", namespace="tenant", volume_namespace="ns")
        await bench.add_attachment("a", "v", "n2", namespace=RELEASE, volume_namespace="ns")
        await bench.settle()
        refused, served = await get(bench, namespace="tenant"), await get(bench, namespace=RELEASE)
        assert find_condition(refused.status.conditions, ADMITTED).reason == "InvalidRequest"
        assert LABEL_HOST not in refused.metadata.labels
        assert served.metadata.labels[LABEL_HOST] == "n1"
        await bench.kube.delete(refused)
        await bench.settle()
        assert await get(bench, namespace="tenant") is None


async def test_a_fence_when_the_node_is_gone():
    async with Bench() as bench:
        await placed(bench)
        await bench.add_attachment("a", "v", "n2")
        await bench.settle()
        await admit(bench)
        assert (await get(bench)).status.fence is None
        await bench.kube.delete(await bench.kube.get(Node, "n2"))
        await bench.settle()
        fence = (await get(bench)).status.fence
        assert fence.generation == 1
        assert "n2" in fence.reason
        # the host has to let go; the leader only orders
        await bench.kube.delete(await get(bench))
        await bench.settle()
        assert (await get(bench)).has_finalizer(FINALIZER_PROTECT)


async def test_no_fence_on_an_absence_in_the_cache():
    async with Bench() as bench:
        await placed(bench)
        await bench.add_attachment("a", "v", "n2")
        await bench.settle()
        await admit(bench)
        bench.leader.stores.nodes.remove(await bench.kube.get(Node, "n2"))
        await bench.settle()
        assert (await get(bench)).status.fence is None


async def facts(bench: Bench, node_uid: str) -> None:
    made = await bench.kube.create(StorageNode(metadata=ObjectMeta(name="n2")))
    await bench.kube.update_status(made, made.with_(status=made.status.with_(node_uid=node_uid)))


async def test_a_fence_when_the_node_is_another_one():
    async with Bench() as bench:
        await placed(bench)
        await facts(bench, (await bench.kube.get(Node, "n2")).uid)
        await bench.add_attachment("a", "v", "n2")
        await bench.settle()
        await admit(bench)
        bench.kube.silent = True  # the leader sees the new node only
        await bench.kube.delete(await bench.kube.get(Node, "n2"))
        bench.kube.silent = False
        await bench.add_node("n2")
        await bench.settle()
        assert "another one" in (await get(bench)).status.fence.reason


async def test_no_fence_for_an_attachment_of_the_new_node():
    async with Bench() as bench:
        await placed(bench)
        await facts(bench, "uid-of-the-old-node")
        node = await bench.kube.get(Node, "n2")
        key = ("Node", "", "n2")
        body = bench.kube._objects[key]
        old = {**body["metadata"], "creationTimestamp": "2001-01-01T00:00:00Z"}
        bench.kube._commit(key, {**body, "metadata": old})
        assert (await bench.kube.get(Node, "n2")).uid == node.uid
        await bench.add_attachment("a", "v", "n2")
        await bench.settle()
        await admit(bench)
        assert (await get(bench)).status.fence is None


async def test_the_finalizer_goes_where_the_volume_was_never_placed():
    async with Bench() as bench:
        await bench.add_volume("v")
        await bench.add_attachment("a", "v", "n2")
        await bench.settle()
        await bench.kube.delete(await get(bench))
        await bench.settle()
        assert await get(bench) is None


async def test_the_finalizer_goes_where_the_volume_is_gone():
    async with Bench() as bench:
        await bench.add_attachment("a", "nothing", "n2")
        await bench.settle()
        await bench.kube.delete(await get(bench))
        await bench.settle()
        assert await get(bench) is None


async def test_a_volume_that_goes_later_lets_its_attachments_go():
    async with Bench() as bench:
        await placed(bench)
        await bench.add_attachment("a", "v", "n2")
        await bench.settle()
        await bench.kube.delete(await get(bench))
        await bench.settle()
        assert await get(bench) is not None  # the host's turn
        volume = await bench.volume("v")
        await bench.kube.delete(volume)
        volume = await bench.volume("v")
        await bench.kube.update(volume, volume.without_finalizer(FINALIZER_PROTECT))
        await bench.settle()
        assert await get(bench) is None


async def test_the_finalizer_and_the_entry_go_where_the_host_is_gone():
    async with Bench() as bench:
        await placed(bench)
        await bench.add_attachment("a", "v", "n2")
        await bench.settle()
        await admit(bench)
        await bench.kube.delete(await get(bench))
        await bench.settle()
        assert await get(bench) is not None
        await bench.kube.delete(await bench.kube.get(Node, "n1"))
        await bench.wait(1)
        assert await get(bench) is None
        assert (await bench.kube.get(Volume, "v", "ns")).status.attachments == ()
