"""The images that every local cluster needs, made here since no registry is asked.

pause and busybox for pods, and the official CSI sidecars under the names that the chart uses everywhere: the
pinned binaries alone, with the versions that go.mod pins.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tools import build
from tools.cluster.layout import PAUSE_IMAGE
from tools.cluster.oci import Image, write_archive
from tools.debian import sbin_path
from tools.modules import MODULES, binary
from tools.paths import GO_MODULES, cache_dir
from tools.shell import ToolError, run

BUSYBOX_IMAGE = "docker.io/library/busybox:1.37"
_SIDECARS: Mapping[str, str] = {
    "csi-provisioner": "github.com/kubernetes-csi/external-provisioner/v6",
    "csi-attacher": "github.com/kubernetes-csi/external-attacher/v4",
    "csi-resizer": "github.com/kubernetes-csi/external-resizer/v2",
    "csi-snapshotter": "github.com/kubernetes-csi/external-snapshotter/v8",
    "snapshot-controller": "github.com/kubernetes-csi/external-snapshotter/v8",
}
_PAUSE_SOURCE = """\
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
/* Holds a pod's namespaces: waits to be told to end, and collects orphans meanwhile. */
static void finish(int number) { (void)number; _exit(0); }
static void collect(int number) { (void)number; while (waitpid(-1, 0, WNOHANG) > 0) {} }
int main(void) {
  signal(SIGINT, finish);
  signal(SIGTERM, finish);
  signal(SIGCHLD, collect);
  for (;;) pause();
}
"""
_BUSYBOX_FOLDERS = (
    "bin",
    "dev",
    "etc",
    "home",
    "mnt",
    "proc",
    "root",
    "sbin",
    "sys",
    "usr",
    "usr/bin",
    "var",
)


@dataclass(frozen=True)
class Archive:
    """An OCI archive of one image, and the names that a node knows it by."""

    names: tuple[str, ...]
    path: Path


def folder() -> Path:
    """Where archives are kept between clusters."""
    return cache_dir() / "images"


def module_version(go_mod: str, module: str) -> str:
    """The version that a go.mod requires of a module."""
    match = re.search(rf"^\s*(?:require\s+)?{re.escape(module)}\s+(v\S+)", go_mod, re.MULTILINE)
    if match is None:
        raise ToolError(f"go.mod does not require {module}")
    return match[1]


def sidecar_images() -> dict[str, str]:
    """Official image name -> binary."""
    go_mod = (GO_MODULES / "csi" / "go.mod").read_text()
    return {
        f"registry.k8s.io/sig-storage/{name}:{module_version(go_mod, module)}": name
        for name, module in _SIDECARS.items()
    }


def sidecars() -> list[Archive]:
    """An archive for each official sidecar; builds the binaries when missing."""
    build.ensure(["csi"])
    digest = MODULES["csi"].folder().name.rpartition("-")[2]

    def of(image: str, name: str) -> Archive:
        def content() -> Image:
            return Image([image], {name: binary(name)}, {"tmp": 0o1777}, {}, {}, entrypoint=[f"/{name}"])

        return _archive(name, digest, (image,), content)

    return [of(image, name) for image, name in sidecar_images().items()]


def pause() -> Archive:
    """The container that holds a pod's namespaces; without it no pod starts."""
    program = folder() / f"pause-{_digest(_PAUSE_SOURCE)}"

    def content() -> Image:
        compiler = ["gcc", "-O2", "-static", "-s", "-x", "c", "-", "-o", str(program)]
        run(compiler, timeout=60, stdin=_PAUSE_SOURCE)
        return Image([PAUSE_IMAGE], {"pause": program}, {}, {}, {}, entrypoint=["/pause"])

    return _archive("pause", _digest(_PAUSE_SOURCE), (PAUSE_IMAGE,), content)


def busybox() -> Archive:
    """Debian's static busybox as a small image for test pods (its `wget -T` crashes)."""
    found = shutil.which("busybox", path=sbin_path())
    if found is None:
        raise ToolError("busybox-static is not installed")
    program = Path(found).resolve()
    names = (BUSYBOX_IMAGE, "docker.io/library/busybox:latest")

    def content() -> Image:
        applets = [name for name in run([program, "--list"], timeout=30).split() if name != "busybox"]
        return Image(
            names,
            {"bin/busybox": program},
            {**dict.fromkeys(_BUSYBOX_FOLDERS, 0o755), "tmp": 0o1777},
            {f"bin/{name}": "busybox" for name in applets},
            {
                "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
                "etc/group": "root:x:0:\nnogroup:x:65534:\n",
            },
            cmd=["sh"],
        )

    return _archive("busybox", hashlib.sha256(program.read_bytes()).hexdigest()[:16], names, content)


def standard() -> list[Archive]:
    """All of them."""
    folder().mkdir(parents=True, exist_ok=True)
    return [pause(), busybox(), *sidecars()]


def prune(name: str, keep: Path) -> None:
    """Drop archives of the same image that were made from other inputs."""
    for other in folder().glob(f"{name}-{'[0-9a-f]' * 16}.tar"):
        if other != keep:
            other.unlink(missing_ok=True)


def _archive(name: str, digest: str, names: tuple[str, ...], content: Callable[[], Image]) -> Archive:
    path = folder() / f"{name}-{digest}.tar"
    if not path.exists():
        write_archive(path, content())
        prune(name, path)
    return Archive(names, path)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
