"""The Volumes that wait for a grant: who may try again when, and who is woken by what.

A set of its own, so that a change of a pool costs what waits, never all volumes. Back-off is per Volume and
outlives a cycle: it starts anew when its spec changes, and is forgotten when the Volume is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from cinderblock.core.clock import Clock
from cinderblock.core.kube.store import StoreKey
from cinderblock.operator.engine.queue import Backoff

# Pools report in bursts; a wake-up may wait that long so that one try serves them all.
_GATHER_SECONDS = 0.05
_WOKEN_AT_ONCE = 64


@dataclass
class _Entry:
    generation: int
    tries: Counter[bool] = field(default_factory=Counter)  # by whether pools refused
    not_before: float = 0.0
    waits: bool = False
    refused: bool = False


class Waiting:
    def __init__(self, clock: Clock, backoff: Backoff | None = None) -> None:
        self._clock = clock
        self._wake: Callable[[StoreKey, float], None] = lambda key, seconds: None
        self._backoff = backoff or Backoff(first=1.0, cap=300.0)
        self._entries: dict[StoreKey, _Entry] = {}

    def wakes(self, wake: Callable[[StoreKey, float], None]) -> None:
        """`wake(key, seconds)` puts a key into the queue of Volumes."""
        self._wake = wake

    def __len__(self) -> int:
        return sum(entry.waits for entry in self._entries.values())

    def remaining(self, key: StoreKey, generation: int) -> float:
        """Seconds until this Volume may try; 0 = now. A changed spec may always try."""
        entry = self._entries.get(key)
        if entry is None or not entry.waits:
            return 0.0
        if entry.generation != generation:
            self._entries.pop(key)
            return 0.0
        return max(entry.not_before - self._clock.monotonic(), 0.0)

    def wait(self, key: StoreKey, generation: int, *, refused: bool = False) -> float:
        """It found nothing. `refused` = pools were tried and said no: then only time and real news help.

        Returns the seconds until it may try again.
        """
        entry = self._entries.pop(key, None)
        if entry is None or entry.generation != generation:
            entry = _Entry(generation)
        entry.tries[refused] += 1
        entry.waits, entry.refused = True, refused
        delay = self._backoff.delay(entry.tries[refused])
        entry.not_before = self._clock.monotonic() + delay
        self._entries[key] = entry  # at the end: who was woken last waits longest for the next time
        return delay

    def granted(self, key: StoreKey) -> None:
        """It waits no longer; the count stays until it is made."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.waits = False

    def forget(self, key: StoreKey) -> None:
        self._entries.pop(key, None)

    def room_grew(self) -> None:
        """Some pool has more room: those that no pool could take may try, the longest waiting first."""
        self._wake_up([k for k, e in self._entries.items() if e.waits and not e.refused][:_WOKEN_AT_ONCE])

    def world_changed(self) -> None:
        """A pool, Backend or VolumeType came, recovered or became another: everybody may try."""
        self._wake_up([k for k, e in self._entries.items() if e.waits])

    def _wake_up(self, keys: list[StoreKey]) -> None:
        due = self._clock.monotonic() + _GATHER_SECONDS
        for key in keys:
            entry = self._entries[key]
            entry.not_before = min(entry.not_before, due)
            self._wake(key, _GATHER_SECONDS)
