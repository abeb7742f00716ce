"""Pid 1 of a node: private mounts, then containerd, kubelet and kube-proxy, kept running.

Started by node.py inside new namespaces, with the standard library alone. When it dies, the kernel ends
every process of the node and drops every mount with it.
"""

import argparse
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

_RESTART_SECONDS = 1.0
_CONTAINERD_SECONDS = 30.0


@dataclass
class Program:
    """One program that is to run for ever."""

    name: str
    argv: list[str]
    log: Path
    pid: int = 0
    due: float = 0.0


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, timeout=30)


def _own(source: Path, target: str) -> None:
    """Bind as a peer group of its own: without the step to private, mounts would show under the source as
    well."""
    Path(target).mkdir(parents=True, exist_ok=True)
    _mount("--bind", str(source), target)
    _mount("--make-private", target)
    _mount("--make-rshared", target)


def prepare(name: str, folder: Path) -> None:
    """The node's view of the file system, and its host name."""
    _mount("-t", "proc", "proc", "/proc")
    _mount("--make-rshared", "/")
    subprocess.run(["hostname", name], check=True, timeout=30)
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")  # gone after a kill, as after a reboot
    for path in ("/run/cni", "/run/lock"):
        Path(path).mkdir(parents=True, exist_ok=True)
    _own(folder / "kubelet", "/var/lib/kubelet")
    _own(folder / "pools", "/var/lib/cinderblock")  # pools of storage backends: each node has its own
    _own(folder / "log", "/var/log")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def start(program: Program) -> None:
    """Spawn with a log of its own."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    program.pid = os.posix_spawnp(
        program.argv[0],
        program.argv,
        dict(os.environ),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(program.log), flags, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
    )


def supervise(programs: list[Program]) -> None:
    """Restart what ends and collect every orphan of the node, for ever."""
    while True:
        now = time.monotonic()
        for program in programs:
            if program.pid == 0 and now >= program.due:
                start(program)
        signal.sigtimedwait([signal.SIGCHLD], _RESTART_SECONDS)
        while (ended := _collect()) != 0:
            for program in programs:
                if program.pid == ended:
                    print(f"{program.name} has ended and is started again", flush=True)
                    program.pid, program.due = 0, time.monotonic() + _RESTART_SECONDS


def _collect() -> int:
    try:
        return os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:
        return 0


def programs_of(name: str, folder: Path, control: Path, address: str, pod_cidr: str) -> list[Program]:
    """What a node runs."""
    kubelet = [
        "kubelet",
        f"--config={folder}/kubelet.yaml",
        f"--kubeconfig={control}/{name}.kubeconfig",
        f"--hostname-override={name}",
        f"--node-ip={address}",
        "--root-dir=/var/lib/kubelet",
    ]
    proxy = [
        "kube-proxy",
        f"--kubeconfig={control}/proxy.kubeconfig",
        f"--hostname-override={name}",
        f"--cluster-cidr={pod_cidr}",
        "--proxy-mode=iptables",
        # these settings belong to the whole kernel
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0s",
        "--conntrack-tcp-timeout-close-wait=0s",
    ]
    return [
        Program("containerd", ["containerd", "-c", f"{folder}/containerd.toml"], folder / "containerd.log"),
        Program("kubelet", kubelet, folder / "kubelet.log"),
        Program("kube-proxy", proxy, folder / "kube-proxy.log"),
    ]


def main() -> None:
    """Never returns; any failure of the preparation ends the node with a traceback in its log."""
    parser = argparse.ArgumentParser()
    for option in ("name", "folder", "control", "address", "pod-cidr"):
        parser.add_argument(f"--{option}", required=True)
    given = parser.parse_args()
    folder = Path(given.folder)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    prepare(given.name, folder)
    programs = programs_of(given.name, folder, Path(given.control), given.address, given.pod_cidr)
    socket = folder / "containerd.sock"
    socket.unlink(missing_ok=True)  # of an earlier life
    start(programs[0])
    # The kubelet gives up at once where no runtime answers; it would only be started again a second later.
    deadline = time.monotonic() + _CONTAINERD_SECONDS
    while not socket.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    supervise(programs)


if __name__ == "__main__":
    main()
