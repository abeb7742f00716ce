"""What may not leak and what may not listen, on the running processes with the log level at debug."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator

import grpc
import pytest
from chart_world import NAMESPACE, PODS, VOLUMES, ChartWorld, claim, pod
from tools.shell import run

from cinderblock.csi.pb import csi_pb2, csi_pb2_grpc

pytestmark = [pytest.mark.cluster, pytest.mark.root, pytest.mark.timeout(600)]

METRICS_AND_HEALTH = {"controller": {9801, 9802, 9811, 9812, 9813}, "host": {9803}, "node": {9804}}
PROCESS = {"controller": ("csi", "controller"), "host": ("operator", "--role=host"), "node": ("csi", "node")}
_CLASS = "with-secrets"
_RPC_SECONDS = 30.0


@pytest.fixture(scope="module", autouse=True)
def at_debug(world: ChartWorld) -> Iterator[None]:
    world.install("logLevel=debug")
    yield
    world.clear()
    world.kube.kubectl("delete", "storageclass", _CLASS, "--ignore-not-found")
    world.kube.kubectl("delete", "secret", "-n", "default", "canary", "--ignore-not-found")


def test_nothing_listens_but_metrics_and_health(world: ChartWorld) -> None:
    for component, expected in METRICS_AND_HEALTH.items():
        pid = world.process(component, *PROCESS[component])
        rows = run(["nsenter", "-t", str(pid), "-n", "ss", "-Hltnu"], timeout=10).splitlines()
        listening = {int(row.split()[4].rpartition(":")[2]) for row in rows}
        assert listening <= expected, f"{component} listens on {listening - expected}"
        assert any(port in listening for port in expected), rows


def test_metrics_and_health_answer_and_nothing_else_does(world: ChartWorld) -> None:
    for name in world.pod_names("node"):
        root = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}:9804/proxy"
        assert "cinderblock" in world.kube.kubectl("get", "--raw", f"{root}/metrics")
        assert "NotFound" in world.refused("get", "--raw", f"{root}/debug/pprof") or "404" in world.refused(
            "get", "--raw", f"{root}/debug/pprof"
        )


def logs(world: ChartWorld) -> dict[str, str]:
    return {
        name: world.kube.kubectl("logs", "-n", NAMESPACE, name, "--all-containers", "--tail=-1")
        for component in PODS
        for name in world.pod_names(component)
    }


def nowhere(world: ChartWorld, canary: str, said: dict[str, str]) -> None:
    for name, text in said.items():
        assert canary not in text, f"{name} logged a secret: {_around(text, canary)}"
    kinds = (
        "volumes.cinderblock.io,attachments.cinderblock.io,storagenodes.cinderblock.io,pools.cinderblock.io"
    )
    stored = world.kube.kubectl("get", f"{kinds},events,pv,volumeattachments", "-A", "-o", "json")
    assert canary not in stored, _around(stored, canary)


def _around(text: str, canary: str) -> str:
    at = text.index(canary)
    return text[max(0, at - 300) : at].replace(canary, "***")


def test_secrets_that_the_kubelet_sends_to_the_node_stay_there(world: ChartWorld) -> None:
    canary = f"canary{secrets.token_hex(8)}"
    reference = {
        f"csi.storage.k8s.io/{step}-secret-{part}": value
        for step in ("node-stage", "node-publish", "node-expand")
        for part, value in (("name", "canary"), ("namespace", "default"))
    }
    world.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "canary", "namespace": "default"},
            "stringData": {"password": canary},
        },
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": _CLASS},
            "provisioner": "csi.cinderblock.io",
            "volumeBindingMode": "WaitForFirstConsumer",
            "parameters": reference,
        },
        claim("canary", _CLASS),
        pod("canary", "canary", "while :; do sleep 1; done"),
    )
    world.kube.kubectl("wait", "--for=condition=Ready", "pod/canary", "--timeout=120s", timeout=130)
    world.kube.kubectl("delete", "pod", "canary", "--timeout=60s", timeout=70)
    said = logs(world)
    assert any("NodeStageVolume" in text for text in said.values()), "debug shows the calls"
    nowhere(world, canary, said)


def test_secrets_of_controller_calls_stay_in_the_call(world: ChartWorld) -> None:
    """The real process behind its socket, as a sidecar calls it; calls that fail included."""
    canary = f"canary{secrets.token_hex(8)}"
    hidden = {"password": canary, canary: "x"}
    socket = f"/proc/{world.process('controller', 'csi', 'controller')}/root/csi/csi.sock"
    capability = csi_pb2.VolumeCapability(
        mount=csi_pb2.VolumeCapability.MountVolume(fs_type="ext4"),
        access_mode=csi_pb2.VolumeCapability.AccessMode(
            mode=csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_WRITER
        ),
    )
    codes = []
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        controller = csi_pb2_grpc.ControllerStub(channel)
        name = f"pvc-{secrets.token_hex(6)}"
        made = controller.CreateVolume(
            csi_pb2.CreateVolumeRequest(
                name=name,
                capacity_range=csi_pb2.CapacityRange(required_bytes=64 << 20),
                volume_capabilities=[capability],
                secrets=hidden,
            ),
            timeout=_RPC_SECONDS,
        )
        volume_id = made.volume.volume_id
        calls = [
            (
                controller.CreateVolume,
                csi_pb2.CreateVolumeRequest(
                    name=f"{name}-no",
                    volume_capabilities=[capability],
                    parameters={"volumeType": "no-such-type"},
                    secrets=hidden,
                ),
            ),
            (
                controller.ControllerPublishVolume,
                csi_pb2.ControllerPublishVolumeRequest(
                    volume_id=volume_id, node_id="no-such-node", volume_capability=capability, secrets=hidden
                ),
            ),
            (
                controller.ControllerExpandVolume,
                csi_pb2.ControllerExpandVolumeRequest(
                    volume_id=volume_id,
                    capacity_range=csi_pb2.CapacityRange(required_bytes=1 << 60),
                    secrets=hidden,
                ),
            ),
            (
                controller.ValidateVolumeCapabilities,
                csi_pb2.ValidateVolumeCapabilitiesRequest(
                    volume_id="no-such-volume", volume_capabilities=[capability], secrets=hidden
                ),
            ),
        ]
        for method, request in calls:
            with pytest.raises(grpc.RpcError) as failed:
                method(request, timeout=5.0)
            codes.append(failed.value.code())
            assert canary not in str(failed.value.details())
        controller.DeleteVolume(
            csi_pb2.DeleteVolumeRequest(volume_id=volume_id, secrets=hidden), timeout=_RPC_SECONDS
        )
    # it waits for its type, and no claim stands behind it whose end would be its own
    world.kube.kubectl("delete", VOLUMES, f"{name}-no", "-n", NAMESPACE, "--timeout=60s", timeout=70)
    said = logs(world)
    text = "".join(said.values())
    for method in ("CreateVolume", "ControllerPublishVolume", "ControllerExpandVolume", "DeleteVolume"):
        assert method in text, f"{method} left no trace at debug: {json.dumps([str(c) for c in codes])}"
    nowhere(world, canary, said)
