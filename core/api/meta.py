"""What all kinds share: the base model, metadata, conditions, and how a kind describes itself to the API server."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.alias_generators import to_camel

from cinderblock.core.errors import GrpcCode


class Model(BaseModel):
    """Base of every model: camelCase outside, snake_case inside, immutable, blind to fields of newer versions."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    def with_(self, **changes: Any) -> Self:
        """A copy with these fields changed; values are taken as they are."""
        unknown = changes.keys() - type(self).model_fields.keys()
        if unknown:
            raise AttributeError(f"{type(self).__name__} has no field {sorted(unknown)}")
        return self.model_copy(update=changes)


class OwnerReference(Model):
    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class ObjectMeta(Model):
    name: str = ""
    namespace: str | None = None
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    finalizers: tuple[str, ...] = ()
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    owner_references: tuple[OwnerReference, ...] = ()


class ConditionStatus(StrEnum):
    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Model):
    """One observation, as metav1.Condition."""

    type: str = Field(description="CamelCase name of what is observed.", max_length=316)
    status: ConditionStatus
    observed_generation: int = Field(default=0, ge=0, description="metadata.generation that was judged.")
    last_transition_time: datetime
    reason: str = Field(description="CamelCase word for programs.", max_length=1024)
    message: str = Field(default="", description="What happened and what to do.", max_length=32768)


def find_condition(conditions: Iterable[Condition], type_: str) -> Condition | None:
    return next((c for c in conditions if c.type == type_), None)


def is_true(conditions: Iterable[Condition], type_: str) -> bool:
    found = find_condition(conditions, type_)
    return found is not None and found.status is ConditionStatus.TRUE


def set_condition(
    conditions: Iterable[Condition],
    type_: str,
    status: bool | None,
    *,
    reason: str,
    message: str = "",
    generation: int,
    now: datetime,
) -> tuple[Condition, ...]:
    """The conditions with this one set; unchanged (same objects, same time) when it says nothing new."""
    value = {True: ConditionStatus.TRUE, False: ConditionStatus.FALSE, None: ConditionStatus.UNKNOWN}[status]
    before = tuple(conditions)
    old = find_condition(before, type_)
    since = old.last_transition_time if old is not None and old.status is value else now
    new = Condition(
        type=type_,
        status=value,
        observed_generation=generation,
        last_transition_time=since,
        reason=reason,
        message=message,
    )
    if old is None:
        return (*before, new)
    return before if old == new else tuple(new if c.type == type_ else c for c in before)


def drop_condition(conditions: Iterable[Condition], type_: str) -> tuple[Condition, ...]:
    return tuple(c for c in conditions if c.type != type_)


class ErrorRecord(Model):
    """An error as data: which spec and which grant it speaks of, so that nobody takes an old one for a new one."""

    reason: str
    message: str = Field(max_length=1024)
    grpc_code: GrpcCode
    observed_generation: int = Field(default=0, ge=0)
    grant: int = Field(default=0, ge=0)


def map_list(*keys: str) -> dict[str, JsonValue]:
    """`json_schema_extra` of a list whose items are told apart by these fields; the API server keeps them unique."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


@dataclass(frozen=True)
class PrinterColumn:
    name: str
    type: Literal["string", "integer", "date", "boolean"]
    json_path: str
    priority: int = 0
    description: str = ""


@dataclass(frozen=True)
class CelRule:
    """A CEL validation; `field_path` says on which field it sits ("" = the root, "spec", "spec.size").

    `blames` is the field below it that the API server's answer names, such as ".size".
    """

    rule: str
    message: str
    field_path: str = ""
    blames: str = ""
    message_expression: str = ""  # a message made at the refusal; `message` is the fallback


def immutable(*fields: str) -> CelRule:
    """These fields of the spec never change, nor come or go. One rule for all of them, for every write pays for
    every rule; the message names what was changed."""

    def same(field: str) -> str:
        return f"(has(self.{field}) ? has(oldSelf.{field}) && self.{field} == oldSelf.{field} : !has(oldSelf.{field}))"

    # The first field that differs, as one chain: a list of names would exceed the server's cost budget.
    chain = "".join(f"!{same(field)} ? 'spec.{field}' : " for field in fields[:-1])
    return CelRule(
        f"self == oldSelf || ({' && '.join(same(field) for field in fields)})",
        f"none of these can be changed: {', '.join(fields)}",
        "spec",
        message_expression=f"({chain}'spec.{fields[-1]}') + ' cannot be changed'",
    )


def set_once(field: str) -> CelRule:
    """Once it has a value, a status field keeps it: no writer, however stale, gives the object another identity."""
    rule = f"!has(oldSelf.{field}) || (has(self.{field}) && self.{field} == oldSelf.{field})"
    return CelRule(rule, f"{field} cannot be changed once it is set", "status", f".{field}")


def never_falls(field: str) -> CelRule:
    """A counter in the status only grows."""
    rule = f"!has(oldSelf.{field}) || (has(self.{field}) && self.{field} >= oldSelf.{field})"
    return CelRule(rule, f"{field} never falls", "status", f".{field}")


class Resource(Model):
    """An object of the API server. Sub-classes add spec and status and say what they are."""

    KIND: ClassVar[str]
    PLURAL: ClassVar[str]
    API_VERSION: ClassVar[str]
    NAMESPACED: ClassVar[bool] = True

    metadata: ObjectMeta = Field(default_factory=ObjectMeta)

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def namespace(self) -> str | None:
        return self.metadata.namespace

    @property
    def uid(self) -> str:
        return self.metadata.uid

    @property
    def deleting(self) -> bool:
        return self.metadata.deletion_timestamp is not None

    def has_finalizer(self, finalizer: str) -> bool:
        return finalizer in self.metadata.finalizers

    def with_finalizer(self, finalizer: str) -> Self:
        if self.has_finalizer(finalizer):
            return self
        return self.with_(metadata=self.metadata.with_(finalizers=(*self.metadata.finalizers, finalizer)))

    def without_finalizer(self, finalizer: str) -> Self:
        left = tuple(f for f in self.metadata.finalizers if f != finalizer)
        return self.with_(metadata=self.metadata.with_(finalizers=left))

    def to_api(self) -> dict[str, Any]:
        """The JSON body of this object: no nulls, no empty metadata fields."""
        body = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        meta = {k: v for k, v in body.get("metadata", {}).items() if v not in ("", {}, [], 0)}
        return {"apiVersion": self.API_VERSION, "kind": self.KIND, **body, "metadata": meta}


class CustomResource(Resource):
    """One of our own kinds: what its CRD needs besides the schema."""

    API_VERSION: ClassVar[str] = "cinderblock.io/v1alpha1"
    SINGULAR: ClassVar[str]
    SHORT_NAMES: ClassVar[tuple[str, ...]] = ()
    PRINTER_COLUMNS: ClassVar[tuple[PrinterColumn, ...]] = ()
    SELECTABLE_FIELDS: ClassVar[tuple[str, ...]] = ()
    CEL_RULES: ClassVar[tuple[CelRule, ...]] = ()


R = TypeVar("R", bound=Resource)
