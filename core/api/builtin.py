"""The few fields that we read or write of Kubernetes' own kinds."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from pydantic import Field

from cinderblock.core.api.meta import Model, Resource


class NodeInfo(Model):
    boot_id: str = Field(default="", alias="bootID")


class NodeAddress(Model):
    type: str
    address: str


class NodeStatus(Model):
    node_info: NodeInfo = Field(default_factory=NodeInfo)
    addresses: tuple[NodeAddress, ...] = ()


class Node(Resource):
    KIND: ClassVar[str] = "Node"
    PLURAL: ClassVar[str] = "nodes"
    API_VERSION: ClassVar[str] = "v1"
    NAMESPACED: ClassVar[bool] = False

    status: NodeStatus = Field(default_factory=NodeStatus)


class LeaseSpec(Model):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    # As text: MicroTime has six digits, and a renewal is recognised by change, never by comparing clocks.
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Lease(Resource):
    KIND: ClassVar[str] = "Lease"
    PLURAL: ClassVar[str] = "leases"
    API_VERSION: ClassVar[str] = "coordination.k8s.io/v1"

    spec: LeaseSpec = Field(default_factory=LeaseSpec)


class ObjectRef(Model):
    kind: str | None = None
    namespace: str | None = None
    name: str | None = None
    uid: str | None = None


class CsiVolumeSource(Model):
    driver: str
    volume_handle: str


class PersistentVolumeSpec(Model):
    csi: CsiVolumeSource | None = None
    claim_ref: ObjectRef | None = None
    persistent_volume_reclaim_policy: str | None = None


class PersistentVolumeStatus(Model):
    phase: str | None = None


class PersistentVolume(Resource):
    KIND: ClassVar[str] = "PersistentVolume"
    PLURAL: ClassVar[str] = "persistentvolumes"
    API_VERSION: ClassVar[str] = "v1"
    NAMESPACED: ClassVar[bool] = False

    spec: PersistentVolumeSpec = Field(default_factory=PersistentVolumeSpec)
    status: PersistentVolumeStatus = Field(default_factory=PersistentVolumeStatus)


class PersistentVolumeClaim(Resource):
    KIND: ClassVar[str] = "PersistentVolumeClaim"
    PLURAL: ClassVar[str] = "persistentvolumeclaims"
    API_VERSION: ClassVar[str] = "v1"


class CustomResourceDefinition(Resource):
    """Only carried, never looked into: `spec` is the generator's output."""

    KIND: ClassVar[str] = "CustomResourceDefinition"
    PLURAL: ClassVar[str] = "customresourcedefinitions"
    API_VERSION: ClassVar[str] = "apiextensions.k8s.io/v1"
    NAMESPACED: ClassVar[bool] = False

    spec: dict[str, Any] = Field(default_factory=dict)


class Event(Resource):
    """core/v1 Event, the form that every kubectl describes."""

    KIND: ClassVar[str] = "Event"
    PLURAL: ClassVar[str] = "events"
    API_VERSION: ClassVar[str] = "v1"

    involved_object: dict[str, str] = Field(default_factory=dict)
    type: str = "Warning"
    reason: str = ""
    message: str = ""
    count: int = 1
    first_timestamp: datetime | None = None
    last_timestamp: datetime | None = None
    source: dict[str, str] = Field(default_factory=dict)
    reporting_component: str = ""
    reporting_instance: str = ""
