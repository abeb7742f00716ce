"""Install what is missing from Debian's packages, and say plainly where that cannot be done."""

import fcntl
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.shell import ToolError, run, say

# package -> what proves that it is there: cheaper than asking dpkg, and right for other ways of installing
CLUSTER_PACKAGES: Mapping[str, str] = {
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/ptp",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "iproute2": "ip",
    "util-linux": "nsenter",
    "mount": "losetup",
    "procps": "sysctl",
    "openssl": "openssl",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "busybox-static": "busybox",
    "gcc": "gcc",
    "libc6-dev": "/usr/include/stdlib.h",
    "e2fsprogs": "mkfs.ext4",
    "xfsprogs": "mkfs.xfs",
    "ca-certificates": "/etc/ssl/certs/ca-certificates.crt",
}
_APT = ("apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def sbin_path() -> str:
    """PATH with the administrators' folders, which a plain login on Debian lacks."""
    return f"{os.environ.get('PATH', '/usr/bin:/bin')}:{_SBIN}"


def is_present(proof: str) -> bool:
    """A path that exists, or a program in PATH."""
    return (
        Path(proof).exists() if proof.startswith("/") else shutil.which(proof, path=sbin_path()) is not None
    )


def missing(packages: Mapping[str, str]) -> list[str]:
    """The packages whose proof is not there."""
    return [name for name, proof in packages.items() if not is_present(proof)]


def ensure_packages(packages: Mapping[str, str]) -> None:
    """Install what is missing; ToolError where we are not root or this is not Debian."""
    names = missing(packages)
    if names:
        install(names)
        if still := missing(packages):
            raise ToolError(f"installed, yet not found: {' '.join(still)}")


def require_debian_root(names: Sequence[str]) -> None:
    """Say which packages a person must bring where we cannot."""
    wanted = " ".join(names)
    if shutil.which("apt-get") is None:
        raise ToolError(
            f"this machine is not Debian (no apt-get); install what these packages hold yourself: {wanted}"
        )
    if os.geteuid() != 0:
        raise ToolError(f"missing Debian packages and not root; as root: apt-get install {wanted}")


def require_machine() -> None:
    """Say everything at once that keeps the local cluster from running on this machine."""
    lacks = []
    if sys.platform != "linux" or platform.machine() != "x86_64":
        lacks.append(f"it needs Linux on x86_64, this is {sys.platform} on {platform.machine()}")
    if os.geteuid() != 0:
        lacks.append("it needs root: nodes are namespaces with mounts of their own")
    if shutil.which("apt-get") is None and (absent := missing(CLUSTER_PACKAGES)):
        lacks.append(f"not Debian (no apt-get here), and these are missing: {' '.join(absent)}")
    if lacks:
        raise ToolError("this machine cannot run the local cluster: " + "; ".join(lacks))


def install(names: Sequence[str], options: Sequence[str] = ()) -> None:
    """apt-get update and install, one installer at a time on this machine."""
    require_debian_root(names)
    say(f"installing Debian packages: {' '.join(names)}")
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    with Path("/run/lock/cinderblock-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run([*_APT, *options, "update"], timeout=600, env=env)
        run([*_APT, *options, "install", "-y", "--no-install-recommends", *names], timeout=1800, env=env)


def install_from_backports(names: Sequence[str], folder: Path) -> None:
    """Install from this release's backports; apt gets lists of its own, so the machine's sources stay as
    they are."""
    require_debian_root(names)
    release = _codename()
    formats = "$(SITE) $(RELEASE) $(COMPONENT)"
    rows = [
        row.split() for row in run(["apt-get", "indextargets", "--format", formats], timeout=60).splitlines()
    ]
    main = next((row for row in rows if row[1:3] == [release, "main"]), None)
    if main is None:
        raise ToolError(f"apt has no source for {release} main, so its backports cannot be named")
    parts = folder / "sources"
    parts.mkdir(parents=True, exist_ok=True)
    (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    signed = f"Signed-By: {_KEYRING}\n" if _KEYRING.exists() else ""
    stanza = f"Types: deb\nURIs: {main[0]}\nSuites: {release} {release}-backports\nComponents: main\n{signed}"
    (parts / "backports.sources").write_text(stanza)
    own = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": str(parts),
        "Dir::State::lists": str(folder / "lists"),
        "APT::Default-Release": f"{release}-backports",
    }
    install(names, [part for key, value in own.items() for part in ("-o", f"{key}={value}")])


def _codename() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    raise ToolError("/etc/os-release names no release, so backports cannot be chosen")
