"""StorageNode: what a node says of itself as an initiator. Owned by its Node object, written by the node only."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from cinderblock.core.api.meta import Condition, CustomResource, Model, PrinterColumn, map_list


class StorageNodeSpec(Model):
    pass


class StorageNodeStatus(Model):
    boot_id: str | None = Field(default=None, alias="bootID")
    node_uid: str | None = Field(
        default=None, alias="nodeUID", description="UID of the Node this speaks for."
    )
    protocols: tuple[str, ...] = Field(default=(), description="Protocols that this node's connectors speak.")
    addresses: tuple[str, ...] = ()
    iqn: str | None = None
    nqn: str | None = None
    conditions: tuple[Condition, ...] = Field(default=(), json_schema_extra=map_list("type"))


class StorageNode(CustomResource):
    """What a node says of itself as an initiator: where and by which protocols it can be given a device."""

    KIND: ClassVar[str] = "StorageNode"
    PLURAL: ClassVar[str] = "storagenodes"
    SINGULAR: ClassVar[str] = "storagenode"
    NAMESPACED: ClassVar[bool] = False
    SHORT_NAMES: ClassVar[tuple[str, ...]] = ("cbn",)
    PRINTER_COLUMNS: ClassVar[tuple[PrinterColumn, ...]] = (
        PrinterColumn("Protocols", "string", ".status.protocols"),
        PrinterColumn("Age", "date", ".metadata.creationTimestamp"),
    )

    spec: StorageNodeSpec = Field(default_factory=StorageNodeSpec)
    status: StorageNodeStatus = Field(default_factory=StorageNodeStatus)
