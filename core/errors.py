"""The one tree of errors and the one table that maps it to gRPC codes (docs/errors.md).

    StorageError
      InvalidRequest  NotFound  IncompatibleExists  OperationPending  PreconditionFailed (VolumeInUse ...)
      OutOfCapacity  NoValidBackend  QuotaExceeded  AttachLimit  SizeOutOfRange  NotSupported
      NotReady  BackendUnavailable  OperationTimeout  BackendFault

The code decides what a CSI sidecar does next: all but CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE and ABORTED
tell external-provisioner that for sure nothing is left, so a wrong code leaks a volume.
"""

from __future__ import annotations

from enum import StrEnum


class GrpcCode(StrEnum):
    """Names of gRPC's codes; `csi` turns them into grpc's own, nobody else needs grpc."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    ABORTED = "ABORTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL = "INTERNAL"


# The codes after which external-provisioner keeps the claim "in progress" (reference: external-provisioner 6.3).
NON_FINAL_CODES = frozenset({GrpcCode.ABORTED, GrpcCode.UNAVAILABLE, GrpcCode.DEADLINE_EXCEEDED})


class StorageError(Exception):
    """Base of all errors that a user may see.

    `reason` is a CamelCase word for conditions and events, `message` says what to do, `retryable` whether the
    same request can succeed later without anybody changing it.
    """

    default_reason = "StorageError"
    retryable = True

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason


class InvalidRequest(StorageError):
    default_reason = "InvalidRequest"
    retryable = False


class NotFound(StorageError):
    default_reason = "NotFound"


class IncompatibleExists(StorageError):
    default_reason = "IncompatibleExists"
    retryable = False


class OperationPending(StorageError):
    default_reason = "OperationPending"


class PreconditionFailed(StorageError):
    default_reason = "PreconditionFailed"


class VolumeInUse(PreconditionFailed):
    default_reason = "VolumeInUse"


class HasSnapshots(PreconditionFailed):
    default_reason = "HasSnapshots"


class AttachedElsewhere(PreconditionFailed):
    default_reason = "AttachedElsewhere"


class NotStaged(PreconditionFailed):
    default_reason = "NotStaged"


class Lost(PreconditionFailed):
    default_reason = "Lost"


class OutOfCapacity(StorageError):
    default_reason = "OutOfCapacity"


class NoValidBackend(StorageError):
    default_reason = "NoValidBackend"


class QuotaExceeded(StorageError):
    default_reason = "QuotaExceeded"


class AttachLimit(StorageError):
    default_reason = "AttachLimit"


class SizeOutOfRange(StorageError):
    default_reason = "SizeOutOfRange"
    retryable = False


class NotSupported(StorageError):
    default_reason = "NotSupported"
    retryable = False


class NotReady(StorageError):
    default_reason = "NotReady"


class BackendUnavailable(StorageError):
    default_reason = "BackendUnavailable"


class OperationTimeout(StorageError):
    """The work still runs or may still run."""

    default_reason = "OperationTimeout"


class BackendFault(StorageError):
    """The backend answered with a fault and nothing is left of what was tried."""

    default_reason = "BackendFault"


GRPC_CODES: dict[type[StorageError], GrpcCode] = {
    InvalidRequest: GrpcCode.INVALID_ARGUMENT,
    NotFound: GrpcCode.NOT_FOUND,
    IncompatibleExists: GrpcCode.ALREADY_EXISTS,
    OperationPending: GrpcCode.ABORTED,
    PreconditionFailed: GrpcCode.FAILED_PRECONDITION,
    OutOfCapacity: GrpcCode.RESOURCE_EXHAUSTED,
    NoValidBackend: GrpcCode.RESOURCE_EXHAUSTED,
    QuotaExceeded: GrpcCode.RESOURCE_EXHAUSTED,
    AttachLimit: GrpcCode.RESOURCE_EXHAUSTED,
    SizeOutOfRange: GrpcCode.OUT_OF_RANGE,
    NotSupported: GrpcCode.UNIMPLEMENTED,
    NotReady: GrpcCode.UNAVAILABLE,
    BackendUnavailable: GrpcCode.UNAVAILABLE,
    OperationTimeout: GrpcCode.DEADLINE_EXCEEDED,
    BackendFault: GrpcCode.INTERNAL,
}


def grpc_code(error: BaseException) -> GrpcCode:
    """The code of an error, found along its MRO.

    An exception that is not ours says nothing about what may still run or be left behind: ABORTED, which every
    caller takes as "ask again" (reliability rule ERR-01).
    """
    for cls in type(error).__mro__:
        code = GRPC_CODES.get(cls)
        if code is not None:
            return code
    return GrpcCode.ABORTED
