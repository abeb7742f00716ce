"""kill -9 of each process on the way of one volume; a pod that writes notices nothing."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from node_harness import capability
from node_pool import loops_below, mounts_below
from real_stack import NODE, RealStack, real_stack, wait_for

from cinderblock.csi.pb import csi_pb2, csi_pb2_grpc

pytestmark = [pytest.mark.root, pytest.mark.apiserver, pytest.mark.timeout(300)]
SIZE = 64 * 1024**2


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Iterator[RealStack]:
    with real_stack(tmp_path_factory.mktemp("kills")) as stack:
        yield stack


def call(socket: Path, stub: type, method: str, request, *, seconds: float = 60):
    """As a caller of Kubernetes does: a new connection, short deadlines, again until it works."""

    def once():
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            try:
                return getattr(stub(channel), method)(request, timeout=3)
            except grpc.RpcError as error:
                assert error.code() in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.ABORTED,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                ), error.details()
                return None

    return wait_for(once, method, seconds=seconds)


class Client:
    def __init__(self, stack: RealStack) -> None:
        self.stack = stack
        self.capability = capability("ext4")
        self.staging = stack.root / "work" / "staging"
        self.target = stack.root / "work" / "target"
        self.staging.mkdir(exist_ok=True)

    def controller(self, method: str, request):
        return call(self.stack.controller_socket, csi_pb2_grpc.ControllerStub, method, request)

    def node(self, method: str, request):
        return call(self.stack.node_socket, csi_pb2_grpc.NodeStub, method, request)

    def create(self, name: str) -> str:
        request = csi_pb2.CreateVolumeRequest(
            name=name,
            capacity_range=csi_pb2.CapacityRange(required_bytes=SIZE),
            volume_capabilities=[self.capability],
        )
        return self.controller("CreateVolume", request).volume.volume_id

    def attach(self, volume_id: str) -> None:
        self.controller(
            "ControllerPublishVolume",
            csi_pb2.ControllerPublishVolumeRequest(
                volume_id=volume_id, node_id=NODE, volume_capability=self.capability
            ),
        )

    def stage(self, volume_id: str) -> None:
        self.node(
            "NodeStageVolume",
            csi_pb2.NodeStageVolumeRequest(
                volume_id=volume_id,
                staging_target_path=str(self.staging),
                volume_capability=self.capability,
            ),
        )

    def publish(self, volume_id: str) -> None:
        self.node(
            "NodePublishVolume",
            csi_pb2.NodePublishVolumeRequest(
                volume_id=volume_id,
                staging_target_path=str(self.staging),
                target_path=str(self.target),
                volume_capability=self.capability,
            ),
        )

    def take_down(self, volume_id: str) -> None:
        self.node(
            "NodeUnpublishVolume",
            csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(self.target)),
        )
        self.node(
            "NodeUnstageVolume",
            csi_pb2.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path=str(self.staging)),
        )
        self.controller(
            "ControllerUnpublishVolume",
            csi_pb2.ControllerUnpublishVolumeRequest(volume_id=volume_id, node_id=NODE),
        )
        self.controller("DeleteVolume", csi_pb2.DeleteVolumeRequest(volume_id=volume_id))


def nothing_left(stack: RealStack) -> bool:
    volumes = json.loads(stack.plane.kubectl("get", "volumes.cinderblock.io", "-A", "-o", "json"))["items"]
    below = stack.root / "pools"
    return volumes == [] and loops_below(below) == [] and mounts_below(stack.root / "work") == []


def images(stack: RealStack) -> list[Path]:
    """Whatever in the pool is as large as a volume."""
    return [p for p in (stack.root / "pools").rglob("*") if p.is_file() and p.stat().st_size >= SIZE]


def during(stack: RealStack, name: str, delay: float, work: Callable[[], object]) -> None:
    """kill -9 of one process that long after the work began, and a new one at once."""

    def strike() -> None:
        stack.kill(name)
        stack.start(name)

    timer = threading.Timer(delay, strike)
    timer.start()
    try:
        work()
    finally:
        timer.join()


@pytest.mark.parametrize("name", ["node", "controller", "host", "leader"])
def test_a_kill_at_every_step_converges_and_a_writer_notices_nothing(stack, name):
    client = Client(stack)
    volume = ""

    def create() -> None:
        nonlocal volume
        volume = client.create(f"kill-{name}")

    during(stack, name, 0.05, create)
    assert len(images(stack)) == 1
    during(stack, name, 0.05, lambda: client.attach(volume))
    during(stack, name, 0.05, lambda: client.stage(volume))
    client.publish(volume)
    file = client.target / "journal"
    with file.open("wb", buffering=0) as writer:
        for turn in range(20):
            if turn == 5:
                stack.kill(name)
            writer.write(turn.to_bytes(4096, "little"))
            os.fsync(writer.fileno())
        stack.start(name)
    client.publish(volume)  # to a process that knows nothing
    read = file.read_bytes()
    assert [int.from_bytes(read[i : i + 4096], "little") for i in range(0, len(read), 4096)] == list(
        range(20)
    )
    during(stack, name, 0.05, lambda: client.take_down(volume))
    wait_for(lambda: nothing_left(stack), "an empty node")
    assert images(stack) == []
