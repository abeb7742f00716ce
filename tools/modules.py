"""The pinned Go modules, what each one builds, and where the binaries lie once built.

One folder per module, named by the hash of its go.sum: a changed pin is another folder, so nothing stale is
ever found, and a warm machine builds nothing. Several checkouts share the cache.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tools.paths import GO_MODULES, cache_dir
from tools.shell import ToolError

KUBERNETES_VERSION = "v1.36.3"
_CSI = "github.com/kubernetes-csi"
_VERSION_PACKAGE = "k8s.io/component-base/version"


@dataclass(frozen=True)
class Module:
    """One folder of tools/go: its commands (package paths), extra linker flags, binaries that get another
    name."""

    name: str
    commands: tuple[str, ...]
    ldflags: str = ""
    renames: Mapping[str, str] = field(default_factory=dict)

    @property
    def binaries(self) -> tuple[str, ...]:
        """Names of the files that the folder holds once built."""
        return tuple(self.renames.get(base, base) for base in map(_base, self.commands))

    def folder(self, cache: Path | None = None) -> Path:
        """Where the binaries lie; exists only when complete."""
        digest = hashlib.sha256((GO_MODULES / self.name / "go.sum").read_bytes()).hexdigest()[:16]
        return (cache or cache_dir()) / "tools" / f"{self.name}-{digest}"

    def is_built(self, cache: Path | None = None) -> bool:
        """Every binary is there."""
        folder = self.folder(cache)
        return all((folder / binary).is_file() for binary in self.binaries)


def _base(command: str) -> str:
    """The name that `go build` gives: the last element, or the one before it where that is a version."""
    parts = command.split("/")
    return parts[-2] if parts[-1][:1] == "v" and parts[-1][1:].isdigit() else parts[-1]


def _kubernetes(*commands: str) -> tuple[str, ...]:
    return tuple(f"k8s.io/kubernetes/cmd/{command}" for command in commands)


def _version_flags(version: str) -> str:
    major, minor, _ = version.removeprefix("v").split(".")
    facts = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    return " ".join(f"-X {_VERSION_PACKAGE}.{key}={value}" for key, value in facts.items())


MODULES: Mapping[str, Module] = {
    module.name: module
    for module in (
        Module(
            "kubernetes",
            _kubernetes(
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kubelet",
                "kubectl",
                "kube-proxy",
            ),
            _version_flags(KUBERNETES_VERSION),
        ),
        Module("etcd", ("go.etcd.io/etcd/server/v3",), renames={"server": "etcd"}),
        Module(
            "containerd",
            tuple(
                f"github.com/containerd/containerd/v2/cmd/{command}"
                for command in ("containerd", "ctr", "containerd-shim-runc-v2")
            ),
        ),
        Module(
            "csi",
            (
                f"{_CSI}/external-provisioner/v6/cmd/csi-provisioner",
                f"{_CSI}/external-attacher/v4/cmd/csi-attacher",
                f"{_CSI}/external-resizer/v2/cmd/csi-resizer",
                f"{_CSI}/external-snapshotter/v8/cmd/csi-snapshotter",
                f"{_CSI}/external-snapshotter/v8/cmd/snapshot-controller",
                f"{_CSI}/csi-test/v5/cmd/csi-sanity",
            ),
        ),
        Module("helm", ("helm.sh/helm/v4/cmd/helm",)),
    )
}


def module_of(binary_name: str) -> Module:
    """Which module builds a binary."""
    for module in MODULES.values():
        if binary_name in module.binaries:
            return module
    raise ToolError(f"no pinned module builds {binary_name}")


def binary(name: str) -> Path:
    """The path of one built binary; ToolError where it is not built yet."""
    module = module_of(name)
    path = module.folder() / name
    if not path.is_file():
        raise ToolError(f"{name} is not built yet: run `python -m tools.build {module.name}`")
    return path
