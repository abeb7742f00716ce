"""Slots and open drivers: fairness between backends, and no closing under a call."""

from __future__ import annotations

import asyncio

import pytest

from cinderblock.core.errors import BackendUnavailable, OperationTimeout, OutOfCapacity
from cinderblock.drivers.base import DriverConfig
from cinderblock.operator.host import drivers
from cinderblock.operator.host.drivers import OpenBackend, OpenBackends, Slots, ask


def test_parked_keys_come_back_one_for_one_in_order() -> None:
    slots = Slots(2)
    keys = [("n", str(i)) for i in range(5)]
    assert [slots.enter("b", key) for key in keys] == [True, True, False, False, False]
    assert not slots.enter("b", keys[2])  # parked once, however often it asks
    assert slots.enter("other", keys[0])
    assert [slots.leave("b"), slots.leave("b")] == [keys[2], keys[3]]
    assert slots.enter("b", keys[2])
    assert slots.leave("b") == keys[4]
    assert slots.leave("other") is None


def test_a_key_that_needs_its_slot_no_more_passes_it_on() -> None:
    slots = Slots(1)
    a, b, c = ("n", "a"), ("n", "b"), ("n", "c")
    assert [slots.enter("x", key) for key in (a, b, c)] == [True, False, False]
    assert slots.leave("x") == b
    assert slots.pass_on(b, needed=None) == c  # b is gone by now
    assert slots.pass_on(b, needed=None) is None  # once
    assert slots.pass_on(c, needed="x") is None  # c takes it
    assert slots.enter("x", c)
    assert not slots.enter("x", a)
    assert slots.leave("x") == a
    assert slots.pass_on(a, needed="elsewhere") is None  # nobody waits
    assert slots.enter("elsewhere", a)


class _Driver:
    closed = False

    async def close(self) -> None:
        self.closed = True


def _opened(driver: _Driver) -> OpenBackend:
    return OpenBackend("b", "uid", "fake", driver, DriverConfig(), False, serving=True)  # type: ignore[arg-type]


async def test_closing_waits_for_the_calls_in_work_and_lets_none_in() -> None:
    backends, driver = OpenBackends(), _Driver()
    backends.put(_opened(driver))
    async with backends.use("b"):
        closing = asyncio.ensure_future(backends.close("b"))
        await asyncio.sleep(0)
        assert not driver.closed
        with pytest.raises(BackendUnavailable):
            async with backends.use("b"):
                pass
    await closing
    assert driver.closed
    assert backends.get("b") is None


async def test_a_driver_that_never_answers_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "CALL_SECONDS", 0.01)
    with pytest.raises(OperationTimeout):
        await ask("x", asyncio.Event().wait())


async def test_a_driver_that_cancels_itself_ends_no_worker() -> None:
    async def fails() -> None:
        raise asyncio.CancelledError

    with pytest.raises(BackendUnavailable):
        await ask("x", fails())
    waiting = asyncio.ensure_future(ask("x", asyncio.Event().wait()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_errors_of_the_tree_pass_and_others_promise_nothing() -> None:
    async def full() -> None:
        raise OutOfCapacity("full")

    async def bug() -> None:
        raise KeyError("bug")

    with pytest.raises(OutOfCapacity):
        await ask("x", full())
    with pytest.raises(BackendUnavailable) as caught:
        await ask("x", bug())
    assert caught.value.reason == "DriverFault"
