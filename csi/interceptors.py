"""What happens around every RPC: validation, deadline, error mapping, metrics, one log line.

No handler touches gRPC: it gets the request and a Call, returns the response or raises, and this module turns
that into an answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry, Histogram

from cinderblock.core.names import CSI_DRIVER
from cinderblock.csi.convert import status_of
from cinderblock.csi.redact import redacted
from cinderblock.csi.validation import check_limits

_log = logging.getLogger(__name__)

_LONGEST = 60.0  # for callers without a deadline
_MARGIN_SHARE = 0.2
_MARGIN_MAX = 1.0
# Asked all the time without anything happening.
_QUIET = frozenset(
    {
        "Probe",
        "GetPluginInfo",
        "GetPluginCapabilities",
        "ControllerGetCapabilities",
        "ListVolumes",
        "GetCapacity",
        "NodeGetCapabilities",
        "NodeGetInfo",
        "NodeGetVolumeStats",
        "GetInfo",
    }
)


@dataclass(frozen=True)
class Call:
    """One RPC in work. `answer_by` is a moment of time.monotonic()."""

    method: str
    answer_by: float

    def time_left(self) -> float:
        """Seconds until an answer must go out so that the caller still gets it."""
        return max(0.0, self.answer_by - time.monotonic())


class RpcMetrics:
    """The histogram that every CSI driver has, under the name that dashboards know."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "csi_plugin_operations_seconds",
            "Duration of the CSI calls that this driver served",
            ("driver_name", "method_name", "grpc_status_code"),
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 25, 50, 120),
            registry=registry,
        )

    def observe(self, method: str, code: grpc.StatusCode, seconds: float) -> None:
        self._seconds.labels(CSI_DRIVER, method, code.name).observe(seconds)


class Edge:
    """Wraps handlers; one per server."""

    def __init__(self, metrics: RpcMetrics) -> None:
        self._metrics = metrics

    def wrap(
        self,
        method: MethodDescriptor,
        behavior: Callable[[Any, Call], Awaitable[Message]],
        *,
        checks_limits: bool = False,
    ) -> Callable[[Message, Any], Awaitable[Message]]:
        """A gRPC handler around ours; `checks_limits` says that ours checks CSI's size limits itself."""
        # Protocols other than CSI have no such limits.
        limited = method.containing_service.file.package == "csi.v1" and not checks_limits
        full_name = f"/{method.containing_service.full_name}/{method.name}"

        async def handle(request: Message, context: Any) -> Message:
            started = time.monotonic()
            call = Call(method.name, started + _budget(context.time_remaining()))
            try:
                if limited:
                    check_limits(request)
                response = await behavior(request, call)
            except asyncio.CancelledError:
                # The caller hung up or its deadline passed; detached work goes on.
                self._report(full_name, request, grpc.StatusCode.CANCELLED, started, "the caller is gone")
                raise
            except Exception as error:
                status = status_of(error)
                if not status.known:
                    _log.exception("%s failed", full_name)
                self._report(full_name, request, status.code, started, status.message)
                await context.abort(status.code, status.message)
                raise  # abort has raised already; for the type checker
            self._report(full_name, request, grpc.StatusCode.OK, started, "")
            return response

        return handle

    def _report(
        self, method: str, request: Message, code: grpc.StatusCode, started: float, message: str
    ) -> None:
        seconds = time.monotonic() - started
        self._metrics.observe(method, code, seconds)
        ok = code is grpc.StatusCode.OK
        level = logging.DEBUG if ok and method.rpartition("/")[2] in _QUIET else logging.INFO
        if _log.isEnabledFor(level):
            detail = f" {message}" if message else ""
            _log.log(level, "%s %s %.3f s %s%s", method, code.name, seconds, redacted(request), detail)


def _budget(remaining: float | None) -> float:
    if remaining is None or remaining > _LONGEST:
        remaining = _LONGEST
    return remaining - min(_MARGIN_MAX, _MARGIN_SHARE * remaining)
