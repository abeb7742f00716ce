"""docs/install.md says what values.yaml says."""

import json
import re
from typing import Any

import yaml
from tools.paths import REPOSITORY

PAGE = REPOSITORY / "docs" / "install.md"
VALUES = REPOSITORY / "deploy" / "helm" / "cinderblock" / "values.yaml"


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        is_whole = not isinstance(value, dict) or not value or key == "config" or "requests" in value
        if is_whole:
            found[name] = value if isinstance(value, str) and value else json.dumps(value, sort_keys=True)
        else:
            found |= flat(value, f"{name}.")
    return found


def test_the_table_has_every_value_with_its_default() -> None:
    rows = re.findall(r"^\| `([a-zA-Z.]+)` \| `(.*?)` \|", PAGE.read_text(), re.MULTILINE)
    assert len({name for name, _ in rows}) == len(rows)
    assert dict(rows) == flat(yaml.safe_load(VALUES.read_text()))
