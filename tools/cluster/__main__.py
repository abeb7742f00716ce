"""`python -m tools.cluster`: the local cluster from the command line."""

import os
from pathlib import Path
from typing import Annotated

import typer

from tools.cluster.cluster import Cluster, require_root
from tools.cluster.images import Archive
from tools.cluster.layout import Layout
from tools.cluster.oci import image_names
from tools.paths import instance, state_dir
from tools.shell import ToolError, main_guard, say

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
NodeNumber = Annotated[int, typer.Argument(help="1 or 2")]


def _cluster() -> Cluster:
    return Cluster(Layout(state_dir(), instance()))


@app.command()
def up(nodes: Annotated[int, typer.Option(help="1 or 2", min=1, max=2)] = 1) -> None:
    """Start the cluster, or repair it; quick when all is well."""
    cluster = _cluster()
    cluster.up(nodes)
    say(f"up: export KUBECONFIG={cluster.layout.kubeconfig}")


@app.command()
def down() -> None:
    """Remove the cluster with all that it made on this machine."""
    _cluster().down()
    say("down: nothing is left")


@app.command()
def status() -> None:
    """Show every part; exit code 1 unless all are healthy."""
    rows = _cluster().status()
    for row in rows:
        say(f"{'ok ' if row.healthy else 'BAD'}  {row.name:26} {row.detail}")
    if not all(row.healthy for row in rows):
        raise typer.Exit(1)


@app.command("load-image")
def load_image(archives: list[Path]) -> None:
    """Load OCI archives into every node."""
    require_root()
    cluster = _cluster()
    for path in archives:
        cluster.load(Archive(image_names(path), path.absolute()))


@app.command("build-image")
def build_image(
    name: str, context: Path, file: Annotated[Path | None, typer.Option(help="the Dockerfile")] = None
) -> None:
    """Build a Dockerfile without a registry (nothing when unchanged) and load it into every node."""
    _cluster().build_image(name, context.absolute(), file)


@app.command("snapshot-crds")
def snapshot_crds() -> None:
    """Apply the CRDs of CSI snapshots, from the pinned module of the snapshotter."""
    _cluster().apply_snapshot_crds()


@app.command()
def logs(
    name: Annotated[str, typer.Argument(help="a part; all names when left out")] = "",
    lines: Annotated[int, typer.Option(help="how many from the end")] = 50,
) -> None:
    """Show the end of one part's log."""
    cluster = _cluster()
    say(
        cluster.tail(name, lines)
        if name
        else "\n".join(f"{key:32} {path}" for key, path in cluster.logs().items())
    )


@app.command()
def kubeconfig() -> None:
    """Print the path of the administrator's kubeconfig."""
    path = _cluster().layout.kubeconfig
    if not path.exists():
        raise ToolError("the cluster is not up")
    say(str(path))


@app.command(context_settings={"ignore_unknown_options": True})
def enter(number: NodeNumber, command: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Run a command (default: a shell) inside a node."""
    require_root()
    argv = _cluster().node(number).enter_argv(command or ["bash"])
    os.execvp(argv[0], argv)


@app.command()
def kill(number: NodeNumber) -> None:
    """Cut a node's power; `up` starts it again."""
    require_root()
    _cluster().node(number).kill()


@app.command()
def cut(number: NodeNumber) -> None:
    """Cut a node's cable."""
    require_root()
    _cluster().node(number).cut()


@app.command()
def heal(number: NodeNumber) -> None:
    """Mend a node's cable."""
    require_root()
    _cluster().node(number).heal()


if __name__ == "__main__":
    main_guard(app)
