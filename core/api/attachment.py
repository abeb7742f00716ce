"""Attachment: one Volume exposed to one node (docs/crds/attachment.md).

The leader writes fence, the volume host the export side, the node the connect side (docs/protocol.md).
"""

from __future__ import annotations

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
    map_list,
)
from cinderblock.core.api.volume import ClaimReference, Use

ADMITTED = "Admitted"  # host
EXPORTED = "Exported"  # host
CONNECTED = "Connected"  # node
DEVICE_BUSY = "DeviceBusy"  # node


class AttachmentSpec(Model):
    volume: str = Field(min_length=1, description="Name of the Volume.")
    volume_namespace: str | None = Field(
        default=None,
        description="Namespace of the Volume, where it differs; for objects of the release namespace.",
    )
    node: str = Field(min_length=1, description="Name of the node that gets the device.")
    read_only: bool = False
    use: Use = Field(
        default=Use.BARE, description="Mount: a filesystem; Block: a pod's device; Bare: a device."
    )
    fs_type: str | None = Field(
        default=None, pattern="^(ext4|xfs)$", description="Filesystem wanted with use Mount."
    )
    access_mode: str | None = Field(
        default=None, description="CSI access mode asked for; set by our CSI controller."
    )
    claim_ref: ClaimReference | None = Field(default=None, description="Set by our CSI controller.")


class Fence(Model):
    """The leader's order to cut a node off at the target."""

    generation: int = Field(gt=0)
    reason: str


class ConnectionProtocol(StrEnum):
    LOCAL = "Local"
    FAKE = "Fake"


class LocalConnection(Model):
    """An image file on the node itself, named relative to the pools' root, which host and agent both mount."""

    path: str = Field(description="Path of the image below the pools' root.")
    identity: str = Field(description="What the image's own metadata must say: <handle>-<grant>.")


class Connection(Model):
    """How the node reaches the device: the member of `protocol` is set. A tenant sees no address and no secret."""

    protocol: ConnectionProtocol
    generation: int = Field(gt=0)
    size_bytes: int = Field(gt=0, description="The device is at least this large; rewritten after an extend.")
    read_only: bool = False
    local: LocalConnection | None = None


class FormatPermit(Model):
    """The host's leave to make a filesystem, once, for one generation."""

    generation: int = Field(gt=0)
    type: str


class ProbeFound(StrEnum):
    BLANK = "Blank"
    OTHER = "Other"


class Probe(Model):
    """What the node found on the device before any mount."""

    wanted_type: str
    found: str = Field(description="Blank, Other, or a filesystem's type.")
    generation: int = Field(gt=0)


class Formatted(Model):
    type: str
    generation: int = Field(gt=0)


class AttachmentStatus(Model):
    observed_generation: int = Field(default=0, ge=0)
    # leader
    fence: Fence | None = None
    # volume host
    admitted: bool = False
    generation: int = Field(
        default=0, ge=0, description="Tells this attachment from the next one of the Volume."
    )
    connection: Connection | None = None
    format_permit: FormatPermit | None = None
    last_error: ErrorRecord | None = None
    # node
    device: str | None = Field(default=None, description="Stable link of the device on the node.")
    device_bytes: int | None = Field(default=None, ge=0)
    boot_id: str | None = Field(
        default=None, alias="bootID", description="Boot of the node that the device belongs to."
    )
    probe: Probe | None = None
    formatted: Formatted | None = None
    released: int = Field(default=0, ge=0, description="Highest generation that the node has let go of.")
    node_error: ErrorRecord | None = None
    # each writer sets its own types
    conditions: tuple[Condition, ...] = Field(default=(), json_schema_extra=map_list("type"))


class Attachment(CustomResource):
    """One Volume exposed to one node: its device appears there and stays until this object is deleted."""

    KIND: ClassVar[str] = "Attachment"
    PLURAL: ClassVar[str] = "attachments"
    SINGULAR: ClassVar[str] = "attachment"
    SHORT_NAMES: ClassVar[tuple[str, ...]] = ("cba", "cbatt")
    PRINTER_COLUMNS: ClassVar[tuple[PrinterColumn, ...]] = (
        PrinterColumn("Volume", "string", ".spec.volume"),
        PrinterColumn("Node", "string", ".spec.node"),
        PrinterColumn("Admitted", "string", ".status.conditions[?(@.type=='Admitted')].status"),
        PrinterColumn("Connected", "string", ".status.conditions[?(@.type=='Connected')].status"),
        PrinterColumn("Device", "string", ".status.device"),
        PrinterColumn("Age", "date", ".metadata.creationTimestamp"),
        PrinterColumn("Use", "string", ".spec.use", priority=1),
    )
    SELECTABLE_FIELDS: ClassVar[tuple[str, ...]] = (".spec.node",)
    CEL_RULES: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            "self == oldSelf", "an Attachment's spec cannot be changed: delete it and make another", "spec"
        ),
        CelRule(
            "!has(self.fsType) || self.use == 'Mount'", "fsType is only for use Mount", "spec", ".fsType"
        ),
    )

    spec: AttachmentSpec
    status: AttachmentStatus = Field(default_factory=AttachmentStatus)

    @property
    def volume_key(self) -> tuple[str, str]:
        """(namespace, name) of the Volume."""
        return (self.spec.volume_namespace or self.metadata.namespace or "", self.spec.volume)
