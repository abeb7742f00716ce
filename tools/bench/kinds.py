"""Kinds that only the benchmark has: the object of the bare pipeline, and claims with the fields that matter here."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from cinderblock.core.api.builtin import PersistentVolumeClaim
from cinderblock.core.api.meta import CustomResource, Model, PrinterColumn

BARE_HOST = "bare"
BARE_FINALIZER = "cinderblock.io/bench"


class BareSpec(Model):
    size: str


class BareAllocation(Model):
    host: str
    pool: str


class BareStatus(Model):
    allocation: BareAllocation | None = None
    phase: str | None = None
    capacity_bytes: int | None = None


class BareVolume(CustomResource):
    """What goes through the bare pipeline."""

    KIND: ClassVar[str] = "BareVolume"
    PLURAL: ClassVar[str] = "barevolumes"
    SINGULAR: ClassVar[str] = "barevolume"
    PRINTER_COLUMNS: ClassVar[tuple[PrinterColumn, ...]] = (
        PrinterColumn("Phase", "string", ".status.phase"),
    )
    SELECTABLE_FIELDS: ClassVar[tuple[str, ...]] = (".status.allocation.host",)

    spec: BareSpec
    status: BareStatus = Field(default_factory=BareStatus)


class ClaimStatus(Model):
    phase: str | None = None


class Claim(PersistentVolumeClaim):
    """A PersistentVolumeClaim; its spec goes as it is written."""

    spec: dict[str, Any] = Field(default_factory=dict)
    status: ClaimStatus = Field(default_factory=ClaimStatus)
