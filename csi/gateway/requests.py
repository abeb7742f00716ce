"""What an RPC asks of the gateway, checked and free of protocol buffers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cinderblock.core.api.volume import VolumeTopology
from cinderblock.core.errors import InvalidRequest, SizeOutOfRange
from cinderblock.core.units import GIB
from cinderblock.csi.capability import Capability

DEFAULT_SIZE_BYTES = GIB  # where a request names no size


@dataclass(frozen=True)
class SizeRange:
    """0 = not given."""

    required_bytes: int = 0
    limit_bytes: int = 0

    @classmethod
    def of(cls, required_bytes: int, limit_bytes: int) -> SizeRange:
        """Errors: InvalidRequest for negative sizes, SizeOutOfRange for a limit below what is required."""
        if required_bytes < 0 or limit_bytes < 0:
            raise InvalidRequest("capacity_range: sizes cannot be negative")
        if 0 < limit_bytes < required_bytes:
            raise SizeOutOfRange(
                f"capacity_range: limit_bytes {limit_bytes} is below required_bytes {required_bytes}"
            )
        return cls(required_bytes, limit_bytes)

    @property
    def wanted_bytes(self) -> int:
        """The size to make: what is required, else the default, never above the limit."""
        if self.required_bytes:
            return self.required_bytes
        return min(DEFAULT_SIZE_BYTES, self.limit_bytes) if self.limit_bytes else DEFAULT_SIZE_BYTES

    def holds(self, size_bytes: int) -> bool:
        return size_bytes >= self.required_bytes and (not self.limit_bytes or size_bytes <= self.limit_bytes)


@dataclass(frozen=True)
class Claim:
    """The claim that provisioning speaks of, as the provisioner's extra metadata names it."""

    namespace: str
    name: str


@dataclass(frozen=True)
class CreateRequest:
    name: str
    size: SizeRange
    capabilities: tuple[Capability, ...]
    parameters: Mapping[str, str] = field(default_factory=dict)  # ours only: no csi.storage.k8s.io keys
    volume_type: str | None = None
    topology: VolumeTopology | None = None
    claim: Claim | None = None

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """Equal for equal requests; tells a retry from another request under the same name."""
        topology = (self.topology.requisite, self.topology.preferred) if self.topology else None
        return (
            self.size,
            frozenset(self.capabilities),
            tuple(sorted(self.parameters.items())),
            topology,
            self.claim,
        )


@dataclass(frozen=True)
class PublishRequest:
    handle: str
    node: str
    capability: Capability
    read_only: bool
