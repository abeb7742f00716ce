"""Where the figures come from: /proc, the API server's counters and fio's answers are read right."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tools.bench import fio, procfs, traffic
from tools.bench.claims import objects, provisioner_args
from tools.bench.load import Timing, rate
from tools.bench.programs import Program
from tools.bench.scale import FULL, QUICK
from tools.bench.world import World
from tools.cluster.control_plane import ControlPlane
from tools.shell import ToolError, wait_until

ROOT = Path(__file__).resolve().parents[2]
TICK = 1 / os.sysconf("SC_CLK_TCK")


def stat_line(pid: int, parent: int, times: tuple[int, int, int, int], name: str = "a (b) c") -> str:
    return f"{pid} ({name}) S {parent} 1 1 0 -1 0 1 2 3 4 {' '.join(map(str, times))} 20 0 9 0 5 6 7"


def test_cpu_counts_the_process_its_living_children_and_those_that_ended():
    lines = {
        10: stat_line(10, 1, (100, 50, 7, 3)),
        11: stat_line(11, 10, (20, 0, 0, 0)),
        12: stat_line(12, 11, (1, 1, 1, 1)),
        99: stat_line(99, 1, (1000, 0, 0, 0)),
    }
    stats = {pid: procfs.parse_stat(line) for pid, line in lines.items()}
    assert procfs.tree_seconds(stats, 10) == pytest.approx((160 + 20 + 4) * TICK)
    with pytest.raises(ProcessLookupError):
        procfs.tree_seconds(stats, 13)


def test_what_this_process_burns_is_seen():
    before = procfs.cpu_seconds({"me": os.getpid()})["me"]
    deadline = time.monotonic() + 30
    while procfs.cpu_seconds({"me": os.getpid()})["me"] < before + 0.05:
        assert time.monotonic() < deadline
    assert procfs.memory(os.getpid()).rss_bytes > 2**20


def test_memory_of_a_rollup():
    text = "55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss:  2048 kB\nPss:  1024 kB\nPss_Dirty:  1 kB\n"
    assert procfs.parse_rollup(text) == procfs.Memory(2048 * 1024, 1024 * 1024)


def counter(group: str, resource: str, subresource: str, verb: str, code: int) -> str:
    return (
        f'apiserver_request_total{{code="{code}",component="apiserver",dry_run="",group="{group}"'
        f',resource="{resource}",scope="resource",subresource="{subresource}",verb="{verb}",version="v1"}} %d'
    )


METRICS = "\n".join(
    (
        "# HELP apiserver_request_total [STABLE] Counter of apiserver requests",
        counter("cinderblock.io", "volumes", "", "POST", 201),
        counter("cinderblock.io", "volumes", "status", "PATCH", 200),
        counter("cinderblock.io", "volumes", "status", "PATCH", 409),
        counter("cinderblock.io", "pools", "", "GET", 200),
        counter("coordination.k8s.io", "leases", "", "PUT", 200),
        'apiserver_request_duration_seconds_count{group="cinderblock.io",verb="POST"} 5',
    )
)


def test_writes_are_the_difference_of_two_looks_for_one_group_refused_ones_included():
    before, after = traffic.parse(METRICS % (1, 2, 0, 3, 4)), traffic.parse(METRICS % (11, 22, 1, 33, 44))
    written = traffic.writes(before, after, "cinderblock.io")
    assert traffic.by_resource(written) == {"volumes": 10 + 20 + 1}
    assert traffic.conflicts(written) == 1
    assert traffic.by_resource(traffic.writes(before, after, "coordination.k8s.io")) == {"leases": 40}
    assert traffic.writes(after, after, "cinderblock.io").total() == 0


def test_a_rate_goes_from_the_first_post_to_the_last_one_done():
    assert rate([Timing(1.0, 2.0), Timing(1.5, 6.0)]) == pytest.approx(2 / 5)


def test_fio_answers_are_read_and_its_errors_are_not_figures():
    answer = 'fio: a note\n{"jobs": [{"error": %d, "read": {"iops": 0}, "write": {"iops": 123.5}}]}'
    assert fio.iops(answer % 0) == 123.5
    with pytest.raises(ToolError, match="error 5"):
        fio.iops(answer % 5)


def test_ratios_are_taken_within_a_round():
    """The disk became twice as slow in the second round: that is no loss of ours."""
    seen = {
        job: {
            "volume": [99.0, 50.0, 99.0],
            "plain loop": [100.0, 50.0, 100.0],
            "raw file": [200.0, 100.0, 200.0],
        }
        for job in fio.JOBS
    }
    by_name = {figure.name: figure for figure in fio.figures(seen)}
    share = by_name["read, QD32: volume of plain loop"]
    assert share.value == pytest.approx(99)
    assert share.verdict == "met"
    assert by_name["write, QD1: volume of plain loop"].goal is None
    assert by_name["write, QD32: volume of raw file"].value == pytest.approx(49.5)


def test_the_provisioner_runs_as_the_chart_has_it(tmp_path):
    values = yaml.safe_load((ROOT / "deploy/helm/cinderblock/values.yaml").read_text())
    chart = (ROOT / "deploy/helm/cinderblock/templates/deployment-controller.yaml").read_text()
    helpers = (ROOT / "deploy/helm/cinderblock/templates/_helpers.tpl").read_text()
    ours = provisioner_args(values, World(tmp_path, ControlPlane(tmp_path)))
    for argument in ours:
        flag = argument.partition("=")[0]
        assert flag == "--kubeconfig" or flag in chart + helpers, flag
    assert f"--timeout={values['sidecars']['timeout']}" in ours
    assert {one["kind"] for one in objects()} == {"CSIDriver", "CSINode", "StorageClass"}


def test_quick_is_smaller_in_everything():
    assert all(getattr(QUICK, name) < getattr(FULL, name) for name in vars(FULL))


def test_a_program_that_ends_by_itself_is_told_with_its_last_words(tmp_path):
    program = Program.start("sad", [sys.executable, "-c", "raise SystemExit('no luck')"], tmp_path / "log")

    def ended() -> bool:
        return program.child.poll() is not None

    wait_until("its end", ended, timeout=30)
    with pytest.raises(ToolError, match="no luck"):
        program.require_running()
    program.stop()


def test_stopping_takes_what_the_program_started_with_it(tmp_path):
    script = "import subprocess,sys,time; print(subprocess.Popen(['sleep','600']).pid, flush=True); time.sleep(600)"
    program = Program.start("parent", [sys.executable, "-c", script], tmp_path / "log")
    wait_until("its child", lambda: (tmp_path / "log").read_text().endswith("\n"), timeout=30)
    child = int((tmp_path / "log").read_text())
    program.stop()
    program.stop()

    def gone() -> bool:
        try:
            return procfs.parse_stat(Path(f"/proc/{child}/stat").read_text()).parent == 0
        except FileNotFoundError:
            return True

    wait_until("the child's end", lambda: gone() or _zombie(child), timeout=10)


def _zombie(pid: int) -> bool:
    status = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return status.stdout.strip().startswith("Z") or not status.stdout.strip()
