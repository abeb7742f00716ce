"""The last check before bytes leave: may this process still act?

Between deciding to send and sending lie awaits (a free connection, a TLS handshake), in which a leader may lose its
Lease. The check therefore travels with the task and is called by the transport in the same step as the send.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_check: ContextVar[Callable[[], None] | None] = ContextVar("cinderblock_send_check", default=None)


@contextlib.contextmanager
def checked(check: Callable[[], None]) -> Iterator[None]:
    """Every send of this task calls `check` first; what it raises is raised instead of sending."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def before_send() -> None:
    """Called by transports directly before the first byte."""
    check = _check.get()
    if check is not None:
        check()
