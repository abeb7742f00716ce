"""A control plane of one's own: what tests rely on when they ask for a real API server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tools.cluster.control_plane import ControlPlane, temporary_control_plane
from tools.paths import REPOSITORY
from tools.shell import ToolError, wait_until

pytestmark = pytest.mark.apiserver


def _processes_naming(text: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command and int(folder.name) != os.getpid():
            found.append(command)
    return found


@pytest.mark.timeout(180)
def test_up_serves_and_down_leaves_nothing(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path / "cp", with_controllers=True)
    try:
        plane.start()
        assert plane.healthy()
        assert json.loads(plane.kubectl("get", "--raw", "/version"))["gitVersion"] == "v1.36.3"
        first = [daemon.identity() for daemon in plane.daemons()]
        ControlPlane(tmp_path / "cp", with_controllers=True).start()
        assert [daemon.identity() for daemon in plane.daemons()] == first, "a second start changed something"
        victim = plane.daemon("kube-apiserver")
        identity = victim.running()
        assert identity is not None
        os.kill(identity.pid, 9)
        wait_until("its end", lambda: victim.running() is None, timeout=30)
        ControlPlane(tmp_path / "cp", with_controllers=True).start()
        assert plane.healthy(), "start did not repair what had died"
    finally:
        plane.stop()
    assert not (tmp_path / "cp").exists()
    assert _processes_naming(str(tmp_path)) == []


@pytest.mark.timeout(180)
def test_what_a_killed_owner_left_is_ended_by_the_next_one(tmp_path: Path) -> None:
    program = (
        "import pathlib, time; from tools.cluster.control_plane import temporary_control_plane as t\n"
        f"with t(pathlib.Path({str(tmp_path)!r})) as p: print(p.url, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline().startswith("https://")
        owner.kill()
    assert len(_processes_naming(str(tmp_path))) >= 2, "the test shows nothing when nothing was left behind"
    with temporary_control_plane(tmp_path) as plane:
        assert plane.client.ok("/readyz")
        assert len(_processes_naming(str(plane.state_dir))) == 2
    assert _processes_naming(str(tmp_path)) == []


@pytest.mark.timeout(60)
def test_a_part_that_dies_at_start_is_reported_with_its_log(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path / "cp", apiserver_args=["--no-such-flag"])
    try:
        with pytest.raises(ToolError, match="no-such-flag"):
            plane.start()
    finally:
        plane.stop()
    assert _processes_naming(str(tmp_path)) == []
