"""Volume: block storage that a user asks for (docs/crds/volume.md).

The leader writes handle, allocation, lastGrant and scheduling; the volume host writes the rest (docs/protocol.md).
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from cinderblock.core.api.meta import (
    CelRule,
    Condition,
    CustomResource,
    ErrorRecord,
    Model,
    PrinterColumn,
    immutable,
    map_list,
    never_falls,
    set_once,
)
from cinderblock.core.errors import GrpcCode
from cinderblock.core.units import QUANTITY_PATTERN, parse_quantity

SCHEDULED = "Scheduled"
PROVISIONED = "Provisioned"
READY = "Ready"
LOST = "Lost"
NAMED_BY_PV = "NamedByPV"


class VolumeMode(StrEnum):
    FILESYSTEM = "Filesystem"
    BLOCK = "Block"


class AccessMode(StrEnum):
    READ_WRITE_ONCE = "ReadWriteOnce"
    READ_ONLY_MANY = "ReadOnlyMany"
    READ_WRITE_MANY = "ReadWriteMany"
    READ_WRITE_ONCE_POD = "ReadWriteOncePod"


class VolumePhase(StrEnum):
    PENDING = "Pending"
    SCHEDULED = "Scheduled"
    CREATING = "Creating"
    AVAILABLE = "Available"
    EXTENDING = "Extending"
    RETYPING = "Retyping"
    MIGRATING = "Migrating"
    REVERTING = "Reverting"
    DELETING = "Deleting"
    ERROR = "Error"
    LOST = "Lost"


class Use(StrEnum):
    """What an Attachment does with the device: a mounted filesystem, a raw device in a pod, or a bare device."""

    MOUNT = "Mount"
    BLOCK = "Block"
    BARE = "Bare"


class VolumeSource(Model):
    """At most one of these."""

    snapshot: str | None = Field(
        default=None, description="Name of a Snapshot in this namespace.", min_length=1
    )
    volume: str | None = Field(
        default=None, description="Name of a Volume in this namespace to clone.", min_length=1
    )
    image: str | None = Field(default=None, description="Name of an image that an admin lists.", min_length=1)


class ClaimReference(Model):
    """The claim that a Volume serves; quota counts in its namespace."""

    namespace: str = Field(description="Of the PersistentVolumeClaim.")
    name: str = Field(description="Of the PersistentVolumeClaim.")
    uid: str = Field(description="Of the PersistentVolumeClaim.")


class VolumeTopology(Model):
    """Node names from which the Volume must be reachable, as CSI's accessibility requirements."""

    requisite: tuple[str, ...] = Field(
        default=(), description="Any one of these nodes must reach the Volume."
    )
    preferred: tuple[str, ...] = Field(default=(), description="Nodes to prefer, best first.")


class CsiCapability(Model):
    volume_mode: VolumeMode
    access_mode: str = Field(description="Name of the CSI access mode.")
    fs_type: str = ""
    mount_flags: tuple[str, ...] = ()


class CsiRequest(Model):
    """What CreateVolume asked for, kept for the comparison that ALREADY_EXISTS needs."""

    name: str = Field(max_length=128)
    required_bytes: int = Field(default=0, ge=0)
    limit_bytes: int = Field(default=0, ge=0)
    capabilities: tuple[CsiCapability, ...] = ()
    parameters: dict[str, str] = Field(default_factory=dict)


class VolumeSpec(Model):
    size: str = Field(
        pattern=QUANTITY_PATTERN, max_length=32, description="Size wanted, such as 10Gi. May grow."
    )
    volume_type: str | None = Field(
        default=None, min_length=1, description="Name of a VolumeType; empty = the default one."
    )
    volume_mode: VolumeMode = Field(
        default=VolumeMode.FILESYSTEM, description="Filesystem: mounted; Block: a raw device."
    )
    access_modes: tuple[AccessMode, ...] = Field(
        default=(AccessMode.READ_WRITE_ONCE,),
        min_length=1,
        max_length=4,
        json_schema_extra={"x-kubernetes-list-type": "set"},
        description="What pods may do with it; ReadOnlyMany and ReadWriteMany let several nodes hold it at once.",
    )
    fs_type: str | None = Field(
        default=None,
        pattern="^(ext4|xfs)$",
        description="Filesystem that the first mount makes, where it is known beforehand.",
    )
    availability_zone: str | None = Field(
        default=None, min_length=1, description="Only pools of Backends in this zone."
    )
    source: VolumeSource | None = Field(
        default=None, description="What the Volume starts as a copy of; absent = empty, all zeros."
    )
    topology: VolumeTopology | None = Field(
        default=None, description="Nodes from which the Volume must be reachable."
    )
    claim_ref: ClaimReference | None = Field(default=None, description="Set by our CSI controller.")
    csi: CsiRequest | None = Field(default=None, description="Set by our CSI controller.")

    @property
    def size_bytes(self) -> int:
        return parse_quantity(self.size)

    @property
    def multi_attach(self) -> bool:
        """Whether several nodes may hold the Volume at once."""
        return bool({AccessMode.READ_ONLY_MANY, AccessMode.READ_WRITE_MANY} & set(self.access_modes))


class Allocation(Model):
    """The standing grant."""

    backend: str
    pool: str = Field(description="Name of the Pool object.")
    host: str = Field(description="The volume host that owns the Pool.")
    size_bytes: int = Field(gt=0)
    volume_type: str | None = Field(
        default=None,
        description="Name of the VolumeType that it was granted under, also where it was the default.",
    )
    type_revision: int = Field(default=0, ge=0, description="metadata.generation of the VolumeType.")
    thick: bool = Field(default=False, description="All bytes are taken at once: the type's provisioning.")
    grant: int = Field(gt=0)


class Candidate(Model):
    pool: str
    weight: float = Field(description="Sum of multiplier times normalised weight.")


class Rejection(Model):
    """Pools that one filter refused: how many, and three of them."""

    filter: str
    count: int = Field(ge=0)
    examples: tuple[str, ...] = Field(default=(), description="pool: reason", max_length=3)


class Attempt(Model):
    pool: str
    grant: int
    reason: str
    message: str = Field(max_length=1024)
    grpc_code: GrpcCode
    at: datetime


class Scheduling(Model):
    epoch: int = Field(default=0, ge=0, description="Lease epoch of the leader that last took charge.")
    candidates: tuple[Candidate, ...] = Field(default=(), max_length=5)
    rejections: tuple[Rejection, ...] = ()
    attempts: tuple[Attempt, ...] = Field(default=(), max_length=10)
    error: ErrorRecord | None = None


class Refusal(Model):
    """The host's refusal of one grant, written only after what was made had been cleaned up."""

    grant: int
    reason: str
    message: str = Field(max_length=1024)
    grpc_code: GrpcCode
    at: datetime


class VolumeAttachmentEntry(Model):
    """One Attachment that the host admitted. Only what stands here may be exported."""

    attachment_uid: str = Field(alias="attachmentUID")
    attachment: str = Field(description="namespace/name of the Attachment.")
    node: str
    read_only: bool = False
    generation: int = Field(gt=0)
    use: Use
    fenced: bool = False


class FilesystemState(StrEnum):
    FORMATTING = "Formatting"
    FORMATTED = "Formatted"
    RAW = "Raw"  # first used as a block device: never formatted by us


class Filesystem(Model):
    type: str = ""
    state: FilesystemState
    permitted: bool = Field(
        default=False,
        description="With Formatting: a node was permitted to make it, so what is found there may be half-made.",
    )


class OperationKind(StrEnum):
    CREATE = "Create"
    EXTEND = "Extend"
    DELETE = "Delete"


class Operation(Model):
    """A long step in work: stored before its first effect, gone with its result."""

    kind: OperationKind
    started_at: datetime
    deadline: datetime
    step: str = ""
    grant: int = 0
    target_bytes: int = Field(default=0, ge=0, description="Size that an extend goes to.")
    decided_on: str = Field(default="", description="resourceVersion that the decision was made on.")


class VolumeStatus(Model):
    observed_generation: int = Field(default=0, ge=0)
    phase: VolumePhase | None = Field(
        default=None, description="One word for people; programs read the conditions."
    )
    # leader
    handle: str | None = Field(default=None, description="Immutable identity of what the backend holds.")
    allocation: Allocation | None = Field(
        default=None, description="The standing grant: where the Volume is or will be made."
    )
    last_grant: int = Field(default=0, ge=0, description="Highest grant ever given; never falls.")
    scheduling: Scheduling | None = Field(
        default=None, description="How the placement came about, or why there is none."
    )
    # volume host
    refusal: Refusal | None = None
    attachments: tuple[VolumeAttachmentEntry, ...] = Field(
        default=(), json_schema_extra=map_list("attachmentUID")
    )
    attach_generation: int = Field(default=0, ge=0, description="Counter that generations are drawn from.")
    capacity_bytes: int | None = Field(
        default=None, ge=0, description="What exists; set as soon as the Volume was made."
    )
    filesystem: Filesystem | None = Field(
        default=None, description="What the Volume holds, as far as it was used."
    )
    operation: Operation | None = None
    last_error: ErrorRecord | None = None
    conditions: tuple[Condition, ...] = Field(default=(), json_schema_extra=map_list("type"))


class Volume(CustomResource):
    """Block storage that a user asks for: placed on a Pool by the leader, made there by the volume host."""

    KIND: ClassVar[str] = "Volume"
    PLURAL: ClassVar[str] = "volumes"
    SINGULAR: ClassVar[str] = "volume"
    SHORT_NAMES: ClassVar[tuple[str, ...]] = ("cbv", "cbvol")
    PRINTER_COLUMNS: ClassVar[tuple[PrinterColumn, ...]] = (
        PrinterColumn("Phase", "string", ".status.phase"),
        PrinterColumn("Size", "string", ".spec.size"),
        PrinterColumn("Type", "string", ".status.allocation.volumeType"),
        PrinterColumn("Pool", "string", ".status.allocation.pool"),
        PrinterColumn("Node", "string", ".status.attachments[*].node"),
        PrinterColumn("Age", "date", ".metadata.creationTimestamp"),
        PrinterColumn("Claim", "string", ".spec.claimRef.name", priority=1),
        PrinterColumn("Handle", "string", ".status.handle", priority=1),
    )
    SELECTABLE_FIELDS: ClassVar[tuple[str, ...]] = (".status.allocation.host", ".status.handle")
    CEL_RULES: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            # A quantity beyond 8Ei is read as 8Ei, so this also keeps every size an int64. isQuantity comes first
            # in every rule: a rule that ends in an error would refuse even the status write of an older object.
            "isQuantity(self) && quantity(self).isGreaterThan(quantity('0')) && quantity(self).isLessThan(quantity('8Ei'))",
            "size must be above 0 and below 8Ei, such as 10Gi",
            "spec.size",
        ),
        CelRule(
            "[has(self.snapshot), has(self.volume), has(self.image)].filter(x, x).size() <= 1",
            "source takes at most one of snapshot, volume and image",
            "spec.source",
        ),
        immutable(
            "volumeType",
            "volumeMode",
            "accessModes",
            "source",
            "fsType",
            "availabilityZone",
            "topology",
            "csi",
        ),
        CelRule(
            "!has(self.fsType) || self.volumeMode == 'Filesystem'",
            "fsType is only for volumeMode Filesystem",
            "spec",
            ".fsType",
        ),
        set_once("handle"),
        never_falls("lastGrant"),
        never_falls("attachGeneration"),
        CelRule(
            # Written against oldSelf.spec, so that a status write always passes; growing always passes too, for
            # a backend may have rounded what exists up to more than was asked.
            "self.spec.size == oldSelf.spec.size || !has(self.status) || !has(self.status.capacityBytes)"
            " || (isQuantity(self.spec.size) && ("
            "(isQuantity(oldSelf.spec.size) && !quantity(self.spec.size).isLessThan(quantity(oldSelf.spec.size)))"
            " || sign(quantity(self.spec.size).sub(self.status.capacityBytes)) >= 0))",
            "size cannot go below what exists (status.capacityBytes): a volume never shrinks",
        ),
    )

    spec: VolumeSpec
    status: VolumeStatus = Field(default_factory=VolumeStatus)
