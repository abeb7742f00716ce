"""The command line: what it refuses, and that each process loads only its own world."""

import os
import re
import subprocess
import sys

import pytest

CLEAN = {key: value for key, value in os.environ.items() if not re.match("CINDERBLOCK|CSI_|KUBE", key)}


def cinderblock(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", "from cinderblock.cli.main import main; main()", *arguments],
        env={**CLEAN, "TERM": "dumb", "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_version():
    assert re.fullmatch(r"cinderblock \d+\.\d+\.\d+\n", cinderblock("version").stdout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("operator", "--role=host"), "needs --node"),
        (("operator", "--role=king"), "king"),
        (("operator", "--log-level=loud"), "unknown log level"),
        (("operator",), "service account"),
        (("operator", "--kubeconfig=/does/not/exist"), "kubeconfig /does/not/exist"),
        (("csi", "controller"), "--endpoint"),
        (("csi", "controller", "--endpoint=relative.sock"), "absolute path"),
        (("csi", "node", "--endpoint=unix:///tmp/x.sock"), "--node"),
        (("nonsense",), "nonsense"),
    ],
)
def test_what_it_cannot_do_is_one_plain_line(arguments, said):
    done = cinderblock(*arguments)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_chart_configures_by_environment():
    done = cinderblock("operator", "--role=host", CINDERBLOCK_NODE="n1", CINDERBLOCK_LOG_LEVEL="loud")
    assert "unknown log level 'loud'" in done.stderr


@pytest.mark.parametrize(
    ("imported", "forbidden"),
    [
        ("cinderblock.cli.main", ("kopf", "grpc", "kubernetes", "aiohttp")),
        ("cinderblock.operator.main", ("grpc",)),
        ("cinderblock.csi.controller_main", ("kopf", "cinderblock.operator", "cinderblock.drivers")),
        ("cinderblock.csi.node_main", ("kopf", "cinderblock.operator", "cinderblock.drivers")),
    ],
)
def test_a_process_loads_only_its_own_world(imported, forbidden):
    program = f"import sys, {imported}; print(*[m for m in {forbidden!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True, env=CLEAN
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize("command", [("controller",), ("node", "--node=n1")])
def test_a_socket_that_cannot_be_had_is_one_plain_line(tmp_path, command):
    config, taken = tmp_path / "kubeconfig", tmp_path / "csi.sock"
    config.write_text(
        "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],"
        " clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}], users: [{name: u, user: {}}]}"
    )
    taken.write_text("not a socket")
    done = cinderblock("csi", *command, f"--endpoint=unix://{taken}", f"--kubeconfig={config}")
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "in the way" in done.stderr
    assert "Traceback" not in done.stderr
