"""Who may try again when."""

from __future__ import annotations

import pytest
from fake_clock import FakeClock

from cinderblock.operator.control.waiting import Waiting

V, W = ("ns", "v"), ("ns", "w")


@pytest.fixture
def woken() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def waiting(clock, woken) -> Waiting:
    made = Waiting(clock)
    made.wakes(lambda key, seconds: woken.append(key))
    return made


def test_back_off_doubles_up_to_five_minutes(waiting, clock):
    assert waiting.remaining(V, 1) == 0
    delays = [waiting.wait(V, 1) for _ in range(12)]
    assert delays[:4] == [1, 2, 4, 8]
    assert delays[-1] == 300
    assert waiting.remaining(V, 1) == 300
    clock.jump(300)
    assert waiting.remaining(V, 1) == 0


def test_a_changed_spec_begins_anew(waiting):
    for _ in range(5):
        waiting.wait(V, 1)
    assert waiting.remaining(V, 2) == 0
    assert waiting.wait(V, 2) == 1


def test_a_grant_does_not_forgive_earlier_cycles(waiting):
    waiting.wait(V, 1, refused=True)
    waiting.granted(V)
    assert waiting.remaining(V, 1) == 0
    assert len(waiting) == 0
    assert waiting.wait(V, 1, refused=True) == 2
    waiting.forget(V)
    assert waiting.wait(V, 1, refused=True) == 1


def test_room_wakes_those_that_no_pool_took(waiting, clock, woken):
    for _ in range(6):
        waiting.wait(V, 1)
        waiting.wait(W, 1, refused=True)
    waiting.room_grew()
    assert woken == [V]
    clock.jump(0.1)
    assert waiting.remaining(V, 1) == 0
    assert waiting.remaining(W, 1) > 30


def test_a_changed_world_wakes_all(waiting, woken):
    waiting.wait(V, 1)
    waiting.wait(W, 1, refused=True)
    waiting.world_changed()
    assert sorted(woken) == [V, W]


def test_room_wakes_the_longest_waiting_first_and_not_everybody(waiting, woken):
    keys = [("ns", f"v{i}") for i in range(100)]
    for key in keys:
        waiting.wait(key, 1)
    waiting.room_grew()
    assert woken == keys[:64]
    for key in keys[:64]:
        waiting.wait(key, 1)
    woken.clear()
    waiting.room_grew()
    assert woken[:36] == keys[64:]


def test_waiting_for_a_first_pool_does_not_slow_down_what_pools_refuse():
    """At an install every new type and pool wakes a Volume: that many tries say nothing of the pools' refusals."""
    waiting = Waiting(FakeClock())
    for _ in range(8):
        waiting.wait(V, 1)
    assert waiting.wait(V, 1, refused=True) == 1.0
    waiting.granted(V)
    assert waiting.wait(V, 1, refused=True) == 2.0
    assert waiting.wait(V, 1) == 256.0
