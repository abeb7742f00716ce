"""The cache of built tools: found again when nothing changed, never when a pin changed."""

import hashlib
from pathlib import Path

import pytest
from tools.golang import parse_version
from tools.modules import MODULES, Module, binary, module_of
from tools.paths import GO_MODULES
from tools.shell import ToolError
from tools.stubs import SOURCES, Source, pinned


def test_every_folder_of_pins_is_built_by_somebody() -> None:
    assert set(MODULES) == {path.name for path in GO_MODULES.iterdir() if path.is_dir()}


@pytest.mark.parametrize("module", MODULES.values(), ids=lambda module: str(module.name))
def test_every_command_is_pinned_by_its_go_mod(module: Module) -> None:
    declared = (GO_MODULES / module.name / "tools.go").read_text()
    assert all(f'"{command}"' in declared for command in module.commands)


def test_the_folder_is_named_by_the_content_of_go_sum(tmp_path: Path) -> None:
    digest = hashlib.sha256((GO_MODULES / "etcd" / "go.sum").read_bytes()).hexdigest()[:16]
    assert MODULES["etcd"].folder(tmp_path) == tmp_path / "tools" / f"etcd-{digest}"


def test_a_folder_that_lacks_a_binary_is_not_taken_for_built(tmp_path: Path) -> None:
    module = MODULES["containerd"]
    folder = module.folder(tmp_path)
    folder.mkdir(parents=True)
    for name in module.binaries[:-1]:
        (folder / name).touch()
    assert not module.is_built(tmp_path)
    (folder / module.binaries[-1]).touch()
    assert module.is_built(tmp_path)


def test_binaries_are_named_as_people_know_them() -> None:
    assert MODULES["etcd"].binaries == ("etcd",)
    assert module_of("csi-provisioner") is MODULES["csi"]
    assert "kube-apiserver" in MODULES["kubernetes"].binaries
    with pytest.raises(ToolError, match="no pinned module"):
        module_of("minikube")


def test_a_binary_that_is_not_built_names_the_command_that_builds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CINDERBLOCK_CACHE", str(tmp_path))
    with pytest.raises(ToolError, match=r"tools\.build helm"):
        binary("helm")


def test_kubernetes_tells_its_version() -> None:
    flags = MODULES["kubernetes"].ldflags
    assert "gitVersion=v1.36.3" in flags
    assert "gitMinor=36" in flags


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26)),
        ("go version go1.19 linux/amd64", (1, 19)),
        ("go version devel go1.27-abc linux/amd64", (1, 27)),
        ("command not found", None),
    ],
)
def test_versions_of_go_are_read(said: str, version: tuple[int, int] | None) -> None:
    assert parse_version(said) == version


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.name))
def test_protocol_files_come_from_pinned_content(source: Source) -> None:
    go_sum = (GO_MODULES / source.module / "go.sum").read_text()
    assert any(" h1:" in line for line in pinned(go_sum, source.dependency))
    with pytest.raises(ToolError):
        pinned(go_sum, f"{source.dependency}-unknown")
