"""Between CSI's messages and our own words: error codes, access modes, capabilities, topology.

The only place that knows both sides of the gRPC codes; which error has which code is core/errors.py's table.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from cinderblock.core.api.meta import ErrorRecord
from cinderblock.core.errors import GRPC_CODES, GrpcCode, StorageError, grpc_code
from cinderblock.core.kube.port import KubeError

_STATUS: dict[GrpcCode, grpc.StatusCode] = {code: grpc.StatusCode[code.value] for code in GrpcCode}
_MESSAGE_MAX = 1024  # a status message travels in a header


@dataclass(frozen=True)
class Status:
    """What a failed RPC answers. `known` = our own error, told to the caller; else a fault to look into."""

    code: grpc.StatusCode
    message: str
    known: bool


def status_of(error: BaseException) -> Status:
    """The answer for an error; the message is never empty (CSI rule: error messages help).

    Any exception that is not ours says nothing about what still runs or is left behind: ABORTED, without its
    text, which may hold anything. Trouble with the API server is UNAVAILABLE: asked again later it can pass.
    """
    if isinstance(error, StorageError):
        message = error.message.strip() or error.reason
        return Status(_STATUS[grpc_code(error)], message[:_MESSAGE_MAX], known=True)
    if isinstance(error, KubeError):
        text = str(error).strip() or type(error).__name__
        return Status(grpc.StatusCode.UNAVAILABLE, f"the Kubernetes API: {text}"[:_MESSAGE_MAX], known=True)
    return Status(
        grpc.StatusCode.ABORTED,
        f"unexpected {type(error).__name__}: see the driver's log; the call may be repeated",
        known=False,
    )


def error_of(record: ErrorRecord) -> StorageError:
    """The error that a host or the leader recorded, with exactly the code that it decided on."""
    cls = next((cls for cls, code in GRPC_CODES.items() if code is record.grpc_code), StorageError)
    return cls(record.message or record.reason, reason=record.reason)
