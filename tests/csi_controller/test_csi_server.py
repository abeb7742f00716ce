"""The socket and what surrounds every RPC, with a real gRPC client."""

import asyncio
import logging
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from cinderblock.core.errors import InvalidRequest, PreconditionFailed, StorageError, VolumeInUse
from cinderblock.csi.interceptors import Edge, RpcMetrics
from cinderblock.csi.pb import csi_pb2, csi_pb2_grpc
from cinderblock.csi.server import Service, serving, socket_path

SECRET = "canary-7f3a91"


class Servicer:
    """Answers ProbeRequest's by what the test put into `act`."""

    def __init__(self) -> None:
        self.act: Callable[[], Any] = lambda: None
        self.cancelled = False

    async def delete_volume(self, request: csi_pb2.DeleteVolumeRequest, call: Any) -> Any:
        try:
            result = self.act()
            if asyncio.iscoroutine(result):
                await result
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return csi_pb2.DeleteVolumeResponse()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def servicer() -> Servicer:
    return Servicer()


@pytest.fixture
async def stub(tmp_path: Path, servicer: Servicer, registry: CollectorRegistry) -> AsyncIterator[Any]:
    path = tmp_path / "csi.sock"
    service = Service(csi_pb2.DESCRIPTOR.services_by_name["Controller"], servicer)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving(path, [service], Edge(RpcMetrics(registry))))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"unix:{path}"))
        yield csi_pb2_grpc.ControllerStub(channel)


async def code_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


def _fail_with(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


async def test_the_socket_is_private_and_gone_after_a_stop(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    async with serving(path, [], Edge(RpcMetrics(CollectorRegistry()))):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == []


async def test_the_socket_gets_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "csi.cinderblock.io" / "csi.sock"
    for _ in range(2):
        async with serving(path, [], Edge(RpcMetrics(CollectorRegistry()))):
            assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_a_stale_socket_is_replaced_and_a_live_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    async with serving(path, [], Edge(RpcMetrics(CollectorRegistry()))):
        with pytest.raises(PreconditionFailed, match="another process serves"):
            async with serving(path, [], Edge(RpcMetrics(CollectorRegistry()))):
                pass
        assert path.is_socket()


async def test_a_file_in_the_way_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    path.write_text("precious")
    with pytest.raises(PreconditionFailed, match="not a socket"):
        async with serving(path, [], Edge(RpcMetrics(CollectorRegistry()))):
            pass
    assert path.read_text() == "precious"


@pytest.mark.parametrize("endpoint", ["unix:///csi/csi.sock", "unix:/csi/csi.sock", "/csi/csi.sock"])
def test_endpoints(endpoint: str) -> None:
    assert socket_path(endpoint) == Path("/csi/csi.sock")


@pytest.mark.parametrize(
    "endpoint", ["", "tcp://1.2.3.4:5", "csi.sock", "/csi/csi", "/" + "x" * 110 + ".sock"]
)
def test_bad_endpoints_say_what_is_wanted(endpoint: str) -> None:
    with pytest.raises(InvalidRequest, match=r"\.sock"):
        socket_path(endpoint)


async def test_an_rpc_that_nobody_serves_is_unimplemented(stub: Any) -> None:
    code, message = await code_of(stub.ListSnapshots(csi_pb2.ListSnapshotsRequest()))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert "ListSnapshots" in message


def test_a_method_that_is_no_rpc_is_a_mistake() -> None:
    class Typo:
        async def delet_volume(self, request: Any, call: Any) -> None: ...

    service = Service(csi_pb2.DESCRIPTOR.services_by_name["Controller"], Typo())

    async def serve() -> None:
        async with serving(Path("/nowhere/csi.sock"), [service], Edge(RpcMetrics(CollectorRegistry()))):
            pass

    with pytest.raises(ValueError, match="delet_volume"):
        asyncio.run(serve())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (VolumeInUse("in use by pod a"), grpc.StatusCode.FAILED_PRECONDITION),
        (InvalidRequest(""), grpc.StatusCode.INVALID_ARGUMENT),
        (StorageError("x"), grpc.StatusCode.ABORTED),
        (KeyError("x"), grpc.StatusCode.ABORTED),
        (NotImplementedError(), grpc.StatusCode.ABORTED),
    ],
)
async def test_errors_become_codes_and_never_unknown(
    stub: Any, servicer: Servicer, error: Exception, code: grpc.StatusCode
) -> None:
    servicer.act = _fail_with(error)
    got, message = await code_of(stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="v")))
    assert got is code
    assert message


async def test_an_unexpected_error_keeps_its_text_to_the_log(
    stub: Any, servicer: Servicer, caplog: pytest.LogCaptureFixture
) -> None:
    servicer.act = _fail_with(RuntimeError("inner detail"))
    _, message = await code_of(stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="v")))
    assert "inner detail" not in message
    assert "inner detail" in caplog.text


async def test_secrets_never_reach_the_log(stub: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    capability = csi_pb2.VolumeCapability(mount=csi_pb2.VolumeCapability.MountVolume(mount_flags=[SECRET]))
    await code_of(
        stub.ControllerPublishVolume(
            csi_pb2.ControllerPublishVolumeRequest(
                volume_id="visible-id",
                secrets={"password": SECRET},
                volume_context={"csi.storage.k8s.io/serviceAccount.tokens": SECRET, "plain": "seen"},
                volume_capability=capability,
            )
        )
    )
    assert "visible-id" in caplog.text
    assert "seen" in caplog.text
    assert SECRET not in caplog.text


async def test_the_handler_is_cancelled_with_its_caller(stub: Any, servicer: Servicer) -> None:
    servicer.act = lambda: asyncio.sleep(30)
    code, _ = await code_of(stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="v"), timeout=0.05))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(5):
        while not servicer.cancelled:
            await asyncio.sleep(0.01)


async def test_calls_are_measured(stub: Any, registry: CollectorRegistry) -> None:
    await stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="v"))
    labels = {
        "driver_name": "csi.cinderblock.io",
        "method_name": "/csi.v1.Controller/DeleteVolume",
        "grpc_status_code": "OK",
    }
    assert registry.get_sample_value("csi_plugin_operations_seconds_count", labels) == 1


@pytest.mark.parametrize(
    ("request_", "good"),
    [
        (csi_pb2.DeleteVolumeRequest(volume_id="v" * 128), True),
        (csi_pb2.DeleteVolumeRequest(volume_id="v" * 129), False),
        (csi_pb2.DeleteVolumeRequest(volume_id="é" * 64), True),
        (csi_pb2.DeleteVolumeRequest(volume_id="é" * 64 + "x"), False),
        (csi_pb2.DeleteVolumeRequest(volume_id="v", secrets={"k": "s" * 4095}), True),
        (csi_pb2.DeleteVolumeRequest(volume_id="v", secrets={"k": "s" * 4096}), False),
    ],
)
async def test_the_size_limits_of_csi(stub: Any, request_: Any, good: bool) -> None:
    if good:
        await stub.DeleteVolume(request_)
    else:
        code, message = await code_of(stub.DeleteVolume(request_))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "at most" in message
