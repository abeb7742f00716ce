"""The Identity service: the same on the controller's and on the node's socket, since clients read either."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

from google.protobuf.wrappers_pb2 import BoolValue

from cinderblock.core.names import CSI_DRIVER
from cinderblock.csi.interceptors import Call
from cinderblock.csi.pb import csi_pb2

_SERVICES = ("CONTROLLER_SERVICE", "VOLUME_ACCESSIBILITY_CONSTRAINTS")
_EXPANSIONS = ("ONLINE",)


class IdentityService:
    """`ready` says whether the process can serve yet: its caches are filled, its node is known.

    `unhealthy` tells what is missing on the machine, None = nothing (PreconditionFailed is its error to raise).
    """

    def __init__(self, ready: Callable[[], bool], check: Callable[[], None] = lambda: None) -> None:
        self._ready = ready
        self._check = check

    async def get_plugin_info(
        self, request: csi_pb2.GetPluginInfoRequest, call: Call
    ) -> csi_pb2.GetPluginInfoResponse:
        return csi_pb2.GetPluginInfoResponse(name=CSI_DRIVER, vendor_version=version("cinderblock"))

    async def get_plugin_capabilities(
        self, request: csi_pb2.GetPluginCapabilitiesRequest, call: Call
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        capability = csi_pb2.PluginCapability
        return csi_pb2.GetPluginCapabilitiesResponse(
            capabilities=[
                *(
                    capability(service=capability.Service(type=capability.Service.Type.Value(name)))
                    for name in _SERVICES
                ),
                *(
                    capability(
                        volume_expansion=capability.VolumeExpansion(
                            type=capability.VolumeExpansion.Type.Value(name)
                        )
                    )
                    for name in _EXPANSIONS
                ),
            ]
        )

    async def probe(self, request: csi_pb2.ProbeRequest, call: Call) -> csi_pb2.ProbeResponse:
        """Not ready while starting; FAILED_PRECONDITION where the machine lacks something."""
        self._check()
        return csi_pb2.ProbeResponse(ready=BoolValue(value=self._ready()))
