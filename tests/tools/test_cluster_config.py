"""What the local cluster tells containerd, the CNI and the kubelet, and what makes an image."""

import hashlib
import json
import tarfile
import tomllib
from ipaddress import IPv4Network, ip_address
from pathlib import Path

import pytest
import yaml
from tools.cluster import node_config
from tools.cluster.context import context_files, context_hash, is_ignored, parse_rules
from tools.cluster.images import module_version, sidecar_images
from tools.cluster.layout import INSTANCE_MAX, PAUSE_IMAGE, Layout
from tools.cluster.oci import Image, image_names, manifest_digest, write_archive
from tools.shell import ToolError


def test_a_state_folder_too_long_for_sockets_is_refused_at_once() -> None:
    with pytest.raises(ToolError, match="CINDERBLOCK_STATE"):
        Layout(Path("/tmp") / ("x" * 60))
    node = Layout(Path("/tmp") / ("x" * 40)).node(2)
    socket = node.folder / "kubelet" / "plugins_registry" / "csi.cinderblock.io-reg.sock"
    assert len(str(socket)) <= 107


def test_names_fit_the_kernel_and_no_two_clusters_share_one() -> None:
    clusters = [Layout(Path("/s"), number) for number in range(INSTANCE_MAX + 1)]
    nodes = [node for cluster in clusters for node in cluster.nodes()]
    interfaces = [*(cluster.bridge for cluster in clusters), *(node.veth for node in nodes)]
    assert all(len(name) <= 15 for name in interfaces)
    assert len(set(interfaces)) == len(interfaces)
    for names in (
        [node.kernel_name for node in nodes],
        [node.address for node in nodes] + [cluster.api_address for cluster in clusters],
        [node.pod_subnet for node in nodes],
    ):
        assert len(set(names)) == len(names)
    for node in nodes:
        assert ip_address(node.address) in IPv4Network(node.cluster.subnet)
        assert IPv4Network(node.pod_subnet).subnet_of(IPv4Network(node.cluster.pod_cidr))


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ToolError):
        Layout(Path("/s")).node(3)
    with pytest.raises(ToolError):
        Layout(Path("/s"), INSTANCE_MAX + 1)


def test_containerd_pins_the_sandbox_image_and_keeps_to_its_folder() -> None:
    node = Layout(Path("/s")).node(1)
    config = tomllib.loads(node_config.containerd_toml(node))
    assert config["plugins"]["io.containerd.cri.v1.images"]["pinned_images"]["sandbox"] == PAUSE_IMAGE
    assert config["plugins"]["io.containerd.cri.v1.runtime"]["restrict_oom_score_adj"] is True
    assert config["root"].startswith("/s/node1/")


def test_pods_of_each_node_have_addresses_of_that_node() -> None:
    for node in Layout(Path("/s")).nodes():
        plugins = json.loads(node_config.cni_conflist(node))["plugins"]
        assert plugins[0]["ipam"]["ranges"] == [[{"subnet": node.pod_subnet}]]


def test_kubelets_do_not_share_a_cgroup_root() -> None:
    configs = [
        yaml.safe_load(node_config.kubelet_yaml(node, Path("/p"))) for node in Layout(Path("/s")).nodes()
    ]
    assert len({config["cgroupRoot"] for config in configs}) == len(configs)
    assert all(config["authentication"]["anonymous"] == {"enabled": False} for config in configs)


def test_sidecars_have_their_official_names_and_the_pinned_versions() -> None:
    assert set(sidecar_images()) == {
        "registry.k8s.io/sig-storage/csi-provisioner:v6.3.0",
        "registry.k8s.io/sig-storage/csi-attacher:v4.13.0",
        "registry.k8s.io/sig-storage/csi-resizer:v2.3.0",
        "registry.k8s.io/sig-storage/csi-snapshotter:v8.7.0",
        "registry.k8s.io/sig-storage/snapshot-controller:v8.7.0",
    }
    assert module_version("require a.b/c v1.2.3 // indirect\n", "a.b/c") == "v1.2.3"
    with pytest.raises(ToolError):
        module_version("require a.b/cd v1.2.3\n", "a.b/c")


def _image(name: str, program: Path) -> Image:
    return Image([name], {"bin/program": program}, {"bin": 0o755}, {"sh": "bin/program"}, {"note": "text"})


def test_the_same_files_make_the_same_image(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"one")
    first, second, third = (tmp_path / f"{name}.tar" for name in ("first", "second", "third"))
    write_archive(first, _image("example.org/x:1", program))
    program.touch()
    write_archive(second, _image("example.org/x:1", program))
    assert first.read_bytes() == second.read_bytes()
    program.write_bytes(b"two")
    write_archive(third, _image("example.org/x:1", program))
    assert manifest_digest(third) != manifest_digest(first)
    assert image_names(first) == ("example.org/x:1",)
    assert not list(tmp_path.glob("*.new"))


def test_every_blob_of_an_archive_has_the_name_of_its_content(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"x" * 100_000)
    write_archive(tmp_path / "a.tar", _image("example.org/x:1", program))
    with tarfile.open(tmp_path / "a.tar") as archive:
        blobs = [member for member in archive if member.name.startswith("blobs/sha256/")]
        assert len(blobs) == 3
        for member in blobs:
            content = archive.extractfile(member)
            assert content is not None
            assert hashlib.sha256(content.read()).hexdigest() == member.name.removeprefix("blobs/sha256/")


@pytest.mark.parametrize(
    ("rules", "path", "ignored"),
    [
        ("*.log", "a.log", True),
        ("*.log", "deep/a.log", False),
        ("**/*.log", "deep/er/a.log", True),
        ("docs", "docs/a/b.md", True),
        ("docs", "docsy/a.md", False),
        ("*\n!core", "core/x/y.py", False),
        ("*\n!core", "cli/x.py", True),
        ("*\n!core\n**/__pycache__", "core/x/__pycache__/y.pyc", True),
        ("# comment\n\n/core/", "core/x.py", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
    ],
)
def test_dockerignore_rules(rules: str, path: str, ignored: bool) -> None:
    assert is_ignored(path, parse_rules(rules)) is ignored


def test_the_hash_of_a_context_follows_what_the_build_would_see(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM x\n")
    (tmp_path / ".dockerignore").write_text("*\n!src\n")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("1")
    (tmp_path / "other").write_text("1")
    assert context_files(tmp_path) == ["src/a.py"]

    def now(extra: str = "") -> str:
        return context_hash(tmp_path, tmp_path / "Dockerfile", extra)

    seen = [now()]
    (tmp_path / "other").write_text("2")
    assert now() == seen[0], "a file outside the context changed the image"
    for change in (
        lambda: (tmp_path / "src" / "a.py").write_text("2"),
        lambda: (tmp_path / "src" / "a.py").chmod(0o755),
        lambda: (tmp_path / "src" / "b.py").symlink_to("a.py"),
        (tmp_path / "src" / "b.py").unlink,
        lambda: (tmp_path / "Dockerfile").write_text("FROM y\n"),
    ):
        change()
        assert now() != seen[-1]
        seen.append(now())
    assert now("another name") != seen[-1]
