"""The Controller service: every RPC is validate, gate on the advertised list, call the gateway, answer."""

from __future__ import annotations

from google.protobuf.wrappers_pb2 import Int64Value

from cinderblock.core.api.volume import Volume, VolumeMode
from cinderblock.core.errors import InvalidRequest, NotReady, NotSupported, StorageError
from cinderblock.csi.capability import check_together, parse_capabilities, parse_capability, unsupported
from cinderblock.csi.gateway.controller import ControllerGateway
from cinderblock.csi.gateway.requests import CreateRequest, PublishRequest, SizeRange
from cinderblock.csi.interceptors import Call
from cinderblock.csi.pb import csi_pb2
from cinderblock.csi.services.parameters import parse_parameters
from cinderblock.csi.topology import node_segment, parse_requirement, reachable_from
from cinderblock.csi.validation import check_limits

PUBLISH_CONTEXT_ATTACHMENT = "attachment"

_Capability = csi_pb2.ControllerServiceCapability.RPC.Type
ADVERTISED: frozenset[str] = frozenset(
    {
        "CREATE_DELETE_VOLUME",
        "PUBLISH_UNPUBLISH_VOLUME",
        "LIST_VOLUMES",
        "LIST_VOLUMES_PUBLISHED_NODES",
        "GET_CAPACITY",
        "EXPAND_VOLUME",
        "PUBLISH_READONLY",
        "SINGLE_NODE_MULTI_WRITER",
    }
)


class ControllerService:
    CHECKS_LIMITS = frozenset({"CreateVolume"})

    def __init__(self, gateway: ControllerGateway, advertised: frozenset[str] = ADVERTISED) -> None:
        self._gateway = gateway
        self._advertised = advertised

    async def controller_get_capabilities(
        self, request: csi_pb2.ControllerGetCapabilitiesRequest, call: Call
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        capability = csi_pb2.ControllerServiceCapability
        return csi_pb2.ControllerGetCapabilitiesResponse(
            capabilities=[
                capability(rpc=capability.RPC(type=number))
                for number in sorted(_Capability.Value(name) for name in self._advertised)
            ]
        )

    async def create_volume(
        self, request: csi_pb2.CreateVolumeRequest, call: Call
    ) -> csi_pb2.CreateVolumeResponse:
        """A final error goes out only when nothing of that name is left (`settle`)."""
        self._gate("CREATE_DELETE_VOLUME")
        try:
            check_limits(request)
            volume = await self._gateway.creating.create(self._create_request(request), call)
        except StorageError as error:
            raise await self._gateway.creating.settle(request.name, error, call) from error
        return csi_pb2.CreateVolumeResponse(volume=self._volume(volume))

    async def delete_volume(
        self, request: csi_pb2.DeleteVolumeRequest, call: Call
    ) -> csi_pb2.DeleteVolumeResponse:
        self._gate("CREATE_DELETE_VOLUME")
        _require(request.volume_id, "volume_id")
        await self._gateway.volumes.delete(request.volume_id, call)
        return csi_pb2.DeleteVolumeResponse()

    async def controller_publish_volume(
        self, request: csi_pb2.ControllerPublishVolumeRequest, call: Call
    ) -> csi_pb2.ControllerPublishVolumeResponse:
        self._gate("PUBLISH_UNPUBLISH_VOLUME")
        _require(request.volume_id, "volume_id")
        _require(request.node_id, "node_id")
        if not request.HasField("volume_capability"):
            raise InvalidRequest("volume_capability is missing")
        if request.readonly:
            self._gate("PUBLISH_READONLY")
        capability = parse_capability(request.volume_capability)
        attachment = await self._gateway.attachments.publish(
            PublishRequest(request.volume_id, request.node_id, capability, request.readonly), call
        )
        return csi_pb2.ControllerPublishVolumeResponse(
            publish_context={PUBLISH_CONTEXT_ATTACHMENT: attachment.name}
        )

    async def controller_unpublish_volume(
        self, request: csi_pb2.ControllerUnpublishVolumeRequest, call: Call
    ) -> csi_pb2.ControllerUnpublishVolumeResponse:
        self._gate("PUBLISH_UNPUBLISH_VOLUME")
        _require(request.volume_id, "volume_id")
        await self._gateway.attachments.unpublish(request.volume_id, request.node_id, call)
        return csi_pb2.ControllerUnpublishVolumeResponse()

    async def validate_volume_capabilities(
        self, request: csi_pb2.ValidateVolumeCapabilitiesRequest, call: Call
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        """What cannot be confirmed is no error but a message."""
        self._ready()
        _require(request.volume_id, "volume_id")
        if not request.volume_capabilities:
            raise InvalidRequest("volume_capabilities is missing")
        volume = await self._gateway.volumes.must_find(request.volume_id)
        try:
            capabilities = parse_capabilities(request.volume_capabilities)
            ours = parse_parameters(request.parameters).ours
        except InvalidRequest as error:
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message=error.message)
        problems = [p for c in capabilities if (p := unsupported(volume.spec, c)) is not None]
        if ours and volume.spec.csi is not None and ours != volume.spec.csi.parameters:
            problems.append("the volume was made with other parameters")
        if request.mutable_parameters:
            problems.append("mutable parameters are not supported")
        if problems:
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message=problems[0])
        return csi_pb2.ValidateVolumeCapabilitiesResponse(
            confirmed=csi_pb2.ValidateVolumeCapabilitiesResponse.Confirmed(
                volume_context=request.volume_context,
                volume_capabilities=request.volume_capabilities,
                parameters=request.parameters,
            )
        )

    async def list_volumes(
        self, request: csi_pb2.ListVolumesRequest, call: Call
    ) -> csi_pb2.ListVolumesResponse:
        self._gate("LIST_VOLUMES")
        if request.max_entries < 0:
            raise InvalidRequest("max_entries cannot be negative")
        page = self._gateway.listing.page(request.starting_token, request.max_entries)
        status = csi_pb2.ListVolumesResponse.VolumeStatus
        return csi_pb2.ListVolumesResponse(
            entries=[
                csi_pb2.ListVolumesResponse.Entry(
                    volume=self._volume(volume),
                    # Always there: an entry without it would read as "attached nowhere".
                    status=status(published_node_ids=_published(volume)),
                )
                for volume in page.volumes
            ],
            next_token=page.next_token,
        )

    async def get_capacity(
        self, request: csi_pb2.GetCapacityRequest, call: Call
    ) -> csi_pb2.GetCapacityResponse:
        self._gate("GET_CAPACITY")
        parameters = parse_parameters(request.parameters)
        if request.volume_capabilities:
            check_together(parse_capabilities(request.volume_capabilities))
        segment = node_segment(request.accessible_topology)
        node = None if segment is None else (self._gateway.caches.node_of_segment(segment) or segment)
        found = self._gateway.capacity.available(parameters.volume_type, node)
        return csi_pb2.GetCapacityResponse(
            available_capacity=found.available_bytes,
            maximum_volume_size=Int64Value(value=found.largest_bytes),
            minimum_volume_size=Int64Value(value=found.smallest_bytes) if found.smallest_bytes else None,
        )

    async def controller_expand_volume(
        self, request: csi_pb2.ControllerExpandVolumeRequest, call: Call
    ) -> csi_pb2.ControllerExpandVolumeResponse:
        self._gate("EXPAND_VOLUME")
        _require(request.volume_id, "volume_id")
        if not request.HasField("capacity_range"):
            raise InvalidRequest("capacity_range is missing")
        size = SizeRange.of(request.capacity_range.required_bytes, request.capacity_range.limit_bytes)
        if not size.required_bytes and not size.limit_bytes:
            raise InvalidRequest("capacity_range names no size")
        if request.HasField("volume_capability"):
            volume = await self._gateway.volumes.must_find(request.volume_id)
            problem = unsupported(volume.spec, parse_capability(request.volume_capability))
            if problem is not None:
                raise InvalidRequest(problem)
        volume = await self._gateway.volumes.expand(request.volume_id, size, call)
        # A filesystem grows on the node; a block device that is in use is looked at again there.
        mounted = volume.spec.volume_mode is VolumeMode.FILESYSTEM
        return csi_pb2.ControllerExpandVolumeResponse(
            capacity_bytes=volume.status.capacity_bytes or 0,
            node_expansion_required=mounted or bool(volume.status.attachments),
        )

    def _gate(self, capability: str) -> None:
        """Nothing that is not advertised is served, and nothing before the caches are filled."""
        if capability not in self._advertised:
            raise NotSupported(f"the driver does not advertise {capability}")
        self._ready()

    def _ready(self) -> None:
        if not self._gateway.caches.synced:
            raise NotReady("the driver is starting: ask again")

    def _create_request(self, request: csi_pb2.CreateVolumeRequest) -> CreateRequest:
        _require(request.name, "name")
        capabilities = parse_capabilities(request.volume_capabilities)
        check_together(capabilities)
        if request.HasField("volume_content_source"):
            raise InvalidRequest("volume_content_source is not supported by this driver")
        if request.mutable_parameters:
            raise InvalidRequest("mutable_parameters are not supported by this driver")
        parameters = parse_parameters(request.parameters)
        caches = self._gateway.caches
        return CreateRequest(
            name=request.name,
            size=SizeRange.of(request.capacity_range.required_bytes, request.capacity_range.limit_bytes),
            capabilities=capabilities,
            parameters=parameters.ours,
            volume_type=parameters.volume_type,
            topology=parse_requirement(
                request.accessibility_requirements,
                caches.node_of_segment,
                [node.name for node in caches.nodes.store.all()],
            ),
            claim=parameters.claim,
        )

    def _volume(self, volume: Volume) -> csi_pb2.Volume:
        allocation = volume.status.allocation
        pool = self._gateway.caches.pools.store.get(None, allocation.pool) if allocation else None
        return csi_pb2.Volume(
            capacity_bytes=volume.status.capacity_bytes or 0,
            volume_id=volume.status.handle or "",
            accessible_topology=reachable_from(pool),
        )


def _published(volume: Volume) -> list[str]:
    """The nodes that may reach it; one that was fenced may not."""
    return list(dict.fromkeys(entry.node for entry in volume.status.attachments if not entry.fenced))


def _require(value: str, field: str) -> None:
    if not value:
        raise InvalidRequest(f"{field} is missing")
