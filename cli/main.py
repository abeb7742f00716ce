"""The command `cinderblock`: every process of the image.

Each command imports its own world only when it runs: a CSI process never loads kopf, the operator never gRPC.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import uuid
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from cinderblock.core.logs import LogFormat, configure
from cinderblock.core.names import DEVICE_LINKS
from cinderblock.operator.options import OperatorOptions, Role

_CSI_CONTROLLER_STOP = 10.0
_CSI_NODE_STOP = 25.0  # it drains mounts for up to 20 s; the pod's grace period is 30

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Block storage for Kubernetes.")
csi = typer.Typer(no_args_is_help=True, help="The CSI driver's processes.")
hook = typer.Typer(no_args_is_help=True, help="What the Helm chart's hooks run.")
app.add_typer(csi, name="csi")
app.add_typer(hook, name="hook")

Namespace = Annotated[
    str, typer.Option(envvar="CINDERBLOCK_NAMESPACE", help="Namespace of the Helm release.")
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(envvar=["CINDERBLOCK_KUBECONFIG", "KUBECONFIG"], help="Default: the pod's service account."),
]
MetricsPort = Annotated[
    int,
    typer.Option(envvar="CINDERBLOCK_METRICS_PORT", min=0, max=65535, help="/metrics and probes; 0 = none."),
]
PoolsRoot = Annotated[
    Path, typer.Option(envvar="CINDERBLOCK_POOLS_ROOT", help="Folder below which file pools lie.")
]
LogLevel = Annotated[str, typer.Option(envvar="CINDERBLOCK_LOG_LEVEL", help="debug, info, warning or error.")]
LogForm = Annotated[
    LogFormat | None,
    typer.Option(envvar="CINDERBLOCK_LOG_FORMAT", help="Default: console on a terminal, else json."),
]
Endpoint = Annotated[
    str, typer.Option(envvar=["CSI_ENDPOINT", "CINDERBLOCK_ENDPOINT"], help="Socket of the CSI server.")
]

_DEFAULT_NAMESPACE = "cinderblock"
_DEFAULT_POOLS = Path("/var/lib/cinderblock/pools")


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(f"cinderblock {installed('cinderblock')}")


@app.command()
def operator(
    *,
    role: Annotated[
        Role, typer.Option(envvar="CINDERBLOCK_ROLE", help="leader: one of them leads; host: serves a node.")
    ] = Role.LEADER,
    node: Annotated[
        str | None, typer.Option(envvar="CINDERBLOCK_NODE", help="Role host: the node it serves.")
    ] = None,
    namespace: Namespace = _DEFAULT_NAMESPACE,
    pod: Annotated[str | None, typer.Option(envvar="CINDERBLOCK_POD", help="Name of this pod.")] = None,
    pools_root: PoolsRoot = _DEFAULT_POOLS,
    kubeconfig: Kubeconfig = None,
    metrics_port: MetricsPort = 0,
    log_level: LogLevel = "info",
    log_format: LogForm = None,
) -> None:
    """Schedule volumes and serve as volume host."""
    if role is Role.HOST and not node:
        _fail("role host needs --node (or CINDERBLOCK_NODE)")
    _logs(log_level, log_format)
    options = OperatorOptions(
        role=role,
        namespace=namespace,
        identity=f"{pod or socket.gethostname()}_{uuid.uuid4().hex[:8]}",
        pools_root=pools_root,
        node=node,
        kubeconfig=kubeconfig,
        metrics_port=metrics_port,
    )

    async def serve() -> int:
        from cinderblock.operator.main import run_operator

        return await run_operator(options)

    _run(serve)


@csi.command()
def controller(
    *,
    endpoint: Endpoint,
    namespace: Namespace = _DEFAULT_NAMESPACE,
    kubeconfig: Kubeconfig = None,
    metrics_port: MetricsPort = 0,
    log_level: LogLevel = "info",
    log_format: LogForm = None,
) -> None:
    """Serve CSI Identity and Controller beside the sidecars."""
    _logs(log_level, log_format)

    async def serve() -> int:
        from cinderblock.core.shutdown import until_signalled
        from cinderblock.csi.controller_main import ControllerSettings, run_controller

        settings = ControllerSettings(
            endpoint=endpoint, namespace=namespace, kubeconfig=kubeconfig, metrics_port=metrics_port
        )
        await until_signalled(run_controller(settings), limit=_CSI_CONTROLLER_STOP)
        return 0

    _run(serve)


@csi.command(name="node")
def csi_node(
    *,
    endpoint: Endpoint,
    node: Annotated[str, typer.Option(envvar="CINDERBLOCK_NODE", help="Name of this node.")],
    namespace: Namespace = _DEFAULT_NAMESPACE,
    pools_root: PoolsRoot = _DEFAULT_POOLS,
    registration_dir: Annotated[
        Path | None,
        typer.Option(help="The kubelet's plugins_registry; without it somebody else registers the driver."),
    ] = None,
    kubelet_endpoint: Annotated[
        Path | None, typer.Option(help="The socket as the kubelet sees it, where that differs.")
    ] = None,
    kubelet_path: Annotated[
        Path | None,
        typer.Option(help="The kubelet's folder; given alone, the driver registers in its plugins_registry."),
    ] = None,
    links_root: Annotated[Path, typer.Option(help="Folder of the devices' stable links.")] = Path(
        DEVICE_LINKS
    ),
    kubeconfig: Kubeconfig = None,
    metrics_port: MetricsPort = 0,
    log_level: LogLevel = "info",
    log_format: LogForm = None,
) -> None:
    """Serve CSI Identity and Node, and attach devices on this node."""
    _logs(log_level, log_format)

    async def serve() -> int:
        from cinderblock.core.shutdown import until_signalled
        from cinderblock.csi.node_main import NodeSettings, run_node

        settings = NodeSettings(
            node=node,
            namespace=namespace,
            endpoint=endpoint,
            pools_root=pools_root,
            metrics_port=metrics_port,
            kubelet_endpoint=kubelet_endpoint,
            registration_dir=registration_dir or (kubelet_path and kubelet_path / "plugins_registry"),
            links_root=links_root,
            kubeconfig=kubeconfig,
        )
        await until_signalled(run_node(settings), limit=_CSI_NODE_STOP)
        return 0

    _run(serve)


@hook.command(name="apply-crds")
def hook_apply_crds(kubeconfig: Kubeconfig = None) -> None:
    """Bring the CRDs to what this image needs."""

    async def work() -> int:
        from cinderblock.cli.hooks import apply_crds
        from cinderblock.core.api import KINDS
        from cinderblock.core.api.builtin import CustomResourceDefinition
        from cinderblock.core.crd.manifest import manifest
        from cinderblock.core.kube.adapter import connect

        crds = [CustomResourceDefinition.model_validate(manifest(kind)) for kind in KINDS]
        async with connect(kubeconfig) as kube:
            await apply_crds(kube, crds, typer.echo)
        return 0

    _run(work)


@hook.command(name="pre-delete")
def hook_pre_delete(
    force: Annotated[bool, typer.Option("--force", help="Leave data behind; list what stays.")] = False,
    release_record: Annotated[
        str | None, typer.Option(help="Secret with helm's record, to be put right when this is refused.")
    ] = None,
    namespace: Namespace = _DEFAULT_NAMESPACE,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Refuse while volumes exist, else empty the installation."""

    async def work() -> int:
        from cinderblock.cli.helm_record import restored_or_how
        from cinderblock.cli.hooks import pre_delete
        from cinderblock.core.clock import SystemClock
        from cinderblock.core.kube.adapter import connect

        async with connect(kubeconfig) as kube:
            try:
                await pre_delete(kube, SystemClock(), typer.echo, force=force)
            except Exception:
                if release_record is not None:
                    typer.echo(await restored_or_how(kube, namespace, release_record), err=True)
                raise
        return 0

    _run(work)


def main() -> None:
    """Entry point of the console script."""
    app()


def _logs(level: str, form: LogFormat | None) -> None:
    if level.lower() not in ("debug", "info", "warning", "error"):
        _fail(f"unknown log level {level!r}: debug, info, warning or error")
    configure(level, form)


def _run(work: Callable[[], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run to the end; errors that speak to people are one line, everything else a traceback."""
    from cinderblock.cli.hooks import HookRefused
    from cinderblock.core.errors import StorageError
    from cinderblock.core.kube.port import KubeError

    try:
        status = asyncio.run(work())
    except (HookRefused, StorageError, KubeError, ValueError) as error:
        _fail(str(error))
    except BaseExceptionGroup as group:  # parts that run side by side end together
        told, faults = group.split((StorageError, KubeError))
        if told is None or faults is not None:
            raise
        _fail("; ".join(dict.fromkeys(map(str, _leaves(told)))))
    sys.exit(status)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    sys.exit(1)
