"""Many Volumes at rest: what is written for them, and what the processes hold in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from cinderblock.core.api.volume import Volume
from cinderblock.core.kube.adapter import connect
from cinderblock.core.names import GROUP
from tools.bench import procfs, traffic
from tools.bench.creates import available, volume
from tools.bench.figures import Figure, Goal
from tools.bench.load import Load
from tools.bench.scale import Scale
from tools.bench.world import FAKE, NAMESPACE, World
from tools.shell import say

_SETTLE_SECONDS = 8.0  # a Pool reports at most every 5 s
_MIB = 2**20
# Megabytes as people count them: the goal is a round number of the decimal kind.
_MB = 10**6
PROCESSES = ("operator", "host", "csi-controller", "csi-node")


async def idle(world: World, scale: Scale) -> list[Figure]:
    """Leaves the Volumes where they are: the parts that follow meet a full store."""
    say(f"  {scale.idle_volumes} Volumes, then {scale.idle_seconds:.0f} s of rest")
    async with connect(world.plane.kubeconfig) as kube:
        load = Load(kube, Volume, NAMESPACE, available)
        async with load.watching():
            await load.burst([volume(f"idle-{i}", FAKE) for i in range(scale.idle_volumes)])
    await asyncio.sleep(_SETTLE_SECONDS)
    names = [name for name in PROCESSES if name in world.programs]
    pids = {name: world.pid(name) for name in (*names, "kube-apiserver")}
    before = traffic.read(world.plane.client)
    burned = procfs.cpu_seconds(pids)
    await asyncio.sleep(scale.idle_seconds)
    spent = {name: seconds - burned[name] for name, seconds in procfs.cpu_seconds(pids).items()}
    after = traffic.read(world.plane.client)
    per_minute = 60 / scale.idle_seconds
    written = traffic.by_resource(traffic.writes(before, after, GROUP))
    leases = traffic.by_resource(traffic.writes(before, after, "coordination.k8s.io"))["leases"]
    part = f"idle, {scale.idle_volumes} Volumes"
    what = ", ".join(f"{resource} {count}" for resource, count in sorted(written.items()))
    cpu = ", ".join(f"{name} {seconds / scale.idle_seconds:.2%}" for name, seconds in spent.items())
    return [
        Figure(part, "API writes to our kinds", written.total() * per_minute, "per min", Goal(0), note=what),
        Figure(
            part,
            "API writes to Leases",
            leases * per_minute,
            "per min",
            note="of all: also of Kubernetes' own",
        ),
        Figure(
            part,
            "CPU of our processes",
            sum(spent[name] for name in names) / scale.idle_seconds * 100,
            "% of a core",
            note=cpu,
        ),
    ]


def memory(world: World, volumes: int) -> list[Figure]:
    """Of every process of ours that runs."""
    seen = {name: procfs.memory(world.pid(name)) for name in PROCESSES if name in world.programs}
    part = f"memory, {volumes} Volumes"
    figures = []
    for name, use in seen.items():
        figures.append(Figure(part, f"{name}, RSS", use.rss_bytes / _MB, "MB"))
        figures.append(Figure(part, f"{name}, PSS", use.pss_bytes / _MB, "MB"))
    figures += _together(part, seen)
    return figures


def _together(part: str, seen: Mapping[str, procfs.Memory]) -> list[Figure]:
    pair = [seen[name] for name in ("operator", "csi-controller") if name in seen]
    if len(pair) < 2:
        return []
    name = "operator + csi controller"
    return [
        Figure(
            part,
            f"{name}, RSS",
            sum(use.rss_bytes for use in pair) / _MB,
            "MB",
            Goal(190),
            note="stretch 150",
        ),
        Figure(part, f"{name}, PSS", sum(use.pss_bytes for use in pair) / _MB, "MB", Goal(190)),
    ]
