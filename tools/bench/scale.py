"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Counts of objects, and seconds."""

    rounds: int
    serial: int  # one at a time, over all rounds
    burst: int
    idle_volumes: int
    idle_seconds: float
    attachments: int
    claims: int
    fio_rounds: int
    fio_seconds: float
    fio_bytes: int


FULL = Scale(
    rounds=2,
    serial=50,
    burst=200,
    idle_volumes=500,
    idle_seconds=60,
    attachments=30,
    claims=100,
    fio_rounds=5,
    fio_seconds=1.5,
    fio_bytes=512 * 2**20,
)
QUICK = Scale(
    rounds=1,
    serial=20,
    burst=60,
    idle_volumes=100,
    idle_seconds=15,
    attachments=8,
    claims=30,
    fio_rounds=2,
    fio_seconds=1,
    fio_bytes=128 * 2**20,
)
