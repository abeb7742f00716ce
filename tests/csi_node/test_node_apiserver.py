"""The node against a real API server: what it writes is accepted and what it watches is selectable."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from node_harness import NodeHarness, harness, until
from node_host import NAMESPACE, NODE
from node_pool import loops_below

from cinderblock.core.api.builtin import Node
from cinderblock.core.api.node import StorageNode
from cinderblock.core.api.volume import Use
from cinderblock.core.kube.adapter import connect

_NAMESPACE = f"{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}"
pytestmark = [pytest.mark.root, pytest.mark.apiserver, pytest.mark.timeout(180)]


@pytest.fixture
async def node(apiserver, tmp_path: Path) -> AsyncIterator[NodeHarness]:
    apiserver.apply_crds()
    apiserver.kubectl("apply", "-f", "-", stdin=_NAMESPACE)
    async with connect(apiserver.kubeconfig) as kube:
        try:
            async with harness(tmp_path, kube) as made:
                yield made
        finally:
            apiserver.kubectl("delete", "storagenode", NODE, "--ignore-not-found")
            apiserver.kubectl("delete", "node", NODE, "--ignore-not-found")


async def test_attach_stage_publish_and_back(node):
    handle = await node.host.volume()
    await node.host.attach(handle)
    await node.stage(handle)
    await node.publish(handle)
    Path(node.target(), "file").write_text("data")
    await node.restart()
    await node.stage(handle)
    await node.publish(handle)
    assert Path(node.target(), "file").read_text() == "data"
    attachment = await node.host.attachment(handle)
    assert attachment.status.device == str(node.root / "links" / attachment.uid)
    assert attachment.status.device_bytes == attachment.status.connection.size_bytes
    assert attachment.status.formatted.type == "ext4"

    async def reported() -> bool:
        facts = (await node.kube.list(StorageNode)).items
        return any(f.name == NODE and f.status.protocols == ("Local",) for f in facts)

    await until(reported)
    facts, owner = await node.kube.get(StorageNode, NODE), await node.kube.get(Node, NODE)
    assert [o.uid for o in facts.metadata.owner_references] == [owner.uid]
    assert facts.status.node_uid == owner.uid
    await node.unpublish(handle)
    await node.unstage(handle)
    await node.released(handle)
    await until(lambda: loops_below(node.root) == [])


async def test_an_image_that_is_another_volume_shows_as_error_and_event(node, apiserver):
    handle = await node.host.volume("wrong")
    node.pool.image("another-1", name=f"{handle}-1.img")
    await node.host.attach(handle, volume="wrong", use=Use.BARE)

    async def told() -> bool:
        return (await node.host.attachment(handle)).status.node_error is not None

    await until(told)
    events = apiserver.kubectl("get", "events", "-n", NAMESPACE, "-o", "jsonpath={.items[*].reason}")
    assert "WrongDevice" in events
    await node.released(handle)
    assert loops_below(node.root) == []
