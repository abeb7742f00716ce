"""The CRDs and their pages in the tree are what the models say today."""

import shutil
from pathlib import Path

import pytest

from cinderblock.core.crd.__main__ import main
from cinderblock.core.crd.files import LIFECYCLE_FOLDER, crd_yaml, generated, stale, write

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that holds only what is written by hand."""
    shutil.copytree(ROOT / LIFECYCLE_FOLDER, tmp_path / LIFECYCLE_FOLDER)
    return tmp_path


def test_nothing_is_stale() -> None:
    assert stale(ROOT) == [], "run make generate"


def test_every_difference_is_found_and_mended(checkout: Path) -> None:
    assert len(write(checkout)) == len(generated(checkout))
    assert stale(checkout) == []
    assert write(checkout) == [], "a second run changes nothing"
    (checkout / "deploy/crds/volumes.yaml").write_text("changed")
    (checkout / "docs/crds/pool.md").unlink()
    (checkout / "deploy/crds/gone.yaml").write_text("of a kind that is no more")
    found = ["deploy/crds/gone.yaml", "deploy/crds/volumes.yaml", "docs/crds/pool.md"]
    assert stale(checkout) == found
    assert write(checkout) == found
    assert stale(checkout) == []
    assert not (checkout / "deploy/crds/gone.yaml").exists()


def test_the_command_checks_writes_and_prints(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", "--root", str(checkout)]) == 1
    assert "deploy/crds/volumes.yaml: stale, run make generate" in capsys.readouterr().out
    assert not (checkout / "deploy").exists(), "a check writes nothing"
    assert main(["--root", str(checkout)]) == 0
    assert main(["--check", "--root", str(checkout)]) == 0
    capsys.readouterr()
    assert main(["--print"]) == 0
    assert capsys.readouterr().out == "---\n".join(crd_yaml().values())
    with pytest.raises(SystemExit):
        main(["--root", str(checkout / "docs")])
    assert "not the root of a checkout" in capsys.readouterr().err
