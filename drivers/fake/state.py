"""What the fake backend holds: in memory, or in a JSON file that outlives the process.

Every transaction on the file reads it under a lock and replaces it by rename, so a process killed at any moment
leaves the old or the new content, and two processes never lose each other's changes.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import BaseModel, Field

from cinderblock.core.errors import BackendUnavailable

T = TypeVar("T")


class FakeVolume(BaseModel):
    handle: str
    grant: int
    pool: str | None
    size_bytes: int
    thick: bool
    sealed: bool = False
    complete: bool = True
    exports: dict[str, int] = Field(default_factory=dict)  # generation by node
    fenced: dict[str, int] = Field(default_factory=dict)  # highest fenced generation by node


class FakeState(BaseModel):
    pool_ids: dict[str, str] = Field(default_factory=dict)  # by pool name, "" = the one without a name
    volumes: dict[str, FakeVolume] = Field(default_factory=dict)  # by object name
    fault_calls: dict[str, int] = Field(default_factory=dict)  # calls that each fault has seen
    effects: dict[str, int] = Field(
        default_factory=dict
    )  # real changes by verb: what "one effect" is read from


class Place(Protocol):
    """Where the state is."""

    async def transact(self, change: Callable[[FakeState], T]) -> T:
        """Run `change` on the state, alone. What it changed is kept also when it raises a StorageError."""


class MemoryPlace:
    def __init__(self) -> None:
        self.state = FakeState()

    async def transact(self, change: Callable[[FakeState], T]) -> T:
        return change(self.state)


class FilePlace:
    def __init__(self, path: Path) -> None:
        self.path = path

    async def transact(self, change: Callable[[FakeState], T]) -> T:
        return await asyncio.to_thread(self._transact, change)

    def _transact(self, change: Callable[[FakeState], T]) -> T:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.with_name(self.path.name + ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                before = self.path.read_text() if self.path.exists() else "{}"
                state = FakeState.model_validate_json(before)
                try:
                    return change(state)
                finally:
                    self._store(before, state)
        except (OSError, ValueError) as error:
            raise BackendUnavailable(f"state file {self.path}: {error}") from error

    def _store(self, before: str, state: FakeState) -> None:
        after = state.model_dump_json()
        if after == before:
            return
        temporary = self.path.with_name(self.path.name + ".new")
        with temporary.open("w") as file:
            file.write(after)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
