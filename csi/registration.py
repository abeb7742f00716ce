"""Registers the driver with the kubelet, which no other process needs to do for us.

The kubelet watches a folder for sockets, asks each who it is and tells it how that went. The socket has one
fixed name: a second one for the same driver would be refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from cinderblock.core.errors import PreconditionFailed
from cinderblock.core.names import CSI_DRIVER
from cinderblock.csi.interceptors import Call, Edge
from cinderblock.csi.pb import registration_pb2
from cinderblock.csi.server import Service, serving

SOCKET_NAME = f"{CSI_DRIVER}-reg.sock"
_PLUGIN_TYPE = "CSIPlugin"
_VERSIONS = ("1.0.0",)

_log = logging.getLogger(__name__)


class RegistrationFailed(PreconditionFailed):
    """The kubelet refused the driver: the process must end, so that the failure is seen and tried again."""

    default_reason = "RegistrationFailed"


class Registration:
    """How it went so far; yielded by `registration`."""

    def __init__(self) -> None:
        self._outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.registered = False

    async def until_refused(self) -> None:
        """Never ends while things go well. Errors: RegistrationFailed."""
        await asyncio.shield(self._outcome)

    def tell(self, registered: bool, error: str) -> None:
        self.registered = registered
        if registered:
            _log.info("the kubelet registered the driver")
            return
        _log.error("the kubelet refused the driver: %s", error)
        if not self._outcome.done():
            self._outcome.set_exception(RegistrationFailed(f"the kubelet refused the driver: {error}"))

    def close(self) -> None:
        if not self._outcome.done():
            self._outcome.cancel()
        elif not self._outcome.cancelled():
            self._outcome.exception()  # told to whoever waited; no complaint when nobody did


class RegistrationService:
    """`endpoint` is the CSI socket as the kubelet sees it."""

    def __init__(self, endpoint: Path, state: Registration) -> None:
        self._endpoint = endpoint
        self._state = state

    async def get_info(
        self, request: registration_pb2.InfoRequest, call: Call
    ) -> registration_pb2.PluginInfo:
        return registration_pb2.PluginInfo(
            type=_PLUGIN_TYPE, name=CSI_DRIVER, endpoint=str(self._endpoint), supported_versions=_VERSIONS
        )

    async def notify_registration_status(
        self, request: registration_pb2.RegistrationStatus, call: Call
    ) -> registration_pb2.RegistrationStatusResponse:
        self._state.tell(request.plugin_registered, request.error)
        return registration_pb2.RegistrationStatusResponse()


@contextlib.asynccontextmanager
async def registration(folder: Path, endpoint: Path, edge: Edge) -> AsyncIterator[Registration]:
    """Offer the driver in the kubelet's folder as long as the context lives; afterwards the socket is gone,
    which unregisters it. Run `until_refused` beside the rest of the process.

    Start it only when the CSI socket serves: the kubelet calls NodeGetInfo at once.
    """
    state = Registration()
    descriptor = registration_pb2.DESCRIPTOR.services_by_name["Registration"]
    service = Service(descriptor, RegistrationService(endpoint, state))
    try:
        async with serving(folder / SOCKET_NAME, [service], edge):
            yield state
    finally:
        state.close()
