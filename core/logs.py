"""Logs: one JSON object a line, or colours on a terminal; both through one filter that removes secrets.

Every module logs with the standard library; structlog only renders. Secrets should never get this far, so the
filter is the last line of defence, not a licence.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from enum import StrEnum
from typing import Any

import structlog

_REDACTED = "<redacted>"
_SECRET_KEY = re.compile(r"(?i)(password|passwd|secret|token|authorization|private.?key|chap|credential)")
_SECRET_TEXT = re.compile(
    r"(?i)\b(bearer\s+|basic\s+)[A-Za-z0-9._~+/=-]{8,}"
    r"|\b((?:password|passwd|secret|token|authorization|private[-_ ]?key)[\"']?\s*[=:]\s*[\"']?)"
    r"(?!<redacted>)(?:bearer\s+|basic\s+)?[^\s\"',;}]+"
)
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL)
_NOISY = {
    "kopf": logging.WARNING,
    "kubernetes": logging.WARNING,
    "aiohttp": logging.WARNING,
    "asyncio": logging.WARNING,
}


class LogFormat(StrEnum):
    JSON = "json"
    CONSOLE = "console"


def redact(text: str) -> str:
    """The text without what looks like a secret."""
    text = _SECRET_TEXT.sub(lambda found: (found[1] or found[2]) + _REDACTED, text)
    return _PEM.sub(_REDACTED, text)


def _redact_value(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {
            key: _REDACTED if _SECRET_KEY.search(str(key)) else _redact_value(v) for key, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [_redact_value(item) for item in value]
    return value


def _redactor(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if key.startswith("_"):
            continue  # the processors' own
        event[key] = _REDACTED if _SECRET_KEY.search(key) and value is not None else _redact_value(value)
    return event


def configure(level: str = "info", form: LogFormat | None = None) -> None:
    """Once per process, before anything logs. Format by default: colours on a terminal, else JSON."""
    form = form or (LogFormat.CONSOLE if sys.stderr.isatty() else LogFormat.JSON)
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form is LogFormat.JSON
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _redactor,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, least in _NOISY.items():
        logging.getLogger(name).setLevel(max(least, root.level))
