"""Kubernetes quantities and integer bytes.

A quantity in a spec is what a person wrote ("10Gi"); everywhere else in the code a size is an `int` of bytes.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

KIB = 1024
MIB = 1024**2
GIB = 1024**3

# The forms that the API server accepts for a size: a decimal number and a binary or decimal suffix.
QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)?$"
_QUANTITY = re.compile(r"^(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<suffix>Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)?$")
_FACTOR: dict[str | None, int] = {
    None: 1,
    **{s: 1024 ** (i + 1) for i, s in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"))},
    **{s: 1000 ** (i + 1) for i, s in enumerate(("k", "M", "G", "T", "P", "E"))},
}


def parse_quantity(text: str) -> int:
    """Bytes of a quantity, rounded up to a whole byte. Raises ValueError with the accepted form."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is not a size: write a number with an optional suffix, such as 10Gi or 500M"
        )
    return math.ceil(Fraction(match["number"]) * _FACTOR[match["suffix"]])


def format_bytes(size_bytes: int) -> str:
    """The shortest exact quantity of a size: 10737418240 -> "10Gi", 1000 -> "1000"."""
    for suffix in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki"):
        factor = _FACTOR[suffix]
        if size_bytes >= factor and size_bytes % factor == 0:
            return f"{size_bytes // factor}{suffix}"
    return str(size_bytes)


def readable_bytes(size_bytes: int) -> str:
    """A size for people: exact where that is short ("10Gi"), else two decimals, rounded down ("4.92Ti")."""
    exact = format_bytes(size_bytes)
    if len(exact) <= 6:
        return exact
    for suffix in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki"):
        factor = _FACTOR[suffix]
        if size_bytes >= factor:
            return f"{size_bytes * 100 // factor / 100:.2f}{suffix}"
    return exact
