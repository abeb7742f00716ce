"""Every error has one code, found along its class, whatever module it comes from."""

import subprocess
import sys
from pathlib import Path

import pytest

from cinderblock.core import errors
from cinderblock.core.errors import GRPC_CODES, NON_FINAL_CODES, GrpcCode, StorageError, grpc_code
from cinderblock.core.process import CommandFailed, Result

ROOT = Path(__file__).resolve().parents[2]

# Imports everything of ours in a process of its own, so that errors of all layers are there and only ours.
FIND_ALL = """
import importlib, pkgutil, warnings
from cinderblock.core import errors
for package in ("core", "drivers", "csi", "operator", "cli"):
    top = importlib.import_module("cinderblock." + package)
    for module in pkgutil.walk_packages(top.__path__, top.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
def below(cls):
    for sub in cls.__subclasses__():
        yield sub
        yield from below(sub)
for cls in set(below(errors.StorageError)):
    direct = errors.StorageError in cls.__bases__
    own = any(base in errors.GRPC_CODES for base in cls.__mro__)
    print(cls.__module__, cls.__qualname__, "direct" if direct else "derived", "mapped" if own else "unmapped",
          cls.default_reason)
"""


@pytest.fixture(scope="module")
def found() -> list[list[str]]:
    """[module, class, direct or derived, mapped or unmapped, reason] of every error class of ours."""
    done = subprocess.run(
        [sys.executable, "-c", FIND_ALL], check=False, cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    return [line.split(maxsplit=4) for line in done.stdout.splitlines()]


def test_every_error_class_of_every_layer_has_a_code(found: list[list[str]]) -> None:
    assert len(found) >= len(GRPC_CODES)
    assert [row[:2] for row in found if row[3] == "unmapped"] == []


def test_a_direct_subclass_has_a_row_of_its_own(found: list[list[str]]) -> None:
    named = {f"{cls.__module__}.{cls.__qualname__}" for cls in GRPC_CODES}
    assert [row[:2] for row in found if row[2] == "direct" and f"{row[0]}.{row[1]}" not in named] == []


def test_every_reason_is_one_camel_case_word(found: list[list[str]]) -> None:
    assert [row for row in found if not (row[4].isalnum() and row[4][0].isupper())] == []


@pytest.mark.parametrize(
    ("cls", "code"), GRPC_CODES.items(), ids=lambda value: getattr(value, "__name__", None)
)
def test_a_class_has_the_code_of_its_row(cls: type[StorageError], code: GrpcCode) -> None:
    assert grpc_code(cls("what to do")) is code


@pytest.mark.parametrize(
    "cls", [errors.VolumeInUse, errors.HasSnapshots, errors.AttachedElsewhere, errors.NotStaged, errors.Lost]
)
def test_a_subclass_without_a_row_has_its_parents_code(cls: type[StorageError]) -> None:
    assert cls not in GRPC_CODES
    assert grpc_code(cls("m")) is GrpcCode.FAILED_PRECONDITION


def test_a_drivers_own_error_has_the_code_of_what_it_is() -> None:
    class PoolFull(errors.OutOfCapacity):
        pass

    class PoolFullForGood(PoolFull):
        default_reason = "PoolFullForGood"

    assert grpc_code(PoolFullForGood("m")) is GrpcCode.RESOURCE_EXHAUSTED
    assert PoolFull("m").reason == "OutOfCapacity"
    assert PoolFullForGood("m").reason == "PoolFullForGood"
    assert grpc_code(CommandFailed(["lvcreate"], Result(5, b"", b"x"))) is GrpcCode.INTERNAL


@pytest.mark.parametrize(
    "error", [RuntimeError("x"), TimeoutError(), KeyError("k"), OSError(5, "EIO"), StorageError("x")]
)
def test_an_error_that_says_nothing_of_what_is_left_behind_is_not_final(error: Exception) -> None:
    assert grpc_code(error) is GrpcCode.ABORTED
    assert grpc_code(error) in NON_FINAL_CODES


@pytest.mark.parametrize(
    "cls",
    [errors.OperationPending, errors.OperationTimeout, errors.BackendUnavailable, errors.NotReady],
)
def test_what_may_still_run_is_never_final(cls: type[StorageError]) -> None:
    assert grpc_code(cls("m")) in NON_FINAL_CODES


def test_an_error_carries_what_a_person_and_a_program_need() -> None:
    error = errors.VolumeInUse("detach it from node n1 first", reason="MountedOnNode")
    assert (error.message, error.reason, str(error)) == (
        error.message,
        "MountedOnNode",
        "detach it from node n1 first",
    )
    assert error.retryable
    assert not errors.InvalidRequest("m").retryable
