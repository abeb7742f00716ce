"""Work that outlives its caller: started once, joined by equal calls, refused to others."""

import asyncio

import pytest

from cinderblock.core.errors import BackendFault, OperationPending
from cinderblock.csi.work import KeyedWork


class Effect:
    def __init__(self) -> None:
        self.started = 0
        self.finished = 0
        self.go_on = asyncio.Event()

    async def run(self) -> int:
        self.started += 1
        await self.go_on.wait()
        self.finished += 1
        return self.started


async def test_equal_calls_share_one_effect() -> None:
    work, effect = KeyedWork("test"), Effect()
    calls = [asyncio.create_task(work.run("v", effect.run, 5)) for _ in range(20)]
    await asyncio.sleep(0)
    effect.go_on.set()
    assert await asyncio.gather(*calls) == [1] * 20
    assert not work.busy("v")


async def test_a_deadline_leaves_the_work_running_and_a_retry_joins_it() -> None:
    work, effect = KeyedWork("test"), Effect()
    for _ in range(20):
        with pytest.raises(OperationPending):
            await work.run("v", effect.run, 0.001)
    effect.go_on.set()
    assert await work.run("v", effect.run, 5) == 1
    assert (effect.started, effect.finished) == (1, 1)


async def test_a_cancelled_caller_does_not_cancel_the_work() -> None:
    work, effect = KeyedWork("test"), Effect()
    caller = asyncio.create_task(work.run("v", effect.run, 5))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert work.busy("v")
    effect.go_on.set()
    assert await work.run("v", effect.run, 5) == 1


async def test_other_work_on_the_same_key_waits_its_turn() -> None:
    work, effect = KeyedWork("test"), Effect()
    first = asyncio.create_task(work.run("v", effect.run, 5, what="stage"))
    await asyncio.sleep(0)
    with pytest.raises(OperationPending):
        await work.run("v", effect.run, 0.001, what="unstage")
    second = asyncio.create_task(work.run("v", effect.run, 5, what="unstage"))
    await asyncio.sleep(0)
    assert effect.started == 1
    effect.go_on.set()
    assert await asyncio.gather(first, second) == [1, 2]


async def test_every_caller_gets_the_error_and_the_key_is_free_again() -> None:
    work = KeyedWork("test")

    async def fail() -> None:
        await asyncio.sleep(0)
        raise BackendFault("broken")

    results = await asyncio.gather(*(work.run("v", fail, 5) for _ in range(3)), return_exceptions=True)
    assert [type(r) for r in results] == [BackendFault] * 3
    assert not work.busy("v")


async def test_a_stop_answers_pending_never_a_cancellation() -> None:
    work, effect = KeyedWork("test"), Effect()
    caller = asyncio.create_task(work.run("v", effect.run, 5))
    await asyncio.sleep(0)
    await work.drain(0.01)
    with pytest.raises(OperationPending, match="interrupted"):
        await caller
    assert not work.busy("v")
