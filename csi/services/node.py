"""CSI Node: validate, start or join the work, answer. What is done is in csi/node."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

from cinderblock.core.api.volume import Use
from cinderblock.core.errors import InvalidRequest, NotFound, NotStaged, OperationPending
from cinderblock.csi.capability import Capability, parse_capability
from cinderblock.csi.interceptors import Call
from cinderblock.csi.node.agent import NodeAgent
from cinderblock.csi.node.lookup import NodeVolumes
from cinderblock.csi.node.options import check_options
from cinderblock.csi.node.publish import Figures, PublishAsk, Publisher
from cinderblock.csi.node.stage import StageAsk, Stager
from cinderblock.csi.pb import csi_pb2
from cinderblock.csi.topology import topology_of
from cinderblock.csi.work import KeyedWork

T = TypeVar("T")
_MARGIN = 0.1  # so that the work can still say what it waited for
_CAPABILITIES = (
    csi_pb2.NodeServiceCapability.RPC.STAGE_UNSTAGE_VOLUME,
    csi_pb2.NodeServiceCapability.RPC.GET_VOLUME_STATS,
    csi_pb2.NodeServiceCapability.RPC.EXPAND_VOLUME,
    csi_pb2.NodeServiceCapability.RPC.SINGLE_NODE_MULTI_WRITER,
)


def _required(**fields: str) -> None:
    for name, value in fields.items():
        if not value:
            raise InvalidRequest(f"{name} is missing")


def _absolute(**fields: str) -> None:
    for name, value in fields.items():
        if not value.startswith("/") or value.rstrip("/") == "" or ".." in value.split("/") or "\0" in value:
            raise InvalidRequest(f"{name} is not an absolute path: {value!r}")


def _flags(message: csi_pb2.VolumeCapability, capability: Capability) -> tuple[str, ...]:
    if capability.use is Use.BLOCK:
        return ()
    flags = tuple(message.mount.mount_flags)
    if not capability.fs_type:
        # The type is known only once the volume is: what both would take is allowed.
        check_options("ext4", flags)
        return check_options("xfs", flags)
    return check_options(capability.fs_type, flags)


@dataclass(frozen=True)
class NodeService:
    volumes: NodeVolumes
    stager: Stager
    publisher: Publisher
    agent: NodeAgent
    work: KeyedWork

    async def _run(
        self, call: Call, request: Message, key: tuple[str, ...], factory: Callable[[], Awaitable[T]]
    ) -> T:
        """Equal calls share one work; a different call with the same key waits for its turn (ABORTED)."""
        what = request.SerializeToString(deterministic=True)
        return await self.work.run((call.method, *key), factory, call.time_left(), what=what)

    async def node_get_info(
        self, request: csi_pb2.NodeGetInfoRequest, call: Call
    ) -> csi_pb2.NodeGetInfoResponse:
        node = self.volumes.node
        return csi_pb2.NodeGetInfoResponse(node_id=node, accessible_topology=topology_of(node))

    async def node_get_capabilities(
        self, request: csi_pb2.NodeGetCapabilitiesRequest, call: Call
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        return csi_pb2.NodeGetCapabilitiesResponse(
            capabilities=[
                csi_pb2.NodeServiceCapability(rpc=csi_pb2.NodeServiceCapability.RPC(type=kind))
                for kind in _CAPABILITIES
            ]
        )

    async def node_stage_volume(
        self, request: csi_pb2.NodeStageVolumeRequest, call: Call
    ) -> csi_pb2.NodeStageVolumeResponse:
        _required(volume_id=request.volume_id, staging_target_path=request.staging_target_path)
        capability = _capability(request)
        _absolute(staging_target_path=request.staging_target_path)
        ask = StageAsk(
            volume_id=request.volume_id,
            path=request.staging_target_path,
            capability=capability,
            flags=_flags(request.volume_capability, capability),
        )
        try:
            await self._run(call, request, (ask.volume_id, ask.path), lambda: self.stager.stage(ask))
        except OperationPending as error:
            why = self.stager.waits_for(ask)
            raise OperationPending(
                f"the volume is still being staged: {why}" if why else error.message
            ) from None
        return csi_pb2.NodeStageVolumeResponse()

    async def node_unstage_volume(
        self, request: csi_pb2.NodeUnstageVolumeRequest, call: Call
    ) -> csi_pb2.NodeUnstageVolumeResponse:
        volume_id, path = request.volume_id, request.staging_target_path
        _required(volume_id=volume_id, staging_target_path=path)
        _absolute(staging_target_path=path)
        await self._run(call, request, (volume_id, path), lambda: self._unstage(volume_id, path))
        return csi_pb2.NodeUnstageVolumeResponse()

    async def _unstage(self, volume_id: str, path: str) -> None:
        await self.stager.unstage(volume_id, path)
        attachment = self.volumes.known(volume_id)
        if attachment is not None:
            self.agent.poke(attachment)  # a detach may wait for just this

    async def node_publish_volume(
        self, request: csi_pb2.NodePublishVolumeRequest, call: Call
    ) -> csi_pb2.NodePublishVolumeResponse:
        _required(volume_id=request.volume_id, target_path=request.target_path)
        capability = _capability(request)
        if not request.staging_target_path:
            raise NotStaged("staging_target_path is missing: this driver stages volumes first")
        _absolute(target_path=request.target_path, staging_target_path=request.staging_target_path)
        ask = PublishAsk(
            volume_id=request.volume_id,
            target=request.target_path,
            staging_path=request.staging_target_path,
            capability=capability,
            flags=_flags(request.volume_capability, capability),
            read_only=request.readonly,
        )
        await self._run(call, request, (ask.volume_id, ask.target), lambda: self.publisher.publish(ask))
        return csi_pb2.NodePublishVolumeResponse()

    async def node_unpublish_volume(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, call: Call
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        volume_id, target = request.volume_id, request.target_path
        _required(volume_id=volume_id, target_path=target)
        _absolute(target_path=target)
        await self._run(
            call, request, (volume_id, target), lambda: self.publisher.unpublish(volume_id, target)
        )
        return csi_pb2.NodeUnpublishVolumeResponse()

    async def node_expand_volume(
        self, request: csi_pb2.NodeExpandVolumeRequest, call: Call
    ) -> csi_pb2.NodeExpandVolumeResponse:
        volume_id, path = request.volume_id, request.volume_path
        _required(volume_id=volume_id, volume_path=path)
        required, limit = request.capacity_range.required_bytes, request.capacity_range.limit_bytes
        if required < 0 or limit < 0 or (limit and limit < required):
            raise InvalidRequest("capacity_range: limit_bytes is below required_bytes, or one is negative")
        # Not absolute = not a path of this volume, as the specification's own tests expect.
        if not path.startswith("/"):
            raise NotFound(f"volume {volume_id} is not at {path}")
        size_bytes = await self._run(
            call,
            request,
            (volume_id, path),
            lambda: self.publisher.expand(volume_id, path, required, call.answer_by - _MARGIN),
        )
        return csi_pb2.NodeExpandVolumeResponse(capacity_bytes=size_bytes)

    async def node_get_volume_stats(
        self, request: csi_pb2.NodeGetVolumeStatsRequest, call: Call
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        volume_id, path = request.volume_id, request.volume_path
        _required(volume_id=volume_id, volume_path=path)
        if not path.startswith("/"):
            raise NotFound(f"volume {volume_id} is not at {path}")
        figures = await self._run(
            call, request, (volume_id, path), lambda: self.publisher.figures(volume_id, path)
        )
        return csi_pb2.NodeGetVolumeStatsResponse(usage=_usage(figures))


def _capability(
    request: csi_pb2.NodeStageVolumeRequest | csi_pb2.NodePublishVolumeRequest,
) -> Capability:
    if not request.HasField("volume_capability"):
        raise InvalidRequest("volume_capability is missing")
    return parse_capability(request.volume_capability)


def _usage(figures: Figures) -> list[csi_pb2.VolumeUsage]:
    usage = [
        csi_pb2.VolumeUsage(
            unit=csi_pb2.VolumeUsage.BYTES,
            total=figures.total_bytes,
            used=figures.used_bytes or 0,
            available=figures.available_bytes or 0,
        )
    ]
    if figures.total_inodes is not None:
        usage.append(
            csi_pb2.VolumeUsage(
                unit=csi_pb2.VolumeUsage.INODES,
                total=figures.total_inodes,
                used=figures.used_inodes or 0,
                available=figures.available_inodes or 0,
            )
        )
    return usage
