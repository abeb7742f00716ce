"""etcd, kube-apiserver and, where wanted, controller manager and scheduler, as processes of this machine.

Usable alone: a test that needs a real API server starts one on loopback with free ports in a folder of its
own.
"""

import contextlib
import fcntl
import json
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from tools.cluster.apiclient import ApiClient
from tools.cluster.pki import Authority, write_kubeconfig
from tools.cluster.processes import Daemon
from tools.modules import binary
from tools.shell import ToolError, run, wait_until

_LOOPBACK = "127.0.0.1"
_SERVICE_CIDR = "10.96.0.0/16"
_SERVICE_FIRST = "10.96.0.1"
_READY_SECONDS = 120.0
_GRACE_SECONDS = 1.5  # the API server may take a minute over open watches


@dataclass(frozen=True)
class Ports:
    """Where the parts listen; all on loopback but `apiserver`, which has the bind address."""

    etcd: int
    etcd_peer: int
    apiserver: int
    controller_manager: int
    scheduler: int


@dataclass(frozen=True)
class ControlPlane:
    """A control plane whose whole state is `state_dir`. `start` and `stop` may be repeated and
    interrupted."""

    state_dir: Path
    bind_address: str = _LOOPBACK
    apiserver_port: int | None = None  # a free one when None
    with_controllers: bool = False  # controller manager and scheduler: pods, garbage collection, tokens
    apiserver_args: Sequence[str] = ()
    controller_manager_args: Sequence[str] = ()

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.state_dir / "admin.kubeconfig"

    @property
    def url(self) -> str:
        """Of the API server; only once it was started."""
        return f"https://{self.bind_address}:{self.ports.apiserver}"

    @property
    def authority(self) -> Authority:
        """Signs what belongs to this cluster."""
        return Authority(self.state_dir / "pki")

    @cached_property
    def client(self) -> ApiClient:
        """For waits."""
        return ApiClient.from_kubeconfig(self.kubeconfig)

    def daemons(self) -> list[Daemon]:
        """In the order of starting."""
        names = ["etcd", "kube-apiserver"]
        if self.with_controllers:
            names += ["kube-controller-manager", "kube-scheduler"]
        return [self.daemon(name) for name in names]

    def daemon(self, name: str) -> Daemon:
        """One part by its name."""
        return Daemon(name, self.state_dir / f"{name}.pid", self.state_dir / "logs" / f"{name}.log")

    @cached_property
    def ports(self) -> Ports:
        """Chosen once and kept in the state folder, so that a repair uses the same."""
        path = self.state_dir / "ports.json"
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            return Ports(**json.loads(path.read_text()))
        etcd, peer, api, manager, scheduler = free_ports(5)
        ports = Ports(etcd, peer, self.apiserver_port or api, manager, scheduler)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(ports)))
        new.rename(path)
        return ports

    def start(self) -> None:
        """Start what does not run and wait until the API server is ready (about 4 s from nothing)."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self._write_pki()
        self._start("etcd", self._etcd_argv())
        self._start("kube-apiserver", self._apiserver_argv())
        self._wait("the API server", "kube-apiserver", lambda: self.client.ok("/readyz"))
        if self.with_controllers:
            self._start("kube-controller-manager", self._controller_manager_argv())
            self._start("kube-scheduler", self._scheduler_argv())
            path = "/api/v1/namespaces/default/serviceaccounts/default"
            self._wait("the default service account", "kube-controller-manager", lambda: self.client.ok(path))

    def healthy(self) -> bool:
        """Every part runs and the API server says ready."""
        return (
            all(daemon.running() for daemon in self.daemons())
            and self.kubeconfig.exists()
            and self.client.ok("/readyz")
        )

    def stop(self) -> None:
        """End every part and remove the state folder."""
        everything = ("kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd")
        for name in everything:
            self.daemon(name).stop(grace=_GRACE_SECONDS)
        shutil.rmtree(self.state_dir, ignore_errors=True)
        if self.state_dir.exists():
            raise ToolError(f"{self.state_dir} could not be removed")

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Run the pinned kubectl as administrator."""
        common = (f"--kubeconfig={self.kubeconfig}", f"--cache-dir={self.state_dir / 'kubectl-cache'}")
        return run([binary("kubectl"), *common, *arguments], stdin=stdin, timeout=timeout)

    def apply_crds(self, folder: Path) -> None:
        """Apply every CRD of a folder and wait until the API server serves them."""
        if not any(folder.glob("*.yaml")):
            raise ToolError(f"no CRD in {folder}")
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(folder))
        self.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(folder))

    def _start(self, name: str, argv: Sequence[str | Path]) -> None:
        self.daemon(name).start(argv)

    def _wait(self, what: str, daemon: str, probe: Callable[[], bool]) -> None:
        def alive_and_ready() -> bool:
            for part in self.daemons():
                if part.name in ("etcd", "kube-apiserver", daemon):
                    part.require_running()
            return probe()

        wait_until(what, alive_and_ready, timeout=_READY_SECONDS)

    def _write_pki(self) -> None:
        authority = self.authority
        authority.ensure()
        names = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
        addresses = sorted({self.bind_address, _LOOPBACK, _SERVICE_FIRST})
        alternatives = [*(f"IP:{address}" for address in addresses), *(f"DNS:{name}" for name in names)]
        authority.issue("apiserver", "/CN=kube-apiserver", alternatives)
        self._account("admin", "/O=system:masters/CN=admin")
        if self.with_controllers:
            self._account("controller-manager", "/CN=system:kube-controller-manager")
            self._account("scheduler", "/CN=system:kube-scheduler")

    def _account(self, name: str, subject: str) -> None:
        self.account(name, subject, [f"DNS:{name}"], self.state_dir / f"{name}.kubeconfig")

    def account(self, name: str, subject: str, alternatives: Sequence[str], path: Path) -> None:
        """A certificate of this cluster and a kubeconfig that uses it."""
        pair = self.authority.issue(name, subject, alternatives)
        write_kubeconfig(path, self.url, self.authority, pair)

    def _etcd_argv(self) -> list[str | Path]:
        ports = self.ports
        client = f"http://{_LOOPBACK}:{ports.etcd}"
        peer = f"http://{_LOOPBACK}:{ports.etcd_peer}"
        return [
            binary("etcd"),
            f"--data-dir={self.state_dir / 'etcd'}",
            "--unsafe-no-fsync",  # the data may be lost with the machine: much faster, and fine here
            "--log-level=warn",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        ]

    def _apiserver_argv(self) -> list[str | Path]:
        ports, pki, accounts = self.ports, self.state_dir / "pki", self.authority.service_accounts
        argv: list[str | Path] = [
            binary("kube-apiserver"),
            f"--etcd-servers=http://{_LOOPBACK}:{ports.etcd}",
            f"--bind-address={self.bind_address}",
            f"--advertise-address={self.bind_address}",
            f"--secure-port={ports.apiserver}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--client-ca-file={self.authority.certificate}",
            f"--kubelet-client-certificate={pki / 'admin.crt'}",
            f"--kubelet-client-key={pki / 'admin.key'}",
            f"--kubelet-certificate-authority={self.authority.certificate}",
            "--kubelet-preferred-address-types=InternalIP",  # node names need not resolve
            f"--service-account-key-file={accounts.certificate}",
            f"--service-account-signing-key-file={accounts.key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-cluster-ip-range={_SERVICE_CIDR}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--enable-aggregator-routing=true",  # no kube-proxy runs beside it: webhooks by endpoint address
            f"--cert-dir={self.state_dir / 'apiserver-certs'}",
            "--default-not-ready-toleration-seconds=30",
            "--default-unreachable-toleration-seconds=30",
        ]
        if self.bind_address == _LOOPBACK:
            argv.append("--endpoint-reconciler-type=none")  # an endpoint may not be a loopback address
        return [*argv, *self.apiserver_args]

    def _controller_manager_argv(self) -> list[str | Path]:
        return [
            binary("kube-controller-manager"),
            f"--kubeconfig={self.state_dir / 'controller-manager.kubeconfig'}",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={self.authority.service_accounts.key}",
            f"--root-ca-file={self.authority.certificate}",
            "--leader-elect=false",
            f"--bind-address={_LOOPBACK}",
            f"--secure-port={self.ports.controller_manager}",
            f"--cert-dir={self.state_dir / 'controller-manager-certs'}",
            "--allocate-node-cidrs=false",
            "--node-monitor-period=2s",
            "--node-monitor-grace-period=16s",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            *self.controller_manager_args,
        ]

    def _scheduler_argv(self) -> list[str | Path]:
        return [
            binary("kube-scheduler"),
            f"--kubeconfig={self.state_dir / 'scheduler.kubeconfig'}",
            "--leader-elect=false",
            f"--bind-address={_LOOPBACK}",
            f"--secure-port={self.ports.scheduler}",
            f"--cert-dir={self.state_dir / 'scheduler-certs'}",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        ]


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody had a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((_LOOPBACK, 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextlib.contextmanager
def temporary_control_plane(parent: Path, *, with_controllers: bool = False) -> Iterator[ControlPlane]:
    """A control plane under `parent` for as long as the block lasts.

    What an earlier, killed process left under `parent` is ended first: a folder whose lock is free has no
    owner.
    """
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (parent / ".lock").open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        for stale in parent.glob("cp*"):
            _stop_if_abandoned(stale)
        number = next(n for n in range(1000) if not (parent / f"cp{n}").exists())
        folder = parent / f"cp{number}"
        folder.mkdir()
        owner = (folder / "owner.lock").open("w")
        fcntl.flock(owner, fcntl.LOCK_EX)
    plane = ControlPlane(folder, with_controllers=with_controllers)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()
        owner.close()


def _stop_if_abandoned(folder: Path) -> None:
    try:
        owner = (folder / "owner.lock").open("r")
    except FileNotFoundError:
        ControlPlane(folder).stop()
        return
    with owner:
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        ControlPlane(folder).stop()
