"""The operators of extra specs."""

from __future__ import annotations

import pytest

from cinderblock.core.extra_specs import capability_of, satisfies


@pytest.mark.parametrize(
    ("value", "wanted", "fits"),
    [
        ("ssd", "ssd", True),
        ("ssd", "hdd", False),
        ("two words", "two words", True),
        ("true", "True", True),
        ("", "", True),
        (None, "ssd", False),
        (None, "<is> True", False),
        # numeric: = means at least
        ("12", "= 10", True),
        ("9", "= 10", False),
        ("10", "== 10", True),
        ("10.0", "== 10", True),
        ("11", "== 10", False),
        ("11", "!= 10", True),
        ("10", "!= 10", False),
        ("10", ">= 10", True),
        ("9.9", ">= 10", False),
        ("10", "<= 10", True),
        ("10.1", "<= 10", False),
        ("many", ">= 10", False),
        ("10", ">= many", False),
        ("10", ">=", False),
        # text
        ("abc", "s== abc", True),
        ("abc", "s!= abc", False),
        ("abd", "s> abc", True),
        ("abc", "s> abc", False),
        ("abc", "s>= abc", True),
        ("abb", "s< abc", True),
        ("abc", "s<= abc", True),
        ("abd", "s<= abc", False),
        ("10", "s== 10.0", False),
        # parts, truth values, alternatives
        ("AES-256-XTS", "<in> 256", True),
        ("AES-128", "<in> 256", False),
        ("yes", "<is> True", True),
        ("true", "<is> true", True),
        ("false", "<is> True", False),
        ("false", "<is> False", True),
        ("nvme", "<or> ssd <or> nvme", True),
        ("hdd", "<or> ssd <or> nvme", False),
        ("big disk", "<or> ssd <or> big disk", True),
        # an unknown first word is just text
        ("~= 5", "~= 5", True),
        ("5", "~= 5", False),
    ],
)
def test_operators(value: str | None, wanted: str, fits: bool) -> None:
    assert satisfies(value, wanted) is fits


def test_scopes() -> None:
    assert capability_of("disk") == "disk"
    assert capability_of("capabilities:disk") == "disk"
    assert capability_of("provisioning:type") is None
    assert capability_of("qos:maxIOPS") is None
