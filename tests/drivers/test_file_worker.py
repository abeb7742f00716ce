"""Blocking calls: a deadline frees the caller, never the volume that is worked on."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from cinderblock.core.errors import BackendUnavailable, OperationTimeout
from cinderblock.drivers.file.worker import Worker


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker("test")
    yield worker
    assert await worker.close(10)


async def test_calls_of_one_key_never_overlap_and_others_do_not_wait(worker: Worker) -> None:
    inside = 0
    most = 0
    lock = threading.Lock()

    def call() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        threading.Event().wait(0.002)
        with lock:
            inside -= 1

    await asyncio.gather(*(worker.run(call, key="a", timeout=10) for _ in range(20)))
    assert most == 1
    gate = threading.Event()
    blocked = asyncio.ensure_future(worker.run(gate.wait, key="a", timeout=10))
    assert await worker.run(lambda: "free", key="b", timeout=10) == "free"
    gate.set()
    assert await blocked


async def test_the_deadline_leaves_the_work_and_its_lock(worker: Worker) -> None:
    gate, order = threading.Event(), list[str]()

    def slow() -> None:
        gate.wait(10)
        order.append("first")

    with pytest.raises(OperationTimeout, match="the work goes on"):
        await worker.run(slow, key="a", timeout=0.5)
    second = asyncio.ensure_future(worker.run(lambda: order.append("second"), key="a", timeout=10))
    await worker.run(lambda: None, key="b", timeout=10)
    assert order == []
    gate.set()
    await second
    assert order == ["first", "second"]


async def test_what_no_thread_has_begun_by_the_deadline_never_begins(worker: Worker) -> None:
    """A disk that hangs must not pile up work for the moment that it comes back."""
    gate, begun = threading.Event(), list[int]()
    hanging = [asyncio.ensure_future(worker.run(lambda: gate.wait(10), timeout=10)) for _ in range(8)]
    await asyncio.sleep(0)
    for number in range(20):
        with pytest.raises(OperationTimeout):
            await worker.run(lambda number=number: begun.append(number), key="a", timeout=0.001)
    gate.set()
    await asyncio.gather(*hanging)
    await worker.run(lambda: None, key="a", timeout=10)
    assert begun == []


@pytest.mark.parametrize("how", ["deadline", "cancelled"])
async def test_what_nobody_waits_for_any_more_is_handed_over(worker: Worker, how: str) -> None:
    begun, gate, closed = threading.Event(), threading.Event(), threading.Event()

    def make() -> str:
        begun.set()
        gate.wait(10)
        return "descriptor"

    def abandon(result: str) -> None:
        assert result == "descriptor"
        closed.set()

    timeout = 0.5 if how == "deadline" else 10
    task = asyncio.ensure_future(worker.run(make, timeout=timeout, abandoned=abandon))
    assert await asyncio.to_thread(begun.wait, 10)
    if how == "cancelled":
        task.cancel()
    with pytest.raises((OperationTimeout, asyncio.CancelledError)):
        await task
    gate.set()
    assert await asyncio.to_thread(closed.wait, 10)


async def test_errors_reach_the_caller_and_free_the_key(worker: Worker) -> None:
    def fail() -> None:
        raise BackendUnavailable("no disk")

    for _ in range(2):
        with pytest.raises(BackendUnavailable, match="no disk"):
            await worker.run(fail, key="a", timeout=10)


async def test_close_tells_whether_a_thread_still_works() -> None:
    worker, gate = Worker("test"), threading.Event()
    with pytest.raises(OperationTimeout):
        await worker.run(lambda: gate.wait(10), key="a", timeout=0.01)
    assert not await worker.close(0.01)
    with pytest.raises(BackendUnavailable, match="closed"):
        await worker.run(lambda: None, timeout=1)
    gate.set()
    assert await worker.close(10)
