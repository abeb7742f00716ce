"""Types of fields that the configurations of several drivers share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from cinderblock.core.units import parse_quantity


def _size(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("write a size such as 10Gi")  # noqa: TRY004 - pydantic turns ValueErrors into answers
    size_bytes = parse_quantity(str(value))
    if size_bytes <= 0:
        raise ValueError("a size is above 0")
    return size_bytes


SizeBytes = Annotated[int, BeforeValidator(_size)]
"""A Kubernetes quantity ("10Gi") in the configuration, bytes in the code; above 0."""
