"""The data path: an attached volume against a plain loop device and against the bare file, in turns."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cinderblock.core.api.attachment import Attachment
from cinderblock.core.kube.adapter import connect
from tools.bench.attach import attachment, connected, file_volumes
from tools.bench.figures import Figure, Goal, median
from tools.bench.load import Load
from tools.bench.scale import Scale
from tools.bench.world import NAMESPACE, World
from tools.debian import ensure_packages
from tools.shell import ToolError, run, say

PLAIN_LOOP_SHARE = Goal(98, at_least=True)
_PART = "fio, 4 KiB random"
_VOLUME, _PLAIN, _RAW = "volume", "plain loop", "raw file"
_NAME = "fio"


@dataclass(frozen=True)
class Job:
    verb: str  # randread or randwrite
    depth: int

    def __str__(self) -> str:
        return f"{self.verb.removeprefix('rand')}, QD{self.depth}"


JOBS = tuple(Job(verb, depth) for verb in ("randread", "randwrite") for depth in (1, 32))


def iops(answer: str) -> float:
    """Of fio's JSON; ToolError where the job had an error."""
    job = json.loads(answer[answer.index("{") :])["jobs"][0]
    if job["error"]:
        raise ToolError(f"fio: error {job['error']}")
    return float(job["read"]["iops"] or job["write"]["iops"])


def _run(target: Path, job: Job, scale: Scale) -> float:
    argv = [
        "fio",
        "--name=bench",
        f"--filename={target}",
        f"--rw={job.verb}",
        f"--iodepth={job.depth}",
        "--bs=4k",
        "--direct=1",
        "--ioengine=libaio",
        f"--size={scale.fio_bytes}",
        "--time_based",
        f"--runtime={scale.fio_seconds}",
        "--ramp_time=0.2",
        "--randrepeat=0",
        "--norandommap",
        "--output-format=json",
    ]
    return iops(run(argv, timeout=scale.fio_seconds + 30))


def fill(target: Path, size: int) -> None:
    """Every byte written, past the page cache: a sparse file would measure the allocation of its blocks."""
    common = [f"of={target}", "if=/dev/urandom", "bs=4M", f"count={size // (4 * 2**20)}"]
    run(["dd", *common, "oflag=direct", "iflag=fullblock", "conv=notrunc,fsync"], timeout=120)


@contextlib.contextmanager
def _plain_loop(file: Path) -> Iterator[Path]:
    device = Path(run(["losetup", "--find", "--show", "--direct-io=on", file], timeout=30).strip())
    try:
        yield device
    finally:
        run(["losetup", "--detach", device], timeout=30)


async def data_path(world: World, scale: Scale) -> list[Figure]:
    """Rounds over all targets, so that each meets the same disk; medians of the rounds."""
    if os.geteuid() != 0:
        raise ToolError("fio needs root: loop devices")
    ensure_packages({"fio": "fio"})
    plain = world.pools_root / "plain.img"
    async with connect(world.plane.kubeconfig) as kube, file_volumes(kube, [_NAME], str(scale.fio_bytes)):
        load = Load(kube, Attachment, NAMESPACE, connected)
        async with load.watching():
            await load.create(attachment(_NAME, _NAME))
            device = load.seen(_NAME).status.device
            if device is None:
                raise ToolError("a connected Attachment names no device")
            plain.touch()
            os.truncate(plain, scale.fio_bytes)
            try:
                with _plain_loop(plain) as loop:
                    for target in (Path(device), plain):
                        fill(target, scale.fio_bytes)
                    seen = _rounds({_VOLUME: Path(device), _PLAIN: loop, _RAW: plain}, scale)
            finally:
                plain.unlink()
            await load.delete_all()
    return figures(seen)


def _rounds(targets: dict[str, Path], scale: Scale) -> dict[Job, dict[str, list[float]]]:
    seen: dict[Job, dict[str, list[float]]] = {job: {name: [] for name in targets} for job in JOBS}
    names = list(targets)
    for turn in range(scale.fio_rounds):
        say(f"  fio: round {turn + 1} of {scale.fio_rounds}")
        for job in JOBS:
            # Who goes first changes, so that a drift of the disk hits all alike.
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                seen[job][name].append(_run(targets[name], job, scale))
    return seen


def figures(seen: dict[Job, dict[str, list[float]]]) -> list[Figure]:
    """Medians; ratios are medians of the ratios within a round."""
    found = []
    for job, by_target in seen.items():
        for name, values in by_target.items():
            found.append(Figure(_PART, f"{job}: {name}", median(values), "IOPS"))
        for other in (_PLAIN, _RAW):
            share = median(a / b for a, b in zip(by_target[_VOLUME], by_target[other], strict=True)) * 100
            goal = PLAIN_LOOP_SHARE if other == _PLAIN and job.depth == 32 else None
            spread = [a / b for a, b in zip(by_target[_VOLUME], by_target[other], strict=True)]
            note = f"rounds {min(spread):.0%} to {max(spread):.0%}"
            found.append(Figure(_PART, f"{job}: volume of {other}", share, "%", goal, note=note))
    return found
