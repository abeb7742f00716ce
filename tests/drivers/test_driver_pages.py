"""Each driver's page names every setting, and its examples are accepted."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from cinderblock.drivers.registry import Registry

PAGES = Path(__file__).parents[2] / "docs" / "drivers"


def settings_of(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


@pytest.mark.parametrize("driver", ["file", "fake"])
def test_every_setting_is_on_the_page(driver: str) -> None:
    page = (PAGES / f"{driver}.md").read_text()
    named = set(re.findall(r"`([A-Za-z.]+)`", page))
    assert settings_of(Registry.load().get(driver).Config) <= named


@pytest.mark.parametrize("driver", ["file", "fake"])
def test_examples_are_accepted(driver: str) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", (PAGES / f"{driver}.md").read_text(), re.DOTALL)
    assert examples
    for example in examples:
        spec = yaml.safe_load(example)["spec"]
        assert spec["driver"] == driver
        Registry.load().judge(driver, spec["config"], spec.get("nodeSelector"))


def test_the_faults_table_names_every_field() -> None:
    from cinderblock.drivers.fake import Fault, Verb

    named = set(re.findall(r"`([A-Za-z.]+)`", (PAGES / "fake.md").read_text()))
    assert settings_of(Fault) <= named
    assert set(Verb) <= named
