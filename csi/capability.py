"""CSI volume capabilities in our own words.

A capability says how a volume is used: as a filesystem or as a device, and from how many nodes. Access modes are
Kubernetes' on our side; what a mode means for nodes is decided here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cinderblock.core.api.volume import AccessMode, Use, VolumeMode, VolumeSpec
from cinderblock.core.errors import InvalidRequest
from cinderblock.csi.pb import csi_pb2

DEFAULT_FS_TYPE = "ext4"  # where neither the claim nor the volume names one
FS_TYPES = ("ext4", "xfs")

# CSI's word -> what the Volume must allow. Modes of one node differ only in who on that node may write.
_ACCESS: dict[str, AccessMode] = {
    "SINGLE_NODE_WRITER": AccessMode.READ_WRITE_ONCE,
    "SINGLE_NODE_READER_ONLY": AccessMode.READ_WRITE_ONCE,
    "SINGLE_NODE_MULTI_WRITER": AccessMode.READ_WRITE_ONCE,
    "SINGLE_NODE_SINGLE_WRITER": AccessMode.READ_WRITE_ONCE_POD,
    "MULTI_NODE_READER_ONLY": AccessMode.READ_ONLY_MANY,
    "MULTI_NODE_SINGLE_WRITER": AccessMode.READ_WRITE_MANY,
    "MULTI_NODE_MULTI_WRITER": AccessMode.READ_WRITE_MANY,
}
_READ_ONLY = frozenset({"SINGLE_NODE_READER_ONLY", "MULTI_NODE_READER_ONLY"})


@dataclass(frozen=True)
class Capability:
    """One checked VolumeCapability. `mode` is CSI's name of the access mode. Mount flags stay outside: they may
    hold credentials and only the node needs them."""

    volume_mode: VolumeMode
    mode: str
    fs_type: str = ""

    @property
    def access(self) -> AccessMode:
        return _ACCESS[self.mode]

    @property
    def read_only(self) -> bool:
        return self.mode in _READ_ONLY

    @property
    def use(self) -> Use:
        return Use.BLOCK if self.volume_mode is VolumeMode.BLOCK else Use.MOUNT


def parse_capability(message: csi_pb2.VolumeCapability, field: str = "volume_capability") -> Capability:
    """Errors: InvalidRequest for a capability that is incomplete or can never work."""
    kind = message.WhichOneof("access_type")
    if kind is None:
        raise InvalidRequest(f"{field}: neither mount nor block is given")
    names = csi_pb2.VolumeCapability.AccessMode.Mode.DESCRIPTOR.values_by_number
    number = message.access_mode.mode
    mode = names[number].name if number in names else str(number)
    if mode not in _ACCESS:
        raise InvalidRequest(f"{field}: the access mode {mode} is not known")
    if kind == "block":
        return Capability(VolumeMode.BLOCK, mode)
    fs_type = message.mount.fs_type
    if fs_type and fs_type not in FS_TYPES:
        raise InvalidRequest(
            f"{field}: the filesystem {fs_type!r} is not offered: take {' or '.join(FS_TYPES)}"
        )
    return Capability(VolumeMode.FILESYSTEM, mode, fs_type)


def parse_capabilities(messages: Iterable[csi_pb2.VolumeCapability]) -> tuple[Capability, ...]:
    """All capabilities that one volume must have at once. Errors: InvalidRequest, also for none at all."""
    found = tuple(parse_capability(m, f"volume_capabilities[{i}]") for i, m in enumerate(messages))
    if not found:
        raise InvalidRequest("volume_capabilities is missing")
    return found


def check_together(capabilities: tuple[Capability, ...]) -> None:
    """Whether one new volume can have them all. Errors: InvalidRequest."""
    if len({c.volume_mode for c in capabilities}) > 1:
        raise InvalidRequest("a volume is either mounted or used as a block device: ask for one of both")
    if len({c.fs_type for c in capabilities if c.fs_type}) > 1:
        raise InvalidRequest("a volume holds one filesystem: ask for one fsType")
    for capability in capabilities:
        if problem := _shared_filesystem(capability):
            raise InvalidRequest(problem)


def unsupported(spec: VolumeSpec, capability: Capability) -> str | None:
    """Why a volume of this spec cannot be used in that way; None = it can."""
    if capability.volume_mode is not spec.volume_mode:
        return f"the volume has volumeMode {spec.volume_mode}, not {capability.volume_mode}"
    if capability.fs_type and spec.fs_type and capability.fs_type != spec.fs_type:
        return f"the volume has fsType {spec.fs_type}, not {capability.fs_type}"
    if problem := _shared_filesystem(capability):
        return problem
    allowed = set(spec.access_modes)
    if AccessMode.READ_WRITE_MANY in allowed or capability.access in allowed:
        return None
    one_node = {AccessMode.READ_WRITE_ONCE, AccessMode.READ_WRITE_ONCE_POD}
    if capability.access in one_node and allowed & one_node:
        return None  # the pod's rights are Kubernetes' business; for us both are "one node"
    modes = ", ".join(spec.access_modes)
    return f"the volume allows {modes}, which {capability.mode} is not part of"


def _shared_filesystem(capability: Capability) -> str | None:
    if capability.volume_mode is VolumeMode.BLOCK or capability.access is not AccessMode.READ_WRITE_MANY:
        return None
    return (
        f"{capability.mode} is only offered for volumeMode Block: a filesystem such as ext4 or xfs is destroyed"
        " when several nodes write to it"
    )
