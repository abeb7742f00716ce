"""The folders at the root are the sub-packages of `cinderblock`, and `operator/` never hides the standard library."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINKS = ROOT / "src" / "cinderblock"


def sources() -> dict[str, str]:
    """Folder -> place in the wheel, as the build is told."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: dict[str, str] = project["tool"]["hatch"]["build"]["targets"]["wheel"]["sources"]
    return found


def test_operator_is_no_regular_package() -> None:
    assert (ROOT / "operator").is_dir()
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_the_links_are_what_the_wheel_contains() -> None:
    assert {path.name for path in LINKS.iterdir()} == sources().keys()
    assert sources() == {folder: f"cinderblock/{folder}" for folder in sources()}
    for folder in sources():
        assert (LINKS / folder).is_symlink()
        assert (LINKS / folder).readlink() == Path("..", "..", folder)
    assert not (LINKS / "__init__.py").exists()


@pytest.mark.parametrize(
    "program",
    [
        "import collections, operator; assert operator.itemgetter",
        "import cinderblock.operator.engine.queue, operator; assert operator.itemgetter",
    ],
)
def test_the_standard_operator_stays_itself_in_the_root_of_the_checkout(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=50)


def test_a_module_of_the_checkout_can_be_run_by_its_name() -> None:
    subprocess.run([sys.executable, "-m", "cinderblock.core.crd", "--help"], cwd=ROOT, check=True, timeout=50)
