"""Settings of the fake driver. Faults and latency are data, so that a test or a rehearsal is repeatable."""

from __future__ import annotations

import hashlib
from enum import StrEnum

from pydantic import Field, field_validator, model_validator

from cinderblock.core.errors import GRPC_CODES, BackendFault, StorageError
from cinderblock.core.units import GIB
from cinderblock.drivers.base import DriverConfig
from cinderblock.drivers.fields import SizeBytes


class Verb(StrEnum):
    OPEN = "open"
    POOLS = "pools"
    CREATE = "create"
    SEAL = "seal"
    DELETE = "delete"
    GET = "get"
    EXPORT = "export"
    UNEXPORT = "unexport"
    INVENTORY = "inventory"
    EXTEND = "extend"
    FENCE = "fence"


class FaultMoment(StrEnum):
    BEFORE = "Before"  # nothing was done
    HALF = "Half"  # create only: a half-made object stays
    AFTER = "After"  # all was done, only the answer is lost


def error_classes() -> dict[str, type[StorageError]]:
    """Every error of the tree by its name, leaves included."""
    found: dict[str, type[StorageError]] = {}
    waiting = list(GRPC_CODES)
    while waiting:
        cls = waiting.pop()
        if cls.__init__ is StorageError.__init__:  # one that is raised with a message alone
            found[cls.__name__] = cls
        waiting.extend(cls.__subclasses__())
    return found


class Fault(DriverConfig):
    """Raise `error` in `verb`: after letting `skip` matching calls pass, `times` times (absent: always)."""

    verb: Verb
    error: str = "BackendUnavailable"
    message: str = "injected fault"
    when: FaultMoment = FaultMoment.BEFORE
    skip: int = Field(default=0, ge=0)
    times: int | None = Field(default=None, ge=1)
    pool: str | None = Field(default=None, description="Only calls about this pool.")
    handle: str | None = Field(default=None, description="Only calls about this volume.")
    label: str = Field(default="", description="Tells two equal faults apart: a new label counts anew.")

    @field_validator("error")
    @classmethod
    def _known_error(cls, value: str) -> str:
        if value not in (known := error_classes()):
            raise ValueError(f"no such error; known: {', '.join(sorted(known))}")
        return value

    @model_validator(mode="after")
    def _half_is_for_create(self) -> Fault:
        if self.when is FaultMoment.HALF and self.verb is not Verb.CREATE:
            raise ValueError("Half is only for verb create")
        return self

    @property
    def key(self) -> str:
        """Under which the state counts the calls that this fault has seen."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def exception(self) -> StorageError:
        return error_classes().get(self.error, BackendFault)(self.message)


class FakePoolConfig(DriverConfig):
    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    total_size: SizeBytes


class FakeConfig(DriverConfig):
    total_size: SizeBytes = Field(default=100 * GIB, description="Of the one pool, where `pools` is absent.")
    pools: tuple[FakePoolConfig, ...] = ()
    thin: bool = True
    state_file: str | None = Field(
        default=None,
        min_length=1,
        description="JSON file that keeps the volumes; relative to the pools' root. Absent: in memory.",
    )
    latency_seconds: dict[Verb, float] = Field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    capabilities: dict[str, str] = Field(default_factory=dict, description="More facts for extra specs.")

    @model_validator(mode="after")
    def _sound(self) -> FakeConfig:
        names = [pool.name for pool in self.pools]
        if len(set(names)) != len(names):
            raise ValueError("two pools have one name")
        if any(seconds < 0 for seconds in self.latency_seconds.values()):
            raise ValueError("latencySeconds is 0 or more")
        return self

    def pool_sizes(self) -> dict[str | None, int]:
        """total bytes by pool name; None is the one pool without a name."""
        if self.pools:
            return {pool.name: pool.total_size for pool in self.pools}
        return {None: self.total_size}
