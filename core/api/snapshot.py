"""Snapshot: a Volume's content at one moment. Only its schema for now; nothing serves it yet."""

from __future__ import annotations

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
    set_once,
)
from cinderblock.core.api.volume import ClaimReference


class SnapshotSpec(Model):
    volume: str = Field(min_length=1, description="Name of the Volume, in this namespace.")
    claim_ref: ClaimReference | None = None


class SnapshotStatus(Model):
    observed_generation: int = Field(default=0, ge=0)
    handle: str | None = None
    source_handle: str | None = None
    host: str | None = None
    grant: int = Field(default=0, ge=0)
    size_bytes: int | None = Field(default=None, ge=0)
    last_error: ErrorRecord | None = None
    conditions: tuple[Condition, ...] = Field(default=(), json_schema_extra=map_list("type"))


class Snapshot(CustomResource):
    """A Volume's content at one moment. Only its schema exists for now: nothing serves it yet."""

    KIND: ClassVar[str] = "Snapshot"
    PLURAL: ClassVar[str] = "snapshots"
    SINGULAR: ClassVar[str] = "snapshot"
    SHORT_NAMES: ClassVar[tuple[str, ...]] = ("cbs", "cbsnap")
    PRINTER_COLUMNS: ClassVar[tuple[PrinterColumn, ...]] = (
        PrinterColumn("Volume", "string", ".spec.volume"),
        PrinterColumn("Ready", "string", ".status.conditions[?(@.type=='Ready')].status"),
        PrinterColumn("Age", "date", ".metadata.creationTimestamp"),
    )
    SELECTABLE_FIELDS: ClassVar[tuple[str, ...]] = (".status.host", ".status.sourceHandle")
    CEL_RULES: ClassVar[tuple[CelRule, ...]] = (
        CelRule("self == oldSelf", "a Snapshot's spec cannot be changed", "spec"),
        set_once("handle"),
    )

    spec: SnapshotSpec
    status: SnapshotStatus = Field(default_factory=SnapshotStatus)
