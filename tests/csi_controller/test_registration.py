"""Registration with the kubelet, played by a gRPC client as the kubelet is one."""

import asyncio
import socket
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry

from cinderblock.csi.interceptors import Edge, RpcMetrics
from cinderblock.csi.pb import registration_pb2, registration_pb2_grpc
from cinderblock.csi.registration import SOCKET_NAME, RegistrationFailed, registration

ENDPOINT = Path("/var/lib/kubelet/plugins/csi.cinderblock.io/csi.sock")


def edge() -> Edge:
    return Edge(RpcMetrics(CollectorRegistry()))


async def test_the_kubelet_learns_who_we_are_and_tells_how_it_went(tmp_path: Path) -> None:
    path = tmp_path / SOCKET_NAME
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    async with (
        registration(tmp_path, ENDPOINT, edge()) as service,
        grpc.aio.insecure_channel(f"unix:{path}") as channel,
    ):
        kubelet = registration_pb2_grpc.RegistrationStub(channel)
        info = await kubelet.GetInfo(registration_pb2.InfoRequest())
        assert (info.type, info.name) == ("CSIPlugin", "csi.cinderblock.io")
        assert info.endpoint == str(ENDPOINT)
        assert list(info.supported_versions) == ["1.0.0"]
        waiting = asyncio.create_task(service.until_refused())
        await kubelet.NotifyRegistrationStatus(registration_pb2.RegistrationStatus(plugin_registered=True))
        assert service.registered
        assert not waiting.done()
        await kubelet.NotifyRegistrationStatus(
            registration_pb2.RegistrationStatus(
                plugin_registered=False, error="another driver is there" + "!" * 500
            )
        )
        with pytest.raises(RegistrationFailed, match="another driver is there"):
            await waiting
        assert not service.registered
    assert list(tmp_path.iterdir()) == []


async def test_a_stop_without_any_kubelet_leaves_nothing(tmp_path: Path) -> None:
    async with registration(tmp_path, ENDPOINT, edge()):
        assert (tmp_path / SOCKET_NAME).is_socket()
    assert list(tmp_path.iterdir()) == []
