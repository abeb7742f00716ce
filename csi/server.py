"""A gRPC server on a unix socket, as the container orchestrator expects it (CSI rules 9 and 11).

Services are plain objects: a coroutine method `create_volume(request, call)` serves the RPC CreateVolume. RPCs
without a method answer UNIMPLEMENTED. Every RPC goes through csi/interceptors.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import re
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from cinderblock.core.errors import InvalidRequest, NotSupported, PreconditionFailed
from cinderblock.csi.interceptors import Call, Edge

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_STOP_GRACE = 3.0
_SOCKET_PATH_MAX = 107  # sun_path without its final zero


@dataclass(frozen=True)
class Service:
    """A service of a .proto file, such as csi_pb2.DESCRIPTOR.services_by_name["Node"], and who serves it."""

    descriptor: ServiceDescriptor
    servicer: object
    # RPCs that check the size limits themselves, because something must happen before they may answer an error
    checks_limits: frozenset[str] = frozenset()


def socket_path(endpoint: str) -> Path:
    """The socket of an endpoint: `unix:///csi/csi.sock`, `unix:/csi/csi.sock` or a plain absolute path.

    Errors: InvalidRequest.
    """
    text = (
        endpoint.removeprefix("unix://") if endpoint.startswith("unix://") else endpoint.removeprefix("unix:")
    )
    path = Path(text)
    if not path.is_absolute() or path.suffix != ".sock" or len(os.fsencode(path)) > _SOCKET_PATH_MAX:
        raise InvalidRequest(
            f"the CSI endpoint must be an absolute path that ends in .sock (at most {_SOCKET_PATH_MAX} bytes),"
            f" such as unix:///csi/csi.sock: {endpoint!r}"
        )
    return path


@contextlib.asynccontextmanager
async def serving(path: Path, services: Sequence[Service], edge: Edge) -> AsyncIterator[None]:
    """Serve on that socket as long as the context lives; running calls get a few seconds at the end.

    A socket that a dead process left behind is removed, one that somebody serves is refused
    (PreconditionFailed). The socket is for our own user only and gone afterwards.
    """
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    for service in services:
        server.add_generic_rpc_handlers((_handlers(service, edge),))
    path.parent.mkdir(mode=0o700, exist_ok=True)  # below the kubelet's plugins, which only the kubelet makes
    await asyncio.to_thread(clear_stale, path)
    before = os.umask(0o177)
    try:
        bound = server.add_insecure_port(f"unix:{path}")
    finally:
        os.umask(before)
    if not bound:
        raise PreconditionFailed(f"cannot listen on {path}")
    try:
        await server.start()
        inode = _inode(path)
        try:
            yield
        finally:
            await server.stop(_STOP_GRACE)
            _unlink_own(path, inode)
    finally:
        await server.stop(0)


def clear_stale(path: Path) -> None:
    """Remove a socket that nobody listens on. Errors: PreconditionFailed when it is alive or no socket."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise PreconditionFailed(f"{path} is in the way and is not a socket: remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise PreconditionFailed(f"cannot tell whether {path} is in use: {error}") from error
    raise PreconditionFailed(f"another process serves {path}: only one may")


def _unlink_own(path: Path, inode: int | None) -> None:
    """Remove the socket unless a successor has put its own there by now."""
    if inode is not None and _inode(path) == inode:
        path.unlink(missing_ok=True)


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return None


def _handlers(service: Service, edge: Edge) -> grpc.GenericRpcHandler:
    """The table of one service; a public coroutine method that is no RPC is a mistake (ValueError)."""
    methods = {_CAMEL.sub("_", m.name).lower(): m for m in service.descriptor.methods}
    for name, _ in inspect.getmembers(service.servicer, inspect.iscoroutinefunction):
        if not name.startswith("_") and name not in methods:
            raise ValueError(
                f"{type(service.servicer).__name__}.{name} is no RPC of {service.descriptor.full_name}"
            )
    return grpc.method_handlers_generic_handler(
        service.descriptor.full_name,
        {
            method.name: _handler(
                method, getattr(service.servicer, name, None), edge, method.name in service.checks_limits
            )
            for name, method in methods.items()
            if not method.server_streaming
        },
    )


def _handler(
    method: MethodDescriptor,
    behavior: Callable[[Any, Call], Awaitable[Message]] | None,
    edge: Edge,
    checks_limits: bool,
) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(
        edge.wrap(method, behavior or _unimplemented(method.name), checks_limits=checks_limits),
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )


def _unimplemented(name: str) -> Callable[[Any, Call], Awaitable[Message]]:
    async def answer(request: Message, call: Call) -> Message:
        raise NotSupported(f"{name} is not supported by this driver")

    return answer
