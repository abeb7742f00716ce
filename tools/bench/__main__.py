"""`python -m tools.bench`: measure, print a table, write it as JSON where asked."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Coroutine
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tools import build
from tools.bench.attach import attach
from tools.bench.claims import claims
from tools.bench.creates import one_replica, two_replicas
from tools.bench.figures import Figure, show, write_json
from tools.bench.fio import data_path
from tools.bench.idle import idle, memory
from tools.bench.scale import FULL, QUICK, Scale
from tools.bench.world import World, world
from tools.shell import ToolError, main_guard
from tools.shell import say as progress

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Part(StrEnum):
    """In the order of measuring."""

    CREATE = "create"
    REPLICAS = "replicas"
    IDLE = "idle"
    MEMORY = "memory"
    ATTACH = "attach"
    CLAIMS = "claims"
    FIO = "fio"


@app.command()
def bench(
    only: Annotated[list[Part] | None, typer.Option(help="A part to measure; may be repeated.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small numbers, to try it out.")] = False,
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this file.")] = None,
) -> None:
    """Measure Cinderblock on this machine: 6 to 8 minutes, or one with --quick."""
    if os.geteuid() != 0:
        raise ToolError("it needs root: the volume host and the node plugin make loop devices")
    parts = set(only or Part)
    scale = QUICK if quick else FULL
    build.ensure(["etcd", "kubernetes", *(["csi"] if Part.CLAIMS in parts else [])])
    signal.signal(signal.SIGTERM, _interrupt)
    started = time.monotonic()
    figures: list[Figure] = []
    try:
        with world() as where:
            _measure(where, scale, parts, figures)
    except KeyboardInterrupt:
        progress("interrupted; what was measured until then:")
        raise
    finally:
        if figures:
            show(figures, Console(width=max(Console().width, 150)))
        if json is not None and figures:
            write_json(figures, json, cores=os.cpu_count(), quick=quick)
    progress(f"measured in {time.monotonic() - started:.0f} s")


def _measure(where: World, scale: Scale, parts: set[Part], figures: list[Figure]) -> None:
    started = time.monotonic()

    def say(text: str) -> None:
        progress(f"[{time.monotonic() - started:4.0f} s] {text}")

    say("starting the operator, a volume host and the CSI processes")
    where.operator()
    where.host()
    where.csi_controller()
    where.csi_node()
    where.wait_pools()
    if Part.MEMORY in parts:
        figures += memory(where, 0)
    if Part.CREATE in parts:
        say("create to Available, one replica")
        figures += _run(one_replica(where, scale))
    if Part.REPLICAS in parts:
        say("create to Available, two replicas")
        figures += _run(two_replicas(where, scale))
    if Part.IDLE in parts:
        say("Volumes at rest")
        figures += _run(idle(where, scale))
        if Part.MEMORY in parts:
            figures += memory(where, scale.idle_volumes)
    if Part.ATTACH in parts:
        say("attach and detach on the node")
        figures += _run(attach(where, scale))
    if Part.CLAIMS in parts:
        say("claims through the official provisioner")
        figures += _run(claims(where, scale))
    if Part.FIO in parts:
        say("the data path")
        figures += _run(data_path(where, scale))


def _run(work: Coroutine[None, None, list[Figure]]) -> list[Figure]:
    """One part; of several errors at once the first that speaks to people."""
    try:
        return asyncio.run(work)
    except BaseExceptionGroup as group:
        known = group.subgroup(ToolError)
        if known is None:
            raise
        error: BaseException = known
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main_guard(app)
