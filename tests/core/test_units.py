"""Sizes as people write them and as bytes."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cinderblock.core.units import GIB, format_bytes, parse_quantity, readable_bytes

SUFFIXES = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "k", "M", "G", "T", "P", "E"]


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1", 1),
        ("10Gi", 10 * GIB),
        ("10G", 10_000_000_000),
        ("0.5Gi", GIB // 2),
        ("1.5k", 1500),
        ("0.1", 1),  # a part of a byte takes a byte
        ("0.3Ki", 308),
        ("007Mi", 7 * 1024**2),
        ("8Ei", 2**63),
    ],
)
def test_a_quantity_is_bytes(text: str, size_bytes: int) -> None:
    assert parse_quantity(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-1",
        "+1",
        "abc",
        "1e3",
        "10gi",
        "10 Gi",
        "10Gi ",
        "10Gi\n",
        "1.",
        ".5",
        "1KiB",
        "1m",
        "٣",
        "1,5Gi",
    ],
)
def test_what_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="such as 10Gi"):
        parse_quantity(text)


@given(st.integers(min_value=0, max_value=2**63))
def test_a_formatted_size_reads_back_as_itself(size_bytes: int) -> None:
    text = format_bytes(size_bytes)
    assert parse_quantity(text) == size_bytes
    assert len(text) <= len(str(size_bytes))


@given(st.integers(min_value=0, max_value=10**6), st.sampled_from(SUFFIXES))
def test_a_larger_number_is_never_a_smaller_size(number: int, suffix: str) -> None:
    assert parse_quantity(f"{number}{suffix}") <= parse_quantity(f"{number + 1}{suffix}")


@given(st.integers(min_value=0, max_value=10**9), st.sampled_from(["", "Ki", "Gi", "M"]))
def test_rounding_is_up_and_by_less_than_a_byte(thousandths: int, suffix: str) -> None:
    text = f"{thousandths // 1000}.{thousandths % 1000:03d}{suffix}"
    exact = Fraction(thousandths, 1000) * {"": 1, "Ki": 1024, "Gi": GIB, "M": 10**6}[suffix]
    assert 0 <= parse_quantity(text) - exact < 1


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0"), (1000, "1000"), (1536, "1536"), (2048, "2Ki"), (10 * GIB, "10Gi")]
)
def test_the_shortest_exact_form_is_taken(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0"),
        (1000, "1000"),
        (10 * GIB, "10Gi"),
        (900 << 40, "900Ti"),
        (5284241680 << 10, "4.92Ti"),
        (1 << 40 | 1, "1.00Ti"),
    ],
)
def test_sizes_for_people_are_short_and_never_too_large(size_bytes: int, text: str) -> None:
    assert readable_bytes(size_bytes) == text
