"""What an error record or a size may say about a request: old records must not be taken for new ones."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cinderblock.core.api.meta import ErrorRecord, ObjectMeta, set_condition
from cinderblock.core.api.volume import SCHEDULED, Allocation, Scheduling, Volume, VolumeSpec, VolumeStatus
from cinderblock.core.errors import GRPC_CODES, GrpcCode, SizeOutOfRange, StorageError, grpc_code
from cinderblock.core.names import volume_cr_name
from cinderblock.csi.convert import error_of, status_of
from cinderblock.csi.gateway.judge import volume_error
from cinderblock.csi.gateway.requests import SizeRange

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def record(generation: int = 1, grant: int = 0, code: GrpcCode = GrpcCode.UNAVAILABLE) -> ErrorRecord:
    return ErrorRecord(reason="R", message="m", grpc_code=code, observed_generation=generation, grant=grant)


def volume(*, generation: int = 1, size: str = "1Gi", scheduled: bool = False, **status: Any) -> Volume:
    allocation = Allocation(backend="b", pool="p", host="h", size_bytes=1024**3, grant=2)
    conditions = set_condition((), SCHEDULED, scheduled, reason="R", generation=1, now=NOW)
    values = {"conditions": conditions, "allocation": allocation if scheduled else None, **status}
    return Volume(
        metadata=ObjectMeta(name="v", generation=generation),
        spec=VolumeSpec(size=size),
        status=VolumeStatus(**values),
    )


@pytest.mark.parametrize(
    ("seen", "counts"),
    [
        (volume(scheduling=Scheduling(error=record())), True),
        (volume(scheduling=Scheduling(error=record()), generation=2), False),  # of an older spec
        (volume(scheduled=True, scheduling=Scheduling(error=record())), False),  # placed since
        (volume(scheduled=True, size="2Gi", scheduling=Scheduling(error=record())), True),  # cannot grow
        (volume(scheduled=True, last_error=record(grant=2)), True),
        (volume(scheduled=True, last_error=record(grant=1)), False),  # of an older grant
        (volume(last_error=record(grant=2)), False),  # no grant stands
        (volume(), False),
    ],
)
def test_only_errors_of_the_present_spec_and_grant_count(seen: Volume, counts: bool) -> None:
    assert (volume_error(seen) is not None) is counts


@pytest.mark.parametrize("code", list(GrpcCode))
def test_a_recorded_code_comes_out_as_it_went_in(code: GrpcCode) -> None:
    error = error_of(record(code=code))
    assert grpc_code(error) is code
    assert status_of(error).code.name == code.value
    assert (error.reason, error.message) == ("R", "m")


def test_every_error_of_ours_has_a_row() -> None:
    def below(cls: type[StorageError]) -> list[type[StorageError]]:
        return [cls, *(c for sub in cls.__subclasses__() for c in below(sub))]

    rows = set(GRPC_CODES)
    assert all(rows & set(cls.__mro__) for cls in below(StorageError) if cls is not StorageError)


@given(st.integers(0, 2**50), st.integers(0, 2**50))
def test_a_wanted_size_is_always_within_its_range(required: int, limit: int) -> None:
    if 0 < limit < required:
        with pytest.raises(SizeOutOfRange):
            SizeRange.of(required, limit)
        return
    size = SizeRange.of(required, limit)
    assert size.wanted_bytes > 0
    assert size.holds(size.wanted_bytes)


@given(st.text(max_size=128))
def test_every_csi_name_has_a_name_that_kubernetes_takes(name: str) -> None:
    made = volume_cr_name(name)
    assert len(made) <= 253
    assert all(part and part[0].isalnum() and part[-1].isalnum() for part in made.split("."))
    assert set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")
