"""decide_volume: every state of a Volume leads to the one step that the protocol names."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from cinderblock.core.api import Volume
from cinderblock.core.api.meta import ObjectMeta, find_condition, is_true, set_condition
from cinderblock.core.api.volume import (
    LOST,
    PROVISIONED,
    Allocation,
    FilesystemState,
    Operation,
    OperationKind,
    Refusal,
    Use,
    VolumeAttachmentEntry,
    VolumePhase,
    VolumeSpec,
    VolumeStatus,
)
from cinderblock.core.clock import SystemClock
from cinderblock.core.errors import (
    GRPC_CODES,
    BackendUnavailable,
    GrpcCode,
    NotReady,
    OperationPending,
    OperationTimeout,
    OutOfCapacity,
    StorageError,
)
from cinderblock.core.names import FINALIZER_PROTECT, FINALIZER_PV
from cinderblock.drivers.base import VolumeRef
from cinderblock.operator.host import volume_status as say
from cinderblock.operator.host.decide_volume import (
    Check,
    Create,
    Delete,
    Extend,
    Protect,
    Rest,
    Seal,
    Settle,
    Step,
    VolumeView,
    Wait,
    decide_volume,
    may_pass,
)

NOW = SystemClock().now()
REF = VolumeRef("h", 3)
ENTRY = VolumeAttachmentEntry(attachment_uid="a", attachment="d/a", node="n1", generation=1, use=Use.BARE)


def _volume(
    *,
    size_bytes: int = 10,
    host: str = "me",
    provisioned: int | None = None,
    deleting: bool = False,
    finalizers: tuple[str, ...] = (FINALIZER_PROTECT,),
    lost: bool = False,
    **status: Any,
) -> Volume:
    conditions: tuple[Any, ...] = ()
    if provisioned is not None:
        conditions = set_condition(conditions, PROVISIONED, True, reason="Created", generation=1, now=NOW)
        status["capacity_bytes"] = provisioned
    if lost:
        conditions = set_condition(conditions, LOST, True, reason="Vanished", generation=1, now=NOW)
    fields: dict[str, Any] = {
        "handle": "h",
        "last_grant": 3,
        "allocation": Allocation(backend="b", pool="p", host=host, size_bytes=size_bytes, grant=3),
        "conditions": conditions,
        **status,
    }
    return Volume(
        metadata=ObjectMeta(
            name="v",
            namespace="d",
            uid="u",
            resource_version="7",
            generation=2,
            finalizers=finalizers,
            deletion_timestamp=NOW if deleting else None,
        ),
        spec=VolumeSpec(size="10"),
        status=VolumeStatus(**fields),
    )


def _refusal(grant: int) -> Refusal:
    return Refusal(grant=grant, reason="x", message="x", grpc_code=GrpcCode.INTERNAL, at=NOW)


def _extending(target: int, grant: int = 3) -> Operation:
    return Operation(
        kind=OperationKind.EXTEND, started_at=NOW, deadline=NOW, grant=grant, target_bytes=target
    )


@pytest.mark.parametrize(
    ("volume", "step"),
    [
        (_volume(allocation=None), Rest()),
        (_volume(handle=None), Rest()),
        (_volume(host="other"), Rest()),
        (_volume(host="other", deleting=True), Rest()),
        (_volume(finalizers=()), Protect()),
        (_volume(), Create(REF, 10, False)),
        (_volume(refusal=_refusal(3)), Rest()),
        (_volume(refusal=_refusal(2)), Create(REF, 10, False)),
        (_volume(provisioned=10), Settle()),
        (_volume(provisioned=4096), Settle()),
        (_volume(provisioned=10, refusal=_refusal(3)), Settle()),
        (_volume(provisioned=10, lost=True), Check(REF)),
        (_volume(provisioned=10, size_bytes=20), Extend(REF, 20)),
        (_volume(provisioned=10, size_bytes=20, operation=_extending(15)), Extend(REF, 15)),
        (_volume(provisioned=10, size_bytes=10, operation=_extending(15)), Extend(REF, 15)),
        (_volume(provisioned=10, operation=_extending(15, grant=2)), Settle()),
        (_volume(deleting=True), Delete(REF)),
        (_volume(deleting=True, provisioned=10), Delete(REF)),
        (_volume(deleting=True, provisioned=10, lost=True), Delete(REF)),
        (_volume(deleting=True, provisioned=10, size_bytes=20, operation=_extending(20)), Delete(REF)),
        (_volume(deleting=True, finalizers=("someone/else",)), Rest()),
        (_volume(deleting=True, refusal=_refusal(3)), Delete(REF)),
    ],
)
def test_each_state_has_its_step(volume: Volume, step: Step) -> None:
    assert decide_volume(VolumeView(volume, "me")) == step


def test_what_this_process_knows_comes_before_growth() -> None:
    volume = _volume(provisioned=10, size_bytes=20)
    assert decide_volume(VolumeView(volume, "me", unsealed=True)) == Seal(REF)
    assert decide_volume(VolumeView(volume, "me", unsealed=True, suspect=True)) == Check(REF)
    assert isinstance(decide_volume(VolumeView(_volume(), "me", unsealed=True, suspect=True)), Create)


@pytest.mark.parametrize("finalizers", [(FINALIZER_PROTECT,), (FINALIZER_PROTECT, FINALIZER_PV)])
def test_a_deletion_waits_for_those_who_use_or_name_it(finalizers: tuple[str, ...]) -> None:
    used = _volume(deleting=True, provisioned=10, finalizers=finalizers, attachments=(ENTRY,))
    step = decide_volume(VolumeView(used, "me"))
    assert isinstance(step, Wait)
    assert step.reason == "VolumeInUse"
    assert "n1" in step.message
    judged = decide_volume(VolumeView(used, "me", orphans_only=True))
    if FINALIZER_PV in finalizers:
        assert isinstance(judged, Wait)
        assert judged.reason == "NamedByPV"
    else:
        assert judged == Delete(REF)


@pytest.mark.parametrize("cls", list(GRPC_CODES))
def test_only_what_may_still_run_or_pass_is_tried_again_here(cls: type[StorageError]) -> None:
    expected = cls in (BackendUnavailable, OperationTimeout, OperationPending, NotReady)
    assert may_pass(cls("x")) is expected


# transitions ---------------------------------------------------------------------------------------------
def test_created_plans_the_filesystem_only_where_it_is_known_and_wanted() -> None:
    plain = say.created(_volume(), 4096, NOW)
    assert (plain.capacity_bytes, plain.phase, plain.filesystem) == (4096, VolumePhase.AVAILABLE, None)
    assert is_true(plain.conditions, "Ready")
    volume = _volume()
    planned = say.created(volume.with_(spec=VolumeSpec(size="10", fs_type="xfs")), 10, NOW)
    assert planned.filesystem is not None
    assert (planned.filesystem.type, planned.filesystem.state) == ("xfs", FilesystemState.FORMATTING)
    block = VolumeSpec.model_validate({"size": "10", "volumeMode": "Block", "fsType": "xfs"})
    assert say.created(volume.with_(spec=block), 10, NOW).filesystem is None


def test_a_repeated_error_says_nothing_new() -> None:
    volume = _volume()
    first = say.create_failed(volume, BackendUnavailable("away"), NOW)
    assert first.operation is not None
    assert first.operation.decided_on == "7"
    later = NOW + timedelta(seconds=50)
    assert say.create_failed(volume.with_(status=first), BackendUnavailable("away"), later) == first


def test_a_new_grant_gets_a_new_deadline() -> None:
    old = _volume(operation=Operation(kind=OperationKind.CREATE, started_at=NOW, deadline=NOW, grant=2))
    status = say.create_failed(old, BackendUnavailable("away"), NOW)
    assert status.operation is not None
    assert (status.operation.grant, status.operation.deadline > NOW) == (3, True)


def test_a_refusal_clears_what_it_supersedes_and_fits_its_field() -> None:
    failed = _volume().with_(status=say.create_failed(_volume(), OutOfCapacity("full"), NOW))
    status = say.refused(failed, OutOfCapacity("x" * 5000), NOW)
    assert status.refusal is not None
    assert (status.refusal.grant, len(status.refusal.message)) == (3, 1024)
    assert (status.operation, status.last_error) == (None, None)


def test_lost_and_found_again() -> None:
    volume = _volume(provisioned=10)
    gone = say.lost(volume, "vanished", NOW)
    assert (gone.phase, is_true(gone.conditions, LOST), is_true(gone.conditions, PROVISIONED)) == (
        VolumePhase.LOST,
        True,
        True,
    )
    back = say.settled(volume.with_(status=gone), NOW, capacity_bytes=10)
    assert find_condition(back.conditions, LOST) is None
    assert is_true(back.conditions, "Ready")


def test_a_failed_extend_leaves_the_volume_ready_with_its_size() -> None:
    volume = _volume(provisioned=10, size_bytes=20, operation=_extending(20))
    done = say.extend_failed(volume, OutOfCapacity("full"), NOW, pending=False)
    assert (done.operation, done.capacity_bytes, done.phase) == (None, 10, VolumePhase.AVAILABLE)
    assert done.last_error is not None
    pending = say.extend_failed(volume, BackendUnavailable("away"), NOW, pending=True)
    assert pending.operation == volume.status.operation


def test_the_leaders_fields_are_never_touched() -> None:
    volume = _volume(provisioned=10)
    for status in (
        say.created(volume, 10, NOW),
        say.create_failed(volume, OutOfCapacity("x"), NOW),
        say.refused(volume, OutOfCapacity("x"), NOW),
        say.lost(volume, "x", NOW),
        say.settled(volume, NOW),
        say.delete_waits(volume, "x", "x", NOW),
        say.delete_failed(volume, OutOfCapacity("x"), NOW),
    ):
        old = volume.status
        assert (status.handle, status.allocation, status.last_grant, status.scheduling) == (
            old.handle,
            old.allocation,
            old.last_grant,
            old.scheduling,
        )
