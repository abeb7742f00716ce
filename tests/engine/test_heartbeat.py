"""The sign of life of a volume host."""

import asyncio

import pytest
from fake_clock import FakeClock
from fake_kube import FakeKube

from cinderblock.core.api.builtin import Lease, Node
from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.kube.port import KubeUnavailable, ObjectNotFound
from cinderblock.operator.engine.heartbeat import Heartbeat


async def test_a_heartbeat_changes_its_lease_every_ten_seconds_and_survives_everything(caplog):
    kube, clock = FakeKube(), FakeClock()
    seen = []
    heart = Heartbeat(kube, clock, namespace="ns", host="n1", identity="pod-1")
    task = asyncio.create_task(heart.run())
    try:
        for _ in range(3):
            await clock.advance(10)
            found = await kube.get(Lease, "cinderblock-host-n1", "ns")
            seen.append(found.spec.renew_time)
        assert len(set(seen)) == 3
        assert found.spec.holder_identity == "pod-1"
        await kube.update(found, found.with_(spec=found.spec.with_(holder_identity="predecessor")))
        await clock.advance(15)
        found = await kube.get(Lease, "cinderblock-host-n1", "ns")
        assert found.spec.holder_identity == "pod-1"
        await kube.delete(found)
        await clock.advance(15)
        assert (await kube.get(Lease, "cinderblock-host-n1", "ns")).spec.holder_identity == "pod-1"

        def refuse(verb, kind, name):
            raise KubeUnavailable("down")

        kube.before_write = refuse
        await clock.advance(30)
        assert "down" in caplog.text
        before = heart.beat_at
        kube.before_write = lambda verb, kind, name: None
        await clock.advance(3)
        assert heart.beat_at > before
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_lease_of_a_node_goes_with_its_node():
    """Nodes come and go under ever new names; a Lease of each would stay for ever."""
    kube, clock = FakeKube(), FakeClock()
    heart = Heartbeat(kube, clock, namespace="ns", host="n1", identity="pod-1", node="n1")
    with pytest.raises(ObjectNotFound):
        await heart.beat()  # no Node: nobody is alive there
    node = await kube.create(Node(metadata=ObjectMeta(name="n1")))
    await heart.beat()
    [owner] = (await kube.get(Lease, "cinderblock-host-n1", "ns")).metadata.owner_references
    assert (owner.api_version, owner.kind, owner.name, owner.uid) == ("v1", "Node", "n1", node.uid)
    # the Node is made anew: the garbage collector takes the Lease away, and the next beat makes its successor
    await kube.delete(node)
    again = await kube.create(Node(metadata=ObjectMeta(name="n1")))
    await kube.delete(await kube.get(Lease, "cinderblock-host-n1", "ns"))
    await clock.advance(10)
    await heart.beat()
    [owner] = (await kube.get(Lease, "cinderblock-host-n1", "ns")).metadata.owner_references
    assert owner.uid == again.uid
