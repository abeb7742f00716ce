"""Rules for every file: short modules that say why they exist, and nothing of one machine in the tree."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES = 400
MOST_TEST_LINES = 600  # a table of cases is long without being hard to read

# Put together here, so that this file does not hold what it looks for.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("proxy", "golang", "org"),
        ("sum", "golang", "org"),
        ("registry", "npmjs", "org"),
        ("crates", "io"),
        ("deb", "debian", "org"),
    )
]
FOREIGN = re.compile(
    "|".join([*map(re.escape, REGISTRIES), rf"(?<![\w.\-/{{}}])/(?:{'wo'}rk|{'ro'}ot)/(?!\.\.)[\w.]"])
)
RECORDS = {".sum", ".lock"}  # made by tools; go.sum names modules, not hosts of ours


def tree() -> list[Path]:
    """Files that are in the tree or about to be, links left out."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    paths = sorted(ROOT / name for name in listed.stdout.split("\0") if name)
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def modules() -> list[Path]:
    return [path for path in tree() if path.suffix == ".py"]


def shown(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_there_is_something_to_look_at() -> None:
    names = shown(modules())
    assert "core/errors.py" in names
    assert "tests/architecture/test_tree.py" in names


def test_no_module_is_long() -> None:
    long = {}
    for path in modules():
        name, lines = str(path.relative_to(ROOT)), path.read_text().count("\n")
        if lines > (MOST_TEST_LINES if name.startswith("tests/") else MOST_LINES):
            long[name] = lines
    assert long == {}


def test_every_module_says_why_it_exists() -> None:
    silent = []
    for path in modules():
        source = path.read_text()
        if source.strip() and not ast.get_docstring(ast.parse(source)):
            silent.append(path)
    assert shown(silent) == []


def test_no_file_names_a_package_registry_or_a_path_of_one_machine() -> None:
    found = []
    for path in tree():
        if path.suffix in RECORDS:
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
            for number, line in enumerate(text.splitlines(), 1)
            if FOREIGN.search(line)
        ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    ["see /" + "root/x", "cd /" + "work/main", "https://" + "pypi." + "org/simple"],
)
def test_the_check_finds_what_it_looks_for(line: str) -> None:
    assert FOREIGN.search(line)


@pytest.mark.parametrize("line", ["/work" + "loads", "the /root", "{state}/root/x", "../root/x", "$HOME/x"])
def test_the_check_lets_pass_what_is_fine(line: str) -> None:
    assert not FOREIGN.search(line)


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in modules() if path.name.startswith("test_")]
    assert sorted({name for name in names if names.count(name) > 1}) == []
    assert not list((ROOT / "tests").rglob("__init__.py"))
