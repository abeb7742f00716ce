"""Backend (an admin's configuration of one driver), Pool (a capacity bucket of it on one host) and VolumeType."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar

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
from cinderblock.core.units import QUANTITY_PATTERN

ACCEPTED = "Accepted"  # Backend: the configuration is valid
BACKEND_IN_USE = "InUse"  # Backend that is being deleted: volumes hold it
POOL_READY = "Ready"  # Pool, host: the driver is open and the marker is ours
HOST_ALIVE = "HostAlive"  # Pool, leader
RATIO_PATTERN = r"^(auto|[0-9]+(\.[0-9]+)?)$"


class BackendSpec(Model):
    driver: str = Field(min_length=1, description="Name of an installed driver, such as file.")
    config: dict[str, Any] = Field(
        default_factory=dict, description="The driver's own settings; see its page."
    )
    node_selector: dict[str, str] | None = Field(
        default=None,
        description="Labels of the nodes that own pools of this Backend; {} = every node; absent = no node"
        " (a network backend, served by the operator).",
    )
    availability_zone: str | None = Field(
        default=None, min_length=1, description="Zone that its Pools are in."
    )
    over_subscription_ratio: str = Field(
        default="20",
        pattern=RATIO_PATTERN,
        description="Provisioned against real bytes of a thin pool; or auto.",
    )
    reserved_percent: int = Field(
        default=0, ge=0, le=100, description="Share of the total that is never granted."
    )
    physical_floor_percent: int = Field(
        default=5,
        ge=0,
        le=100,
        description="Below this share of really free bytes a thin pool takes no new volume.",
    )


class BackendStatus(Model):
    observed_generation: int = Field(default=0, ge=0)
    pools: int = Field(default=0, ge=0)
    ready_pools: int = Field(default=0, ge=0)
    conditions: tuple[Condition, ...] = Field(default=(), json_schema_extra=map_list("type"))


class Backend(CustomResource):
    """An admin's configuration of one driver; its Pools follow from it."""

    KIND: ClassVar[str] = "Backend"
    PLURAL: ClassVar[str] = "backends"
    SINGULAR: ClassVar[str] = "backend"
    NAMESPACED: ClassVar[bool] = False
    SHORT_NAMES: ClassVar[tuple[str, ...]] = ("cbb",)
    PRINTER_COLUMNS: ClassVar[tuple[PrinterColumn, ...]] = (
        PrinterColumn("Driver", "string", ".spec.driver"),
        PrinterColumn("Accepted", "string", ".status.conditions[?(@.type=='Accepted')].status"),
        PrinterColumn("Pools", "integer", ".status.pools"),
        PrinterColumn("Ready", "integer", ".status.readyPools"),
        PrinterColumn("Age", "date", ".metadata.creationTimestamp"),
    )
    CEL_RULES: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            "self == oldSelf",
            "the driver of a Backend cannot be changed: make another Backend",
            "spec.driver",
        ),
    )

    spec: BackendSpec
    status: BackendStatus = Field(default_factory=BackendStatus)


class PoolSpec(Model):
    backend: str = Field(min_length=1, description="Name of the Backend.")
    host: str = Field(min_length=1, description="The volume host that owns it.")
    node: str | None = Field(default=None, description="Node that owns it; absent for network backends.")
    pool: str | None = Field(default=None, description="The driver's own name for it, where it has several.")


class PoolStatus(Model):
    observed_generation: int = Field(default=0, ge=0)
    pool_id: str | None = Field(
        default=None, alias="poolID", description="Random id that the pool's marker carries."
    )
    total_bytes: int | None = Field(default=None, ge=0)
    free_bytes: int | None = Field(default=None, ge=0, description="Really free.")
    allocated_bytes: int | None = Field(default=None, ge=0, description="Really used by volumes.")
    provisioned_bytes: int | None = Field(
        default=None, ge=0, description="A report; never an input of a decision."
    )
    thin: bool = True
    over_subscription_ratio: str = "20"
    reserved_percent: int = Field(default=0, ge=0, le=100)
    physical_floor_percent: int = Field(default=5, ge=0, le=100)
    availability_zone: str | None = None
    capabilities: dict[str, str] = Field(
        default_factory=dict,
        description="Facts that extra specs are matched against; true and false as words.",
    )
    last_error: ErrorRecord | None = None
    conditions: tuple[Condition, ...] = Field(default=(), json_schema_extra=map_list("type"))


class Pool(CustomResource):
    """Capacity that Volumes can be placed on: one bucket of a Backend on one volume host, reported by that host."""

    KIND: ClassVar[str] = "Pool"
    PLURAL: ClassVar[str] = "pools"
    SINGULAR: ClassVar[str] = "pool"
    NAMESPACED: ClassVar[bool] = False
    SHORT_NAMES: ClassVar[tuple[str, ...]] = ("cbp",)
    PRINTER_COLUMNS: ClassVar[tuple[PrinterColumn, ...]] = (
        PrinterColumn("Backend", "string", ".spec.backend"),
        PrinterColumn("Host", "string", ".spec.host"),
        PrinterColumn("Ready", "string", ".status.conditions[?(@.type=='Ready')].status"),
        PrinterColumn("Total", "integer", ".status.totalBytes"),
        PrinterColumn("Free", "integer", ".status.freeBytes"),
        PrinterColumn("Provisioned", "integer", ".status.provisionedBytes"),
        PrinterColumn("Age", "date", ".metadata.creationTimestamp"),
    )
    CEL_RULES: ClassVar[tuple[CelRule, ...]] = (
        CelRule("self == oldSelf", "a Pool's spec cannot be changed", "spec"),
        set_once("poolID"),
    )
    SELECTABLE_FIELDS: ClassVar[tuple[str, ...]] = (".spec.host", ".spec.backend")

    spec: PoolSpec
    status: PoolStatus = Field(default_factory=PoolStatus)


class Provisioning(StrEnum):
    THIN = "Thin"
    THICK = "Thick"


class VolumeTypeSpec(Model):
    extra_specs: dict[str, str] = Field(
        default_factory=dict, description="What a Pool's capabilities must satisfy, with Cinder's operators."
    )
    is_default: bool = Field(
        default=False, description="Taken by Volumes that name no type; the oldest default wins."
    )
    provisioning: Provisioning = Field(
        default=Provisioning.THIN, description="Thin: space is taken as it is written; Thick: at once."
    )
    min_size: str | None = Field(
        default=None, pattern=QUANTITY_PATTERN, max_length=32, description="Smallest Volume of this type."
    )
    max_size: str | None = Field(
        default=None, pattern=QUANTITY_PATTERN, max_length=32, description="Largest Volume of this type."
    )


class VolumeTypeStatus(Model):
    observed_generation: int = Field(default=0, ge=0)
    conditions: tuple[Condition, ...] = Field(default=(), json_schema_extra=map_list("type"))


class VolumeType(CustomResource):
    """A policy that users pick by name: which Pools a Volume may be placed on and how it behaves."""

    KIND: ClassVar[str] = "VolumeType"
    PLURAL: ClassVar[str] = "volumetypes"
    SINGULAR: ClassVar[str] = "volumetype"
    NAMESPACED: ClassVar[bool] = False
    SHORT_NAMES: ClassVar[tuple[str, ...]] = ("cbt", "cbtype")
    PRINTER_COLUMNS: ClassVar[tuple[PrinterColumn, ...]] = (
        PrinterColumn("Default", "boolean", ".spec.isDefault"),
        PrinterColumn("Provisioning", "string", ".spec.provisioning"),
        PrinterColumn("Age", "date", ".metadata.creationTimestamp"),
    )
    CEL_RULES: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            "!has(self.minSize) || !has(self.maxSize) || !isQuantity(self.minSize) || !isQuantity(self.maxSize)"
            " || !quantity(self.maxSize).isLessThan(quantity(self.minSize))",
            "maxSize cannot be below minSize",
            "spec",
            ".maxSize",
        ),
    )

    spec: VolumeTypeSpec = Field(default_factory=VolumeTypeSpec)
    status: VolumeTypeStatus = Field(default_factory=VolumeTypeStatus)
