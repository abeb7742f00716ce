"""The CSI controller against a real API server: CRD validation, selectors, preconditions and watches are its own."""

import asyncio
import contextlib
import json
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from csi_rig import Code, block, create_request, eventually, mount, refused
from fake_operator import FakeOperator
from prometheus_client import CollectorRegistry

from cinderblock.core.api.attachment import Attachment
from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.api.node import StorageNode
from cinderblock.core.api.volume import Volume
from cinderblock.core.clock import SystemClock
from cinderblock.core.errors import GrpcCode
from cinderblock.core.kube.adapter import connect
from cinderblock.core.units import GIB
from cinderblock.csi.controller_main import controller
from cinderblock.csi.pb import csi_pb2, csi_pb2_grpc

if TYPE_CHECKING:
    from tests.conftest import ApiServer

pytestmark = pytest.mark.apiserver


class Real:
    def __init__(self, kube: Any, stub: Any, operator: FakeOperator, namespace: str, node: str) -> None:
        self.kube, self.stub, self.operator = kube, stub, operator
        self.namespace, self.node = namespace, node


@pytest.fixture
async def real(apiserver: "ApiServer", tmp_path: Path) -> AsyncIterator[Real]:
    await asyncio.to_thread(apiserver.apply_crds)
    run = f"csi-{uuid.uuid4().hex[:10]}"
    await asyncio.to_thread(apiserver.kubectl, "create", "namespace", run)
    path = tmp_path / "csi.sock"
    async with contextlib.AsyncExitStack() as stack:
        kube = await stack.enter_async_context(connect(apiserver.kubeconfig))
        await kube.create(StorageNode(metadata=ObjectMeta(name=run)))
        fake = FakeOperator(kube, namespace=run)
        operator = asyncio.create_task(fake.run())
        gateway = await stack.enter_async_context(
            controller(kube, path, run, CollectorRegistry(), SystemClock())
        )
        await eventually(lambda: gateway.caches.synced, 20)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"unix:{path}"))
        yield Real(kube, csi_pb2_grpc.ControllerStub(channel), fake, run, run)
        operator.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await operator
        await kube.delete(await kube.get(StorageNode, run))


async def test_the_life_of_a_volume(real: Real, apiserver: "ApiServer") -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data", "namespace": real.namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    arguments = ("create", "-f", "-", "-o", "jsonpath={.metadata.uid}")
    uid = await asyncio.to_thread(apiserver.kubectl, *arguments, stdin=json.dumps(claim))
    request = create_request(
        f"pvc-{uid}",
        parameters={
            "volumeType": "gold",
            "csi.storage.k8s.io/pvc/name": "data",
            "csi.storage.k8s.io/pvc/namespace": real.namespace,
        },
        volume_capabilities=[mount("SINGLE_NODE_MULTI_WRITER", "xfs")],
    )
    answers = await asyncio.gather(*(real.stub.CreateVolume(request) for _ in range(5)))
    handle = answers[0].volume.volume_id
    assert {a.volume.volume_id for a in answers} == {handle}
    volume = await real.kube.get(Volume, f"pvc-{uid}", real.namespace)
    assert volume.spec.claim_ref is not None
    assert volume.spec.claim_ref.uid == uid

    publish = csi_pb2.ControllerPublishVolumeRequest(
        volume_id=handle,
        node_id=real.node,
        volume_capability=mount("SINGLE_NODE_MULTI_WRITER", "xfs"),
    )
    published = await asyncio.gather(*(real.stub.ControllerPublishVolume(publish) for _ in range(5)))
    name = published[0].publish_context["attachment"]
    assert (await real.kube.get(Attachment, name, real.namespace)).status.admitted
    code, _ = await refused(real.stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=handle)))
    assert code is Code.FAILED_PRECONDITION

    grown = await real.stub.ControllerExpandVolume(
        csi_pb2.ControllerExpandVolumeRequest(
            volume_id=handle, capacity_range=csi_pb2.CapacityRange(required_bytes=2 * GIB)
        )
    )
    assert grown.capacity_bytes == 2 * GIB

    for _ in range(2):
        await real.stub.ControllerUnpublishVolume(
            csi_pb2.ControllerUnpublishVolumeRequest(volume_id=handle, node_id="")
        )
        await real.stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=handle))
    assert (await real.kube.list(Volume, namespace=real.namespace)).items == []
    assert (await real.kube.list(Attachment, namespace=real.namespace)).items == []
    assert (real.operator.created, real.operator.deleted) == ([handle], [handle])


async def test_a_final_error_leaves_nothing(real: Real) -> None:
    real.operator.create_error = (GrpcCode.INTERNAL, "broken disk")
    code, _ = await refused(real.stub.CreateVolume(create_request("Ünï/🙂", volume_capabilities=[block()])))
    assert code is Code.INTERNAL
    assert (await real.kube.list(Volume, namespace=real.namespace)).items == []
    real.operator.create_error = None
    made = await real.stub.CreateVolume(create_request("Ünï/🙂", volume_capabilities=[block()]))
    await real.stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=made.volume.volume_id))


async def test_ids_that_never_were(real: Real) -> None:
    for volume_id in ("fake-vol-id", "a,b=c"):
        await real.stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=volume_id))
        publish = csi_pb2.ControllerPublishVolumeRequest(
            volume_id=volume_id, node_id=real.node, volume_capability=mount()
        )
        assert (await refused(real.stub.ControllerPublishVolume(publish)))[0] is Code.NOT_FOUND


async def test_the_process_serves_and_stops_cleanly(apiserver: "ApiServer", tmp_path: Path) -> None:
    await asyncio.to_thread(apiserver.apply_crds)
    path = tmp_path / "csi.sock"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from cinderblock.cli.main import main; main()", "csi", "controller"),
        f"--endpoint=unix://{path}",
        f"--kubeconfig={apiserver.kubeconfig}",
        stderr=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        await eventually(path.is_socket, 30)
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            identity = csi_pb2_grpc.IdentityStub(channel)
            async with asyncio.timeout(20):
                while not (await identity.Probe(csi_pb2.ProbeRequest(), wait_for_ready=True)).ready.value:
                    await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            assert await process.wait() == 0
        assert list(tmp_path.iterdir()) == []
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
