"""Create to Available: time, CPU and API writes, beside the bare pipeline on the same API server."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from cinderblock.core.api.meta import ObjectMeta, Resource, is_true
from cinderblock.core.api.volume import READY, Volume, VolumeSpec
from cinderblock.core.kube.adapter import connect
from cinderblock.core.kube.port import Kube
from cinderblock.core.names import FINALIZER_PROTECT, GROUP
from tools.bench import procfs, traffic
from tools.bench.figures import Figure, Goal, median, percentile
from tools.bench.kinds import BARE_FINALIZER, BareSpec, BareVolume
from tools.bench.load import Load, Timing, rate
from tools.bench.scale import Scale
from tools.bench.world import FAKE, FILE, NAMESPACE, World
from tools.shell import say

_SETTLE_SECONDS = 1.0  # what a create still costs after its object was ready: sealing, events, watches
_WARM_UP = 10
_SERVER = ("kube-apiserver", "etcd")
_BARE = "bare"

R = TypeVar("R", bound=Resource)

P50 = Goal(30)
BURST = Goal(80, at_least=True)
CPU = Goal(22)
WRITES = Goal(3)


def volume(name: str, volume_type: str, size: str = "1Gi") -> Volume:
    """As our own clients make it: with the finalizer."""
    meta = ObjectMeta(name=name, namespace=NAMESPACE, finalizers=(FINALIZER_PROTECT,))
    return Volume(metadata=meta, spec=VolumeSpec(size=size, volume_type=volume_type))


def available(obj: Volume) -> bool:
    return is_true(obj.status.conditions, READY)


def _bare(name: str) -> BareVolume:
    meta = ObjectMeta(name=name, namespace=NAMESPACE, finalizers=(BARE_FINALIZER,))
    return BareVolume(metadata=meta, spec=BareSpec(size="1Gi"))


def _bare_available(obj: BareVolume) -> bool:
    return obj.status.phase == "Available"


@dataclass
class Sample:
    """What the rounds of one subject gave. CPU in milliseconds per object, writes per object."""

    serial: list[Timing] = field(default_factory=list)
    bursts: list[list[Timing]] = field(default_factory=list)
    deletes: list[list[Timing]] = field(default_factory=list)
    cpu: list[dict[str, float]] = field(default_factory=list)
    writes: list[float] = field(default_factory=list)
    conflicts: int = 0

    def cpu_ms(self, *names: str) -> float:
        """Median over the rounds of the sum over these processes."""
        return median(sum(ms for name, ms in one.items() if name in names) for one in self.cpu)

    def per_second(self) -> float:
        return median(rate(burst) for burst in self.bursts)


@dataclass(frozen=True)
class Subject(Generic[R]):
    """What goes through the rounds, and whose CPU it costs."""

    name: str
    kind: type[R]
    make: Callable[[str], R]
    done: Callable[[R], bool]
    processes: Sequence[str]
    finalizer: str | None = None  # one that the client itself takes away


async def _round(
    world: World, kube: Kube, subject: Subject[R], scale: Scale, *, label: str, sample: Sample
) -> None:
    load = Load(kube, subject.kind, NAMESPACE, subject.done)
    pids = {name: world.pid(name) for name in subject.processes}

    def objects(what: str, count: int) -> list[R]:
        return [subject.make(f"{label}-{what}{i}") for i in range(count)]

    async with load.watching():
        await load.burst(objects("w", _WARM_UP))
        sample.serial += await load.one_at_a_time(objects("s", scale.serial // scale.rounds))
        counted = await asyncio.to_thread(traffic.read, world.plane.client)
        before = procfs.cpu_seconds(pids)
        sample.bursts.append(await load.burst(objects("b", scale.burst)))
        await asyncio.sleep(_SETTLE_SECONDS)
        after = procfs.cpu_seconds(pids)
        written = traffic.writes(counted, await asyncio.to_thread(traffic.read, world.plane.client), GROUP)
        sample.cpu.append({name: (after[name] - before[name]) * 1000 / scale.burst for name in pids})
        sample.writes.append(traffic.by_resource(written)[subject.kind.PLURAL] / scale.burst)
        sample.conflicts += traffic.conflicts(written)
        sample.deletes.append(await load.delete_all(finalizer=subject.finalizer))


async def _measure(
    world: World, scale: Scale, subjects: Sequence[Subject[Any]], pass_name: str
) -> dict[str, Sample]:
    """Rounds of all subjects in turn, so that each meets the same machine."""
    samples = {subject.name: Sample() for subject in subjects}
    async with connect(world.plane.kubeconfig) as kube:
        for turn in range(scale.rounds):
            for subject in subjects:
                say(f"  round {turn + 1} of {scale.rounds}: {subject.name}")
                label = f"{subject.name}-{pass_name}{turn}"
                await _round(world, kube, subject, scale, label=label, sample=samples[subject.name])
    return samples


def _ours(processes: Sequence[str]) -> list[Subject[Any]]:
    return [
        Subject(name, Volume, functools.partial(volume, volume_type=name), available, (*processes, *_SERVER))
        for name in (FAKE, FILE)
    ]


def _start_bare(world: World) -> None:
    for name in ("one", "two"):
        module = [sys.executable, "-m", "tools.bench.bare_pipeline", name, world.plane.kubeconfig]
        world.start(f"bare-{name}", module)


async def one_replica(world: World, scale: Scale) -> list[Figure]:
    """Our processes and the bare pipeline, alternating."""
    bare = Subject(
        _BARE, BareVolume, _bare, _bare_available, ("bare-one", "bare-two", *_SERVER), BARE_FINALIZER
    )
    _start_bare(world)
    try:
        subjects = [bare, *_ours(("operator", "host", "csi-controller"))]
        samples = await _measure(world, scale, subjects, "a")
    finally:
        world.stop("bare-one")
        world.stop("bare-two")
    floor = samples[_BARE]
    figures = []
    for name in (FAKE, FILE):
        figures += _times(f"create, {name}", samples[name], floor)
        figures += _costs(f"create, {name}", samples[name], floor)
    return figures


async def two_replicas(world: World, scale: Scale) -> list[Figure]:
    """The same with a standby operator and a second csi controller."""
    world.operator("operator-2")
    world.csi_controller("csi-controller-2", f"unix://{world.folder / 'csi2.sock'}")
    try:
        pairs = ("operator", "operator-2", "host", "csi-controller", "csi-controller-2")
        once = dataclasses.replace(scale, rounds=1, serial=scale.serial // 2)
        samples = await _measure(world, once, _ours(pairs), "b")
    finally:
        world.stop("csi-controller-2")
        world.stop("operator-2")
    figures = []
    for name in (FAKE, FILE):
        part, sample = f"create, {name}, 2 replicas", samples[name]
        figures += _times(part, sample, None)
        figures.append(_cpu(part, sample, None))
    return figures


def _times(part: str, sample: Sample, floor: Sample | None) -> list[Figure]:
    serial = [t.seconds for t in sample.serial]
    burst = [t.seconds for one in sample.bursts for t in one]
    beside = [t.seconds for t in floor.serial] if floor else []
    return [
        Figure(part, "one at a time, p50", median(serial) * 1000, "ms", P50, _ms(beside, 50), f"n={len(serial)}"),
        Figure(part, "one at a time, p99", percentile(serial, 99) * 1000, "ms", None, _ms(beside, 99)),
        Figure(
            part, "burst", sample.per_second(), "per s", BURST, floor.per_second() if floor else None,
            f"{len(sample.bursts)} x {len(sample.bursts[0])}",
        ),
        Figure(part, "burst, p50", median(burst) * 1000, "ms"),
        Figure(part, "burst, p99", percentile(burst, 99) * 1000, "ms"),
    ]  # fmt: skip


def _ms(seconds: Sequence[float], percent: float) -> float | None:
    return percentile(seconds, percent) * 1000 if seconds else None


def _cpu(part: str, sample: Sample, floor: Sample | None) -> Figure:
    counted = ("operator", "operator-2", "host", *_SERVER)
    beside = floor.cpu_ms("bare-one", "bare-two", *_SERVER) if floor else None
    shares = ", ".join(f"{name} {sample.cpu_ms(name):.1f}" for name in counted if name in sample.cpu[0])
    return Figure(part, "CPU", sample.cpu_ms(*counted), "ms per create", CPU, beside, shares)


def _costs(part: str, sample: Sample, floor: Sample) -> list[Figure]:
    return [
        _cpu(part, sample, floor),
        Figure(part, "CPU of csi controller", sample.cpu_ms("csi-controller"), "ms per create"),
        Figure(
            part, "API writes", median(sample.writes), "per create", WRITES, median(floor.writes),
            f"{sample.conflicts} conflicts" if sample.conflicts else "",
        ),
        Figure(part, "delete, burst", median(rate(one) for one in sample.deletes), "per s"),
    ]  # fmt: skip
