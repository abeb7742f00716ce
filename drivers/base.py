"""The driver contract: a small VolumeDriver, and one Protocol for each further ability.

What a driver can do is what it implements: capabilities, scheduler filters, CSI answers and the contract tests
that run (tests/contract) all follow from that. Every method is idempotent by (handle, grant): a repeated call,
also by another process after a crash, ends in the same state. Every method ends within its own deadlines and
raises only StorageError's of core/errors.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from cinderblock.core.api.attachment import Connection
from cinderblock.core.clock import Clock
from cinderblock.core.names import object_name
from cinderblock.core.process import Runner


class DriverConfig(BaseModel):
    """Base of every driver's configuration: camelCase keys; unknown keys are an error that names them."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel)


@dataclass(frozen=True)
class DriverContext:
    """What a driver gets from its host."""

    backend: str
    node: str | None  # None: served by the operator, for every node
    pools_root: Path  # folder that hosts and node agents both mount; node-local drivers stay below it
    runner: Runner
    clock: Clock


@dataclass(frozen=True, order=True)
class VolumeRef:
    """What the backend calls a volume."""

    handle: str
    grant: int

    @property
    def object_name(self) -> str:
        return object_name(self.handle, self.grant)

    @classmethod
    def from_object_name(cls, name: str) -> VolumeRef | None:
        """The ref of a name that `object_name` made; None for a name that is not ours."""
        handle, _, grant = name.rpartition("-")
        if not handle or not grant.isascii() or not grant.isdigit() or str(int(grant)) != grant:
            return None
        return cls(handle, int(grant))


@dataclass(frozen=True)
class VolumeInfo:
    ref: VolumeRef
    size_bytes: int
    pool: str | None
    sealed: bool
    complete: bool = True  # False, in an inventory only: half-made; create finishes it, delete removes it


@dataclass(frozen=True)
class CreateVolume:
    ref: VolumeRef
    pool: str | None  # the driver's own name of the pool, as in PoolReport.name
    size_bytes: int
    thick: bool = False


@dataclass(frozen=True)
class PoolReport:
    name: str | None  # None: the driver has just one
    pool_id: str
    total_bytes: int
    free_bytes: int  # really free
    allocated_bytes: int  # really used by volumes
    provisioned_bytes: int  # sum of the sizes of the volumes
    thin: bool
    capabilities: dict[str, str] = field(default_factory=dict)  # for extra specs; true and false as words


@dataclass(frozen=True)
class InitiatorFacts:
    """Who wants in: from the StorageNode."""

    node: str
    addresses: tuple[str, ...] = ()
    iqn: str | None = None
    nqn: str | None = None


@dataclass(frozen=True)
class ExportRequest:
    initiator: InitiatorFacts
    generation: int
    read_only: bool


class VolumeDriver(Protocol):
    """What every driver must do. Constructed with (config, context); construction has no effects."""

    Config: ClassVar[type[DriverConfig]]
    node_local: ClassVar[
        bool
    ]  # True: needs a node (Backend.spec.nodeSelector); False: served by the operator

    async def open(self, known_pool_ids: dict[str | None, str]) -> None:
        """Make ready: make or adopt the pools' places and take their locks.

        `known_pool_ids` is what Pool.status.poolID says, by pool name. A pool that is known and carries another
        marker or none must be refused, never made anew (an unmounted disk must not be written under).
        Errors: InvalidRequest (configuration), BackendUnavailable (may pass), Lost (marker missing or foreign).
        """

    async def close(self) -> None:
        """Let go of locks; volumes stay reachable for their nodes."""

    async def pools(self) -> Sequence[PoolReport]:
        """Fresh figures. Errors: BackendUnavailable."""

    async def create_volume(self, request: CreateVolume) -> VolumeInfo:
        """Make it, unsealed, reading as zeros. Exists with that size = success.

        Errors: OutOfCapacity; IncompatibleExists (same ref, other size); BackendFault only when nothing is left;
        BackendUnavailable or OperationTimeout when something may be.
        """

    async def seal_volume(self, ref: VolumeRef) -> None:
        """Record that the CR knows this object: from now on inventory never deletes it. Missing: NotFound."""

    async def delete_volume(self, ref: VolumeRef) -> None:
        """Delete it. Missing = success. Errors: VolumeInUse (still open somewhere), BackendUnavailable."""

    async def get_volume(self, ref: VolumeRef) -> VolumeInfo | None:
        """What is there; None only when it is certainly not there, BackendUnavailable when one cannot tell."""

    async def export(self, ref: VolumeRef, request: ExportRequest) -> Connection:
        """Make it reachable by that node. Repeated = same connection. Errors: NotFound, NotSupported (that node)."""

    async def unexport(self, ref: VolumeRef, node: str) -> None:
        """Take it away. Not exported or missing = success."""

    async def inventory(self) -> Sequence[VolumeInfo]:
        """Everything of ours in the backend, also half-made things, from a fresh listing."""


@runtime_checkable
class CanExtend(Protocol):
    online_extend: ClassVar[bool]  # also while exported

    async def extend_volume(self, ref: VolumeRef, size_bytes: int) -> VolumeInfo:
        """Grow to at least size_bytes; new bytes read as zeros. Already that large = success.

        Errors: NotFound, OutOfCapacity, VolumeInUse (online not supported), BackendFault (old size stands).
        """


@runtime_checkable
class CanFence(Protocol):
    async def fence(self, ref: VolumeRef, node: str, generation: int) -> None:
        """Cut the node off at the target, whatever it does. Afterwards no write of that generation can land."""


class DriverFactory(Protocol):
    """What an entry point of group `cinderblock.drivers` names: the driver's class."""

    Config: type[DriverConfig]
    node_local: bool

    def __call__(self, config: DriverConfig, context: DriverContext) -> VolumeDriver: ...
