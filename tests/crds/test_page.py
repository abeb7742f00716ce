"""A page tells every field, rule and column of its kind, in tables that stay tables."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from cinderblock.core.api import KINDS, Volume
from cinderblock.core.api.meta import CustomResource
from cinderblock.core.crd.manifest import object_schema
from cinderblock.core.crd.page import index, page


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every table row."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield re.split(r"(?<!\\)\|", line)[1:-1]


def fields(schema: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        yield f"{prefix}{name}"
        yield from fields(field, f"{prefix}{name}.")
        yield from fields(field.get("items", {}), f"{prefix}{name}[].")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.KIND)
def test_every_field_has_a_row_of_four_cells(kind: type[CustomResource]) -> None:
    text = page(kind, "It lives.\n")
    assert text.count("\n## Lifecycle\n\nIt lives.\n") == 1
    parts = object_schema(kind)["properties"]
    wanted = [f"`{name}`" for part in ("spec", "status") for name in fields(parts[part])]
    before_rules = re.split(r"\n## (?:Rules|Columns)", text)[0]
    table = [[cell.strip() for cell in row] for row in rows(before_rules)]
    assert [row[0] for row in table if row[0].startswith("`")] == wanted
    assert {len(row) for row in table} <= {4}
    for rule in kind.CEL_RULES:
        assert rule.message in text
    for column in kind.PRINTER_COLUMNS:
        assert f"| {column.name} |" in text


def test_a_bar_in_a_pattern_is_escaped_once() -> None:
    text = page(Volume, "")
    assert r"pattern `^(ext4\|xfs)$`" in text
    assert r"\\|" not in text


def test_the_index_leads_to_every_page() -> None:
    text = index(KINDS)
    for kind in KINDS:
        assert f"[{kind.KIND}]({kind.SINGULAR}.md)" in text
