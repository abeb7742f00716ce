"""What the leader does next about a Volume, for every state that it can be in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cinderblock.core.api.backend import Provisioning, VolumeType, VolumeTypeSpec
from cinderblock.core.api.meta import ObjectMeta, set_condition
from cinderblock.core.api.volume import (
    LOST,
    PROVISIONED,
    SCHEDULED,
    Allocation,
    Attempt,
    Operation,
    OperationKind,
    Refusal,
    Rejection,
    Scheduling,
    Volume,
    VolumePhase,
    VolumeSource,
    VolumeSpec,
    VolumeStatus,
    VolumeTopology,
)
from cinderblock.core.errors import GrpcCode, InvalidRequest, NoValidBackend, OutOfCapacity
from cinderblock.core.units import GIB
from cinderblock.operator.control import volume_status as status
from cinderblock.operator.control.volume_decide import (
    Deny,
    DenyResize,
    DropProtect,
    ForgetError,
    GiveUp,
    MarkLost,
    Nothing,
    Observed,
    Place,
    Resize,
    decide,
    wants_grant,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
STANDARD = VolumeType(metadata=ObjectMeta(name="standard", generation=7))


def volume(
    *,
    size: str = "10Gi",
    granted: int | None = 10,
    made: int | None = None,
    deleting: bool = False,
    refusal: int | None = None,
    grant: int = 1,
    attempts: int = 0,
    error: bool = False,
    target: int = 0,
    **spec: Any,
) -> Volume:
    """Sizes in GiB. `made` = it was provisioned with that capacity."""
    conditions = ()
    if made is not None:
        conditions = set_condition((), PROVISIONED, True, reason="Created", generation=1, now=NOW)
    tried = tuple(
        Attempt(pool=f"p{i}", grant=i + 1, reason="X", message="x", grpc_code=GrpcCode.INTERNAL, at=NOW)
        for i in range(attempts)
    )
    record = status.record(NoValidBackend("no"), Volume(spec=VolumeSpec(size="1"))) if error else None
    operation = (
        Operation(
            kind=OperationKind.EXTEND,
            started_at=NOW,
            deadline=NOW + timedelta(minutes=5),
            target_bytes=target * GIB,
        )
        if target
        else None
    )
    return Volume(
        metadata=ObjectMeta(
            name="v",
            namespace="ns",
            uid="u",
            generation=3,
            deletion_timestamp=NOW if deleting else None,
        ),
        spec=VolumeSpec(size=size, **spec),
        status=VolumeStatus(
            allocation=Allocation(
                backend="b", pool=f"p{attempts}", host="h", size_bytes=granted * GIB, grant=grant
            )
            if granted is not None
            else None,
            last_grant=grant if granted is not None else 0,
            capacity_bytes=made * GIB if made is not None else None,
            refusal=Refusal(
                grant=refusal, reason="BackendFault", message="no", grpc_code=GrpcCode.INTERNAL, at=NOW
            )
            if refusal is not None
            else None,
            scheduling=Scheduling(attempts=tried, error=record) if tried or record else None,
            operation=operation,
            conditions=conditions,
        ),
    )


def seen(v: Volume, **more: Any) -> Observed:
    return Observed(**{"volume": v, "type": STANDARD, "release_namespace": "system", **more})


@pytest.mark.parametrize(
    ("observed", "decision"),
    [
        # being deleted
        (seen(volume(granted=None, deleting=True)), DropProtect),
        (seen(volume(granted=None, deleting=True), type=None), DropProtect),
        (seen(volume(deleting=True)), Nothing),
        (seen(volume(deleting=True, made=10)), Nothing),
        (seen(volume(deleting=True, made=10), host_alive=False), Nothing),
        (seen(volume(deleting=True), host_alive=False), GiveUp),
        (seen(volume(deleting=True, made=10), host_gone=True), DropProtect),
        (seen(volume(deleting=True), host_gone=True), DropProtect),
        (seen(volume(deleting=True, refusal=1)), Nothing),
        # without a grant
        (seen(volume(granted=None)), Place),
        (seen(volume(granted=None, attempts=3)), Place),
        (seen(volume(granted=None), type=None), Deny),
        (seen(volume(granted=None), source_missing="Volume ns/x"), Deny),
        (seen(volume(granted=None, source=VolumeSource(image="debian"))), Deny),
        (seen(volume(granted=None, source=VolumeSource())), Place),
        # granted, not made
        (seen(volume()), Nothing),
        (seen(volume(), type=None), Nothing),
        (seen(volume(size="99Gi")), Nothing),
        (seen(volume(refusal=1)), Place),
        (seen(volume(refusal=1, grant=2)), Nothing),  # an old refusal
        (seen(volume(refusal=1, attempts=1)), Place),
        (seen(volume(refusal=1, attempts=2)), GiveUp),
        (seen(volume(refusal=1), type=None), GiveUp),
        (seen(volume(), host_alive=False), Place),
        (seen(volume(), host_gone=True), Place),
        (seen(volume(attempts=2), host_alive=False), GiveUp),
        # made
        (seen(volume(made=10)), Nothing),
        (seen(volume(made=10), type=None), Nothing),
        (seen(volume(made=10), host_alive=False), Nothing),
        (seen(volume(made=10), host_gone=True), MarkLost),
        (seen(volume(made=10, refusal=1)), Nothing),
        (seen(volume(made=10, error=True)), ForgetError),
        (seen(volume(made=10, size="11Gi")), Resize),
        (seen(volume(made=10, granted=20)), Resize),
        (seen(volume(made=10, granted=20, target=20)), Nothing),
        (seen(volume(made=12)), Resize),
    ],
)
def test_every_state(observed: Observed, decision: type) -> None:
    assert type(decide(observed, NOW)) is decision


def test_a_new_cycle_asks_every_pool_again() -> None:
    decision = decide(seen(volume(granted=None, attempts=3)), NOW)
    assert isinstance(decision, Place)
    assert decision.attempts == ()
    assert decision.request.tried_pools == frozenset()


def test_a_refusal_becomes_an_attempt_and_its_pool_is_left_out() -> None:
    decision = decide(seen(volume(refusal=2, grant=2, attempts=1)), NOW)
    assert isinstance(decision, Place)
    assert [(a.pool, a.grant) for a in decision.attempts] == [("p0", 1), ("p1", 2)]
    assert decision.request.tried_pools == {"p0", "p1"}
    assert decision.type_revision == 7


def test_the_request_carries_what_spec_and_type_want() -> None:
    gold = VolumeType(
        metadata=ObjectMeta(name="gold"),
        spec=VolumeTypeSpec(extra_specs={"disk": "ssd"}, provisioning=Provisioning.THICK),
    )
    topology = VolumeTopology(requisite=("n1", "n2"), preferred=("n2",))
    decision = decide(seen(volume(granted=None, availability_zone="z", topology=topology), type=gold), NOW)
    assert isinstance(decision, Place)
    request = decision.request
    assert (request.size_bytes, request.thick, request.extra_specs) == (10 * GIB, True, {"disk": "ssd"})
    assert (request.availability_zone, request.requisite_nodes) == ("z", ("n1", "n2"))
    assert request.preferred_nodes == ("n2",)


@pytest.mark.parametrize(
    ("v", "size"),
    [
        (volume(made=10, size="15Gi"), 15),
        (volume(made=10, granted=20, size="12Gi"), 12),
        (volume(made=10, granted=20, size="10Gi"), 10),
        (volume(made=10, granted=20, size="10Gi", target=18), 18),  # the host is on its way to 18
        (volume(made=12, granted=20, size="10Gi"), 12),  # never below what exists
        (volume(made=12, granted=10, size="10Gi"), 12),  # the backend rounded up
    ],
)
def test_the_size_of_the_grant_follows(v: Volume, size: int) -> None:
    decision = decide(seen(v), NOW)
    assert isinstance(decision, Resize)
    assert decision.size_bytes == size * GIB


def test_only_growth_needs_room() -> None:
    def grows(v: Volume) -> bool:
        decision = decide(seen(v), NOW)
        assert isinstance(decision, Resize)
        return decision.grows(v)

    assert grows(volume(made=10, size="15Gi"))
    assert not grows(volume(made=10, granted=20, size="12Gi"))
    assert not grows(volume(made=12, granted=10))


def test_the_type_limits_an_extend_and_not_what_exists() -> None:
    small = VolumeType(metadata=ObjectMeta(name="s"), spec=VolumeTypeSpec(max_size="12Gi"))
    assert isinstance(decide(seen(volume(made=10, size="13Gi"), type=small), NOW), DenyResize)
    assert isinstance(decide(seen(volume(made=10, size="12Gi"), type=small), NOW), Resize)
    assert isinstance(decide(seen(volume(made=14), type=small), NOW), Resize)


def test_wants_grant() -> None:
    assert wants_grant(volume(granted=None))
    assert wants_grant(volume())  # the host may refuse, or die
    assert wants_grant(volume(made=10, size="11Gi"))
    assert not wants_grant(volume(made=10))
    assert not wants_grant(volume(made=10, size="9Gi"))
    assert not wants_grant(volume(granted=None, deleting=True))


# transitions ---------------------------------------------------------------------------------------------


def test_denied_keeps_what_the_last_cycle_tried() -> None:
    tried = volume(granted=None, attempts=3)
    after = status.denied(tried, status.record(NoValidBackend("no"), tried), epoch=4, now=NOW)
    assert after.status.phase is VolumePhase.ERROR
    assert after.status.scheduling is not None
    assert len(after.status.scheduling.attempts) == 3
    fresh = volume(granted=None)
    after = status.denied(fresh, status.record(NoValidBackend("no"), fresh), epoch=4, now=NOW)
    assert after.status.phase is VolumePhase.PENDING


def test_the_same_verdict_with_other_figures_is_no_news() -> None:
    first = volume(granted=None)

    def say(v: Volume, free: int, count: int = 1) -> Volume:
        refused = (Rejection(filter="Capacity", count=count, examples=(f"p: {free} left",)),)
        error = status.record(OutOfCapacity(f"no pool: {free} left"), v)
        return status.denied(v, error, refused=refused, epoch=1, now=NOW)

    told = say(first, 5)
    assert say(told, 4) == told
    assert say(told, 4, count=2) != told
    grown = told.with_(metadata=told.metadata.with_(generation=4))
    assert say(grown, 4) != grown  # the answer to another spec


def test_another_fault_is_always_told() -> None:
    first = volume(granted=None)
    told = status.denied(first, status.record(InvalidRequest("a"), first), epoch=1, now=NOW)
    again = status.denied(told, status.record(InvalidRequest("b"), told), epoch=1, now=NOW)
    assert again.status.scheduling is not None
    assert again.status.scheduling.error is not None
    assert again.status.scheduling.error.message == "b"


def test_taking_a_grant_back_ends_its_create() -> None:
    v = volume()
    operation = Operation(kind=OperationKind.CREATE, started_at=NOW, deadline=NOW, grant=1)
    v = v.with_(status=v.status.with_(operation=operation))
    after = status.denied(v, status.record(NoValidBackend("no"), v), epoch=1, now=NOW)
    assert after.status.operation is None
    assert after.status.allocation is None
    assert after.status.last_grant == 1  # never falls


def test_lost_is_said_once() -> None:
    once = status.lost(volume(made=10), now=NOW)
    assert status.lost(once, now=NOW + timedelta(days=1)) == once
    assert {c.type for c in once.status.conditions} == {PROVISIONED, LOST, "Ready"}


def test_conditions_of_others_stay() -> None:
    v = volume(granted=None, made=None)
    mine = set_condition((), "Strange", True, reason="R", generation=1, now=NOW)
    v = v.with_(status=v.status.with_(conditions=mine))
    after = status.denied(v, status.record(NoValidBackend("no"), v), epoch=1, now=NOW)
    assert [c.type for c in after.status.conditions] == ["Strange", SCHEDULED]


@given(
    size=st.integers(1, 30),
    granted=st.none() | st.integers(1, 30),
    made=st.none() | st.integers(1, 30),
    deleting=st.booleans(),
    refusal=st.none() | st.just(1),
    attempts=st.integers(0, 3),
    alive=st.booleans(),
    gone=st.booleans(),
    typed=st.booleans(),
)
def test_what_exists_is_never_given_up(size, granted, made, deleting, refusal, attempts, alive, gone, typed):
    """No state in which data may exist and its node does leads to a lost grant or a dropped finalizer."""
    v = volume(
        size=f"{size}Gi",
        granted=granted,
        made=made if granted is not None else None,
        deleting=deleting,
        refusal=refusal,
        attempts=attempts,
    )
    decision = decide(seen(v, host_alive=alive, host_gone=gone, type=STANDARD if typed else None), NOW)
    if v.status.allocation is None:
        return
    if v.status.capacity_bytes is not None:
        assert not isinstance(decision, GiveUp | Place | Deny)
        if isinstance(decision, Resize):
            assert decision.size_bytes >= v.status.capacity_bytes
    if not gone:
        assert not isinstance(decision, DropProtect)
        if alive and v.status.capacity_bytes is None and refusal is None:
            assert isinstance(decision, Nothing)
