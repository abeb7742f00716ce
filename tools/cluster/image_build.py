"""Build a Dockerfile with buildah where no registry can be reached.

The base image is Debian's own root, made once by debootstrap under the name that registries have for it, so
that the Dockerfile needs no word about this. The machine's CA bundle and a pip.conf that names it are
mounted for the time of the build: networks with an authority of their own would fail every download
otherwise.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tools.cluster import images, kernel
from tools.cluster.context import context_hash
from tools.cluster.images import Archive
from tools.paths import cache_dir
from tools.shell import ToolError, run, say

BASE_IMAGE = "docker.io/library/debian:trixie-slim"
_SUITE = "trixie"
_CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_CA_INSIDE = "/run/ca.crt"  # over /etc/ssl/certs a package that brings ca-certificates could not be installed
_BUILD_SECONDS = 1800.0
_SLOW_SECONDS = 900.0


def build_image(name: str, context: Path, dockerfile: Path | None = None) -> Archive:
    """Build `context` as image `name`; nothing is built when its files did not change since the last time."""
    file = dockerfile or context / "Dockerfile"
    if not file.is_file():
        raise ToolError(f"there is no {file}")
    short = name.rpartition("/")[2].partition(":")[0]
    archive = images.folder() / f"{short}-{context_hash(context, file, name)}.tar"
    if archive.exists():
        return Archive((name,), archive)
    with _store_locked(wait=True):
        if not archive.exists():
            _build(name, short, context, file, archive)
    return Archive((name,), archive)


def clean_up() -> None:
    """Remove what an interrupted build left mounted; while another build runs, it is left to that one."""
    store = cache_dir() / "buildah"
    with _store_locked(wait=False) as mine:
        if mine and kernel.mounts_under(store):
            _buildah("rm", "--all", timeout=_SLOW_SECONDS)
            kernel.unmount_under(store)


@contextlib.contextmanager
def _store_locked(*, wait: bool) -> Iterator[bool]:
    """One user of the image store at a time; False where somebody has it and we do not wait."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / ".buildah.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _build(name: str, short: str, context: Path, file: Path, archive: Path) -> None:
    ensure_base()
    say(f"building image {name}")
    log = images.folder() / f"{short}.build.log"
    log.write_text("")
    _buildah(
        *("build", "--isolation", "chroot", "--layers", "--file", str(file), "--tag", name),
        *_mounts(),
        str(context),
        timeout=_BUILD_SECONDS,
        log=log,
    )
    partial = archive.with_suffix(".new")
    partial.unlink(missing_ok=True)
    _buildah("push", "--disable-compression", name, f"oci-archive:{partial}:{name}", timeout=_SLOW_SECONDS)
    partial.rename(archive)
    images.prune(short, archive)


def ensure_base() -> None:
    """Debian's root as BASE_IMAGE in our own buildah store."""
    if BASE_IMAGE in _buildah("images", "--format", "{{.Name}}:{{.Tag}}", timeout=60).split():
        return
    tar = images.folder() / f"debian-{_SUITE}.tar"
    if not tar.exists():
        _debootstrap(tar)
    container = _buildah("from", "scratch", timeout=60).strip()
    try:
        _buildah("add", "--quiet", container, str(tar), "/", timeout=_SLOW_SECONDS)
        _buildah("config", "--cmd", "bash", container, timeout=60)
        _buildah("commit", "--quiet", container, BASE_IMAGE, timeout=_SLOW_SECONDS)
    finally:
        _buildah("rm", container, timeout=60)


def _debootstrap(tar: Path) -> None:
    say(f"making a Debian {_SUITE} root with debootstrap (about half a minute, once)")
    images.folder().mkdir(parents=True, exist_ok=True)
    root = images.folder() / f"debian-{_SUITE}.root"
    log = images.folder() / "debootstrap.log"
    shutil.rmtree(root, ignore_errors=True)
    mirror = _mirror()
    try:
        run(
            ["debootstrap", "--variant=minbase", _SUITE, root, *([mirror] if mirror else [])],
            timeout=_SLOW_SECONDS,
            log=log,
        )
        for pattern in ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*_*"):
            for path in root.glob(pattern):
                path.unlink()
        partial = tar.with_suffix(".new")
        run(["tar", "--numeric-owner", "-C", root, "-cf", partial, "."], timeout=_SLOW_SECONDS)
        partial.rename(tar)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _mirror() -> str | None:
    """Where this machine's own apt gets Debian from; debootstrap's default otherwise."""
    if shutil.which("apt-get") is None:
        return None
    said = run(["apt-get", "indextargets", "--format", "$(SITE) $(COMPONENT)"], timeout=60, check=False)
    sites = [row.split()[0] for row in said.splitlines() if row.endswith(" main") and "security" not in row]
    return sites[0] if sites else None


def _mounts() -> list[str]:
    folder = images.folder()
    pip, apt = folder / "pip.conf", folder / "apt-ca.conf"
    index = os.environ.get("PIP_INDEX_URL")
    pip.write_text(f"[global]\ncert = {_CA_INSIDE}\n" + (f"index-url = {index}\n" if index else ""))
    apt.write_text(f'Acquire::https::CAInfo "{_CA_INSIDE}";\n')
    if not _CA_BUNDLE.exists():
        return []
    return [
        f"--volume={_CA_BUNDLE}:{_CA_INSIDE}:ro",
        f"--volume={pip}:/etc/pip.conf:ro",
        f"--volume={apt}:/etc/apt/apt.conf.d/99cinderblock-build:ro",
    ]


def _buildah(*arguments: str, timeout: float, log: Path | None = None) -> str:
    """buildah with a store of our own: the user's images stay apart, and clearing the cache clears it."""
    store = cache_dir() / "buildah"
    places = ("--root", store / "storage", "--runroot", Path("/run/cinderblock-buildah"))
    return run(["buildah", *places, *arguments], timeout=timeout, log=log)
