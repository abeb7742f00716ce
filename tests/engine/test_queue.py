"""The queue never loses a key, never runs one twice at once, and never ends."""

import asyncio
import contextlib

import pytest
from fake_clock import FakeClock, settle

from cinderblock.core.errors import BackendUnavailable
from cinderblock.core.kube.port import Conflict, KubeUnavailable
from cinderblock.operator.engine.queue import Backoff, WorkQueue

A, B = ("ns", "a"), ("ns", "b")


@pytest.fixture
def clock():
    return FakeClock()


@contextlib.asynccontextmanager
async def serving(reconcile, clock, **options):
    queue = WorkQueue("test", reconcile, workers=options.pop("workers", 2), clock=clock, **options)
    task = asyncio.create_task(queue.run())
    try:
        yield queue
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_key_added_many_times_runs_once(clock):
    runs = []

    async def reconcile(key):
        runs.append(key)

    async with serving(reconcile, clock) as queue:
        for _ in range(5):
            queue.add(A)
        queue.add(B)
        await queue.wait_idle()
    assert sorted(runs) == [A, B]


async def test_a_key_never_runs_twice_at_once_and_runs_again_when_added_meanwhile(clock):
    running, most, runs = 0, 0, 0
    gate = asyncio.Event()

    async def reconcile(key):
        nonlocal running, most, runs
        runs += 1
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    async with serving(reconcile, clock, workers=4) as queue:
        queue.add(A)
        await settle()
        queue.add(A)
        queue.add(A)
        await settle()
        assert runs == 1
        gate.set()
        await queue.wait_idle()
    assert (runs, most) == (2, 1)


async def test_no_more_keys_run_at_once_than_there_are_workers(clock):
    running, most = 0, 0
    gate = asyncio.Event()

    async def reconcile(key):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    async with serving(reconcile, clock, workers=3) as queue:
        for i in range(10):
            queue.add(("ns", str(i)))
        await settle()
        assert running == 3
        gate.set()
        await queue.wait_idle()
    assert most == 3


async def test_a_reconcile_is_called_again_after_the_time_it_asked_for(clock):
    runs = []

    async def reconcile(key):
        runs.append(clock.monotonic())
        return 10.0 if len(runs) == 1 else None

    async with serving(reconcile, clock) as queue:
        queue.add(A)
        await queue.wait_idle()
        await clock.advance(9.9)
        assert len(runs) == 1
        await clock.advance(0.2)
        assert len(runs) == 2
        await clock.advance(1000)
    assert len(runs) == 2


async def test_the_earliest_of_several_delays_counts_and_now_beats_them_all(clock):
    runs = []

    async def reconcile(key):
        runs.append(clock.monotonic() - 1000)

    async with serving(reconcile, clock) as queue:
        queue.add(A, after=30)
        queue.add(A, after=5)
        queue.add(A, after=60)
        queue.add(B, after=5)
        queue.add(B)
        await clock.advance(100)
    assert runs == [0.0, 5.0]


@pytest.mark.parametrize("error", [BackendUnavailable("down"), KubeUnavailable("hangs"), RuntimeError("bug")])
async def test_faults_back_off_per_key_and_a_success_forgets_them(clock, error, caplog):
    runs = []
    fail = True

    async def reconcile(key):
        runs.append(clock.monotonic() - 1000)
        if key == A and fail:
            raise error

    async with serving(reconcile, clock, backoff=Backoff(first=1, cap=8)) as queue:
        queue.add(A)
        await clock.advance(24)
        assert runs == [0, 1, 3, 7, 15, 23]
        runs.clear()
        queue.add(B)
        await clock.advance(0)
        assert runs == [24], "another key is not held up"
        fail = False
        await clock.advance(8)
        fail = True
        runs.clear()
        queue.add(A)
        await clock.advance(1)
        assert runs == [32, 33], "the back-off began anew"
    assert ("Traceback" in caplog.text) == isinstance(error, RuntimeError)
    assert str(error) in caplog.text


async def test_a_conflict_is_tried_again_at_once_when_the_news_is_there(clock):
    runs = []

    async def reconcile(key):
        runs.append(clock.monotonic())
        if len(runs) == 1:
            queue.add(A)  # the watch brought what the write conflicted with
            raise Conflict("stale")

    async with serving(reconcile, clock) as queue:
        queue.add(A)
        await queue.wait_idle()
        await clock.advance(10)
    assert len(runs) == 2
    assert runs[0] == runs[1]


async def test_conflicts_without_news_slow_down(clock):
    runs = []

    async def reconcile(key):
        runs.append(clock.monotonic())
        raise Conflict("stale")

    async with serving(reconcile, clock) as queue:
        queue.add(A)
        await clock.advance(0.05)
        assert len(runs) == 2
        await clock.advance(60)
    assert len(runs) < 25


async def test_a_fault_that_changes_its_own_object_is_no_hot_loop(clock):
    runs = []

    async def reconcile(key):
        runs.append(clock.monotonic())
        queue.add(A)  # its own status write came back
        raise BackendUnavailable("down")

    async with serving(reconcile, clock, backoff=Backoff(first=10)) as queue:
        queue.add(A)
        await clock.advance(5)
    assert 2 <= len(runs) <= 6


async def test_depth_and_runs_are_measured(clock):
    class Recorder:
        def __init__(self):
            self.depths, self.runs = [], []

        def depth(self, queue, keys):
            self.depths.append((queue, keys))

        def ran(self, queue, seconds, *, failed):
            self.runs.append((queue, seconds, failed))

    async def reconcile(key):
        await clock.sleep(2)
        if key == B:
            raise BackendUnavailable("down")

    recorder = Recorder()
    async with serving(reconcile, clock, workers=1, metrics=recorder) as queue:
        queue.add(A)
        queue.add(B)
        await clock.advance(5)
    assert recorder.runs[:2] == [("test", 2.0, False), ("test", 2.0, True)]
    assert recorder.depths[:4] == [("test", 1), ("test", 2), ("test", 1), ("test", 0)]
