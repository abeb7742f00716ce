"""Two operators against a real API server: one leads, and a stopped one never speaks again."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from tools.build import binary
from tools.cluster.control_plane import temporary_control_plane
from tools.paths import REPOSITORY

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(240)]

LEASE = "cinderblock-operator"


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    """One of its own: an operator serves every object of its API server."""
    with temporary_control_plane(tmp_path_factory.mktemp("plane")) as plane:
        plane.apply_crds(REPOSITORY / "deploy" / "crds")
        yield plane


def until(condition, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.1)
    return found


class Operator:
    def __init__(self, plane, folder: Path, name: str, *extra: str):
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "from cinderblock.cli.main import main; main()",
                    "operator",
                    f"--kubeconfig={plane.kubeconfig}",
                    "--namespace=default",
                    f"--pod={name}",
                    f"--pools-root={folder}",
                    "--log-format=json",
                    *extra,
                ],
                stderr=log,
                cwd=folder,
            )

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    return tmp_path_factory.mktemp("pools")


@pytest.fixture
def start(plane, pools):
    running = []

    def start(name, *extra):
        operator = Operator(plane, pools, name, *extra)
        running.append(operator)
        return operator

    yield start
    for operator in running:
        operator.end()


def holder(plane, lease=LEASE):
    leases = json.loads(plane.kubectl("get", "leases", "-n", "default", "-o", "json"))["items"]
    found = [item["spec"].get("holderIdentity") for item in leases if item["metadata"]["name"] == lease]
    return (found or [None])[0] or ""


def epoch(plane):
    lease = json.loads(plane.kubectl("get", "lease", LEASE, "-n", "default", "-o", "json"))
    return lease["spec"]["leaseTransitions"]


def create(plane, kind, name, spec, namespace=None):
    body = {
        "apiVersion": "cinderblock.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, **({"namespace": namespace} if namespace else {})},
        "spec": spec,
    }
    plane.kubectl("apply", "-f", "-", stdin=json.dumps(body))


def phase(plane, name):
    return plane.kubectl(
        "get", "volumes.cinderblock.io", name, "-n", "default", "-o", "jsonpath={.status.phase}"
    )


def test_a_stopped_leader_is_replaced_ends_itself_and_writes_nothing_more(plane, start):
    a = start("a")
    until(lambda: holder(plane).startswith("a_"), "a leads")
    b = start("b")
    create(plane, "Backend", "fake", {"driver": "fake", "config": {"stateFile": "fake.json"}})
    create(plane, "VolumeType", "default", {"isDefault": True})
    create(plane, "Volume", "one", {"size": "1Gi"}, "default")
    until(lambda: phase(plane, "one") == "Available", "the first volume")
    first = epoch(plane)

    a.process.send_signal(signal.SIGSTOP)
    create(plane, "Volume", "two", {"size": "1Gi"}, "default")
    until(lambda: holder(plane).startswith("b_"), "b took over", 40)
    assert epoch(plane) == first + 1
    until(lambda: holder(plane, "cinderblock-host-operator").startswith("b_"), "b speaks as host")

    seen = []
    watching = subprocess.Popen(
        [
            binary("kubectl"),
            f"--kubeconfig={plane.kubeconfig}",
            *("get", "leases", "-n", "default", "--watch", "-o"),
            'jsonpath={.metadata.name} {.spec.holderIdentity}{"\\n"}',
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    reader = threading.Thread(target=lambda: seen.extend(watching.stdout), daemon=True)
    reader.start()
    try:
        until(lambda: seen, "the watch of leases")
        a.process.send_signal(signal.SIGCONT)
        assert a.process.wait(timeout=10) == 70
        assert "ended: " in a.log.read_text()
        known = len(seen)
        until(lambda: len(seen) > known + 2, "b goes on renewing")
    finally:
        watching.terminate()
        watching.wait()
        reader.join()
        watching.stdout.close()
    assert all(line.split()[1].startswith("b_") for line in seen), seen
    until(lambda: phase(plane, "two") == "Available", "the second volume")
    assert phase(plane, "one") == "Available"
    assert b.process.poll() is None


def test_a_clean_stop_hands_the_lease_over_at_once(plane, start):
    a = start("c", "--metrics-port=19811")
    until(lambda: holder(plane).startswith("c_"), "c leads", 40)
    until(lambda: _get("http://127.0.0.1:19811/readyz") == 200, "c is ready")
    assert _get("http://127.0.0.1:19811/healthz") == 200
    b = start("d", "--metrics-port=19812")
    until(lambda: _get("http://127.0.0.1:19812/readyz") == 200, "the standby is ready as well")
    began = time.monotonic()
    a.process.send_signal(signal.SIGTERM)
    assert a.process.wait(timeout=10) == 0
    until(lambda: holder(plane).startswith("d_"), "d leads")
    assert time.monotonic() - began < 10
    text = urllib.request.urlopen("http://127.0.0.1:19812/metrics", timeout=5).read().decode()
    assert "process_resident_memory_bytes" in text
    b.process.send_signal(signal.SIGTERM)
    assert b.process.wait(timeout=10) == 0
    assert holder(plane) == ""
    assert "Traceback" not in a.log.read_text() + b.log.read_text()


def test_a_leader_that_the_api_server_leaves_without_an_answer_ends_itself_in_time(plane, start):
    a = start("e")
    until(lambda: holder(plane).startswith("e_"), "e leads", 40)
    (api_server,) = [daemon.identity().pid for daemon in plane.daemons() if daemon.name == "kube-apiserver"]
    began = time.monotonic()
    os.kill(api_server, signal.SIGSTOP)
    try:
        assert a.process.wait(timeout=20) == 70
        took = time.monotonic() - began
    finally:
        os.kill(api_server, signal.SIGCONT)
    assert took < 14, "before anybody else may lead"
    b = start("f")
    until(lambda: holder(plane).startswith("f_"), "f leads", 40)
    b.process.send_signal(signal.SIGTERM)
    assert b.process.wait(timeout=10) == 0


def test_a_standby_stops_at_once_and_takes_nothing(plane, start):
    a = start("g")
    until(lambda: holder(plane).startswith("g_"), "g leads", 40)
    b = start("h", "--metrics-port=19813")
    until(lambda: _get("http://127.0.0.1:19813/readyz") == 200, "h waits")
    b.process.send_signal(signal.SIGTERM)
    assert b.process.wait(timeout=10) == 0
    assert holder(plane).startswith("g_")
    assert a.process.poll() is None


def test_a_host_beats_for_its_node_and_stops_cleanly(plane, start):
    plane.kubectl("apply", "-f", "-", stdin='{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"}}')
    a = start("i", "--role=host", "--node=n1", "--metrics-port=19814")
    until(lambda: holder(plane, "cinderblock-host-n1").startswith("i_"), "the heartbeat", 40)
    until(lambda: _get("http://127.0.0.1:19814/readyz") == 200, "i is ready")
    a.process.send_signal(signal.SIGTERM)
    assert a.process.wait(timeout=10) == 0
    assert "Traceback" not in a.log.read_text()
    plane.kubectl("delete", "node", "n1")


def _get(url):
    try:
        return urllib.request.urlopen(url, timeout=5).status
    except OSError:
        return 0
