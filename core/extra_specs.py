"""The operators of extra specs, as Cinder has them: the first word of the wanted value is the operator.

Numeric `=` means at least, `==` equality; `s==` and its kin compare text; `<in>` is a part of the text, `<is>` a
truth value, `<or> a <or> b` one of several. An unknown first word means equality of the whole text.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType

_SCOPE = "capabilities"
_BOOLEAN = frozenset({"true", "false"})
_TRUE = frozenset({"1", "t", "true", "on", "y", "yes"})

_NUMERIC: Mapping[str, Callable[[float, float], bool]] = MappingProxyType(
    {
        "=": operator.ge,
        "==": operator.eq,
        "!=": operator.ne,
        ">=": operator.ge,
        "<=": operator.le,
    }
)
_TEXT: Mapping[str, Callable[[str, str], bool]] = MappingProxyType(
    {
        "s==": operator.eq,
        "s!=": operator.ne,
        "s<": operator.lt,
        "s<=": operator.le,
        "s>": operator.gt,
        "s>=": operator.ge,
    }
)


def capability_of(key: str) -> str | None:
    """The capability that an extra spec speaks of; None when its scope is not ours to judge."""
    scope, colon, rest = key.partition(":")
    if not colon:
        return key
    return rest if scope == _SCOPE else None


def satisfies(value: str | None, wanted: str) -> bool:
    """Whether a capability's value meets what the extra spec wants. No value, or no number, never does."""
    if value is None:
        return False
    words = wanted.split()
    if not words:
        return value == wanted
    first, rest = words[0], words[1:]
    if first == "<or>":
        return _one_of(value, rest)
    if first == "<is>":
        return bool(rest) and _truth(value) == _truth(" ".join(rest))
    if first == "<in>":
        return bool(rest) and " ".join(rest) in value
    if first in _TEXT:
        return bool(rest) and _TEXT[first](value, " ".join(rest))
    if first in _NUMERIC:
        try:
            return _NUMERIC[first](float(value), float(" ".join(rest)))
        except ValueError:
            return False
    if value in _BOOLEAN:  # a truth value is one however it is written
        return value == wanted.lower()
    return value == wanted


def _one_of(value: str, words: list[str]) -> bool:
    choices = " ".join(words).split("<or>")
    return any(value == choice.strip() for choice in choices)


def _truth(text: str) -> bool:
    return text.strip().lower() in _TRUE
