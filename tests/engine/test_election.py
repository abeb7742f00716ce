"""Never two leaders, and never none for longer than a term."""

import asyncio
import contextlib
import subprocess
import sys
import threading

import pytest
from fake_clock import FakeClock, settle
from fake_kube import FakeKube

from cinderblock.core.api import Volume
from cinderblock.core.api.builtin import Lease, LeaseSpec
from cinderblock.core.api.meta import ObjectMeta
from cinderblock.core.api.volume import VolumeSpec
from cinderblock.core.kube.port import Conflict, KubeUnavailable
from cinderblock.core.process import Result
from cinderblock.operator.engine.election import Elector, Move, Sight, decide
from cinderblock.operator.engine.guard import (
    Guard,
    GuardedKube,
    GuardedRunner,
    LeadershipLost,
    LeaseLost,
    watchdog,
)


def lease(holder="other", renew="1", duration=15, transitions=3):
    return Lease(
        metadata=ObjectMeta(name="l", namespace="ns"),
        spec=LeaseSpec(
            holder_identity=holder,
            renew_time=renew,
            lease_duration_seconds=duration,
            lease_transitions=transitions,
        ),
    )


@pytest.mark.parametrize(
    ("seen", "age", "move"),
    [
        (None, 0, Move.CREATE),
        (lease(holder=None), 0, Move.TAKE),
        (lease(holder=""), 0, Move.TAKE),
        (lease(holder="me"), 0, Move.TAKE),
        (lease(), 14.9, Move.WAIT),
        (lease(), 15, Move.TAKE),
        (lease(duration=60), 15, Move.WAIT),
        (lease(duration=60), 60, Move.TAKE),
        (lease(duration=1), 14.9, Move.WAIT),
    ],
)
def test_what_a_candidate_does(seen, age, move):
    assert decide(Sight(seen, 100.0), 100.0 + age, "me") is move


def test_only_a_change_of_the_record_is_a_sign_of_life():
    sight = Sight(None, 0.0).next(lease(), 5.0)
    assert sight.since == 5.0
    touched = lease().with_(metadata=ObjectMeta(name="l", namespace="ns", labels={"touched": "yes"}))
    assert sight.next(touched, 9.0).since == 5.0
    assert sight.next(lease(renew="2"), 9.0).since == 9.0


class Node:
    """One candidate with a clock of its own, so that it can be stopped while the other runs."""

    def __init__(self, kube, identity):
        self.clock = FakeClock()
        self.kube = kube
        self.elector = Elector(kube, self.clock, namespace="ns", name="l", identity=identity)
        self.guard = None
        self.error = None

    async def run(self):
        self.guard = await self.elector.acquire()
        try:
            await self.elector.hold(self.guard)
        except LeaseLost as error:
            self.error = error

    @property
    def leads(self):
        return self.guard is not None and self.guard.remaining() > 0


@contextlib.asynccontextmanager
async def running(*nodes):
    tasks = [asyncio.create_task(node.run()) for node in nodes]
    try:
        await settle()
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def turn(seconds, *nodes, step=0.5):
    """Let time pass for these; never two leaders at any moment."""
    elapsed = 0.0
    while elapsed < seconds:
        for node in nodes:
            await node.clock.advance(step)
        assert sum(node.leads for node in nodes) <= 1
        elapsed += step


async def test_one_leads_the_other_waits_as_long_as_it_renews():
    kube = FakeKube()
    a, b = Node(kube, "a"), Node(kube, "b")
    async with running(a, b):
        await turn(120, a, b)
        assert (a.leads, b.leads) == (True, False)
        epoch = a.guard.epoch
        held = await kube.get(Lease, "l", "ns")
        assert (held.spec.holder_identity, held.spec.lease_transitions) == ("a", epoch)


async def test_a_stopped_leader_is_replaced_and_wakes_up_as_a_zombie_that_sends_nothing():
    kube = FakeKube()
    a, b = Node(kube, "a"), Node(kube, "b")
    async with running(a, b):
        await turn(4, a, b)
        assert a.leads
        guarded = GuardedKube(kube, a.guard)
        await turn(14, b)  # a does not run
        assert not b.leads
        await turn(4, b)
        assert b.leads
        a.clock.jump(18)
        assert not a.leads, "before anything else of it has run"
        writes = len(kube.writes)
        with pytest.raises(LeaseLost):
            await guarded.create(
                Volume(metadata=ObjectMeta(name="v", namespace="ns"), spec=VolumeSpec(size="1Gi"))
            )
        assert len(kube.writes) == writes
        await a.clock.advance(1)
        assert isinstance(a.error, LeaseLost)
        assert b.guard.epoch == a.guard.epoch + 1
        await turn(60, b)
        assert b.leads


async def test_a_hanging_api_server_ends_the_term_in_time():
    kube = FakeKube()
    a, b = Node(kube, "a"), Node(kube, "b")
    async with running(a, b):
        await turn(4, a, b)

        async def hang(*args, **options):
            await asyncio.Event().wait()

        a.elector._kube = type("Hanging", (), {"get": hang, "update": hang, "create": hang})()
        await a.clock.advance(9)
        began = a.guard.remaining()
        assert 0 < began < 4
        await a.clock.advance(2)
        assert not a.leads
        await turn(20, b)
        assert b.leads


async def test_a_refusing_api_server_ends_the_term_and_a_short_one_does_not():
    kube = FakeKube()
    a = Node(kube, "a")
    refuse = False

    def before_write(verb, kind, name):
        if refuse:
            raise KubeUnavailable("connection refused")

    kube.before_write = before_write
    async with running(a):
        await turn(4, a)
        refuse = True
        await turn(7, a)
        assert a.leads
        refuse = False
        await turn(3, a)
        refuse = True
        await turn(7, a)
        assert a.leads, "one success renewed the term"
        await turn(5, a)
        assert isinstance(a.error, LeaseLost)


async def test_a_renewal_whose_answer_was_lost_is_recognised():
    kube = FakeKube()
    a = Node(kube, "a")
    async with running(a):
        await turn(4, a)
        held = await kube.get(Lease, "l", "ns")
        await kube.update(held, held.with_(spec=held.spec.with_(renew_time="2030-01-01T00:00:04.5Z")))
        await turn(30, a)
        assert a.leads
        assert a.error is None


async def test_a_successor_in_the_record_ends_the_term_at_once():
    kube = FakeKube()
    a = Node(kube, "a")
    async with running(a):
        await turn(4, a)
        held = await kube.get(Lease, "l", "ns")
        await kube.update(held, held.with_(spec=held.spec.with_(holder_identity="b")))
        await turn(2.5, a)
        assert isinstance(a.error, LeaseLost)
        assert not a.leads


async def test_a_lost_race_for_the_lease_is_waited_out():
    kube = FakeKube()
    a = Node(kube, "a")
    conflicts = 2

    def before_write(verb, kind, name):
        nonlocal conflicts
        if conflicts:
            conflicts -= 1
            raise Conflict("raced")

    kube.before_write = before_write
    async with running(a):
        await turn(10, a)
        assert a.leads


async def test_a_deleted_lease_ends_the_term_and_never_repeats_an_epoch():
    kube = FakeKube()
    a, b = Node(kube, "a"), Node(kube, "b")
    async with running(a):
        await turn(70, a)
        await kube.delete(await kube.get(Lease, "l", "ns"))
        await turn(3, a)
        assert isinstance(a.error, LeaseLost)
    b.clock.jump(75)
    async with running(b):
        await turn(1, b)
        assert b.guard.epoch > a.guard.epoch


async def test_a_released_lease_is_taken_without_waiting():
    kube = FakeKube()
    a, b = Node(kube, "a"), Node(kube, "b")
    async with running(a):
        await turn(4, a)
    assert not a.leads, "who stops renewing stops leading"
    await a.elector.release()
    async with running(b):
        await turn(2.5, b)
        assert b.leads


async def test_programs_start_only_while_leading():
    started = []

    class Runner:
        async def run(self, argv, **options):
            started.append(argv)
            return Result(0, b"", b"")

    clock = FakeClock()
    guard = Guard(clock, 1)
    runner = GuardedRunner(Runner(), guard)
    guard.extend(clock.monotonic() + 10)
    await runner.run(["true"])
    clock.jump(10)
    with pytest.raises(LeadershipLost):
        await runner.run(["true"])
    assert len(started) == 1


def test_the_watchdog_ends_the_process_though_the_loop_hangs_and_spares_a_clean_stop():
    ended = threading.Event()
    guard = Guard(FakeClock(), 1)
    with watchdog(guard, lambda reason: ended.set()):
        assert ended.wait(5)
    ended.clear()
    guard.extend(1e9)
    with watchdog(guard, lambda reason: ended.set()):
        guard.end()
    assert not ended.is_set()


def test_the_end_of_the_process_is_the_end_of_its_children():
    program = (
        "import subprocess, sys; from cinderblock.operator.engine.guard import end_process\n"
        "child = subprocess.Popen(['sleep', '1000'], stdout=sys.stdout)\n"
        "end_process('test')"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, timeout=30)
    # the pipe closes only when the child is gone as well, so a surviving child would have timed out
    assert done.returncode == 70
    assert b"ended: test" in done.stderr
