"""A whole local cluster, beside any other on this machine: it survives crashes and goes without a trace."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.cluster import kernel, network
from tools.cluster.cluster import Cluster
from tools.cluster.images import BUSYBOX_IMAGE
from tools.cluster.layout import Layout
from tools.paths import REPOSITORY
from tools.shell import wait_until

pytestmark = [pytest.mark.root, pytest.mark.apiserver, pytest.mark.timeout(1800)]
_INSTANCE = 9
# Does what a storage driver does: a loop device on a pool file, mounts that the whole node is to see, and a
# file that is deleted while a loop device stands on it.
_POD = f"""
apiVersion: v1
kind: Pod
metadata: {{name: driver}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: driver
    image: {BUSYBOX_IMAGE}
    imagePullPolicy: IfNotPresent
    securityContext: {{privileged: true}}
    command:
    - sh
    - -ec
    - |
      cd /var/lib/cinderblock
      for name in kept gone; do dd if=/dev/zero of=$name.img bs=1M count=1; losetup -f $name.img; done
      rm gone.img
      mkdir -p mounted
      mount -t tmpfs seen-by-node mounted
      touch /var/lib/kubelet/done
      sleep 1000
    volumeMounts:
    - {{name: pools, mountPath: /var/lib/cinderblock, mountPropagation: Bidirectional}}
    - {{name: kubelet, mountPath: /var/lib/kubelet, mountPropagation: Bidirectional}}
    - {{name: dev, mountPath: /dev}}
  volumes:
  - {{name: pools, hostPath: {{path: /var/lib/cinderblock}}}}
  - {{name: kubelet, hostPath: {{path: /var/lib/kubelet}}}}
  - {{name: dev, hostPath: {{path: /dev}}}}
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("PATH", os.environ["PATH"])  # up adds to it
    folder = Path(tempfile.mkdtemp(prefix="cbk", dir="/tmp"))  # short: sockets lie below
    cluster = Cluster(Layout(folder / "s", _INSTANCE))
    try:
        cluster.down()  # of a run that was killed
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(folder)


def _processes_of(cluster: Cluster) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(cluster.layout.state) in command:
            found.append(command)
    return found


def _loops_by_pods(before: set[str]) -> list[str]:
    ours = ("kept.img", "gone.img")
    return [
        loop.name
        for loop in kernel.loops()
        if loop.name not in before and any(name in loop.backing_path for name in ours)
    ]


def test_crash_repair_power_cut_and_removal(cluster: Cluster) -> None:
    loops_before = {loop.name for loop in kernel.loops()}
    layout = cluster.layout
    node = cluster.node(1)
    settings = {"CINDERBLOCK_STATE": str(layout.state), "CINDERBLOCK_INSTANCE": str(_INSTANCE)}
    with subprocess.Popen(
        [sys.executable, "-m", "tools.cluster", "up"], cwd=REPOSITORY, env={**os.environ, **settings}
    ) as first:
        wait_until("up to start the node", lambda: node.daemon.running() is not None, timeout=1500)
        first.kill()
    cluster.up()
    assert all(row.healthy for row in cluster.status())
    identities = [daemon.identity() for daemon in [*cluster.plane.daemons(), node.daemon]]
    cluster.up()
    assert [daemon.identity() for daemon in [*cluster.plane.daemons(), node.daemon]] == identities

    cluster.plane.kubectl("apply", "-f", "-", stdin=_POD)
    wait_until("the pod's work", (node.layout.folder / "kubelet" / "done").exists, timeout=60)
    mounts = subprocess.run(
        node.enter_argv(["cat", "/proc/mounts"]), check=True, capture_output=True, text=True, timeout=30
    ).stdout
    assert "seen-by-node /var/lib/cinderblock/mounted" in mounts, "the pod's mount did not reach its node"
    assert "seen-by-node" not in Path("/proc/mounts").read_text(), "the node's mount reached this machine"
    assert (node.layout.folder / "pools" / "kept.img").exists()
    assert len(_loops_by_pods(loops_before)) == 2

    node.kill()
    assert _loops_by_pods(loops_before) == [], "loop devices outlived the power cut"
    assert not cluster.status()[-1].healthy
    cluster.up()
    assert all(row.healthy for row in cluster.status())
    wait_until("the pod to be back", lambda: len(_loops_by_pods(loops_before)) == 2, timeout=90)

    cluster.down()
    assert _processes_of(cluster) == []
    assert _loops_by_pods(loops_before) == []
    assert not layout.state.exists()
    assert not network.link_exists(layout.bridge)
    for one in layout.nodes():
        assert not network.link_exists(one.veth)
        assert not network.namespace(one).exists()
        assert not [parent for parent in kernel.cgroup_parents() if (parent / one.kernel_name).exists()]
    assert str(layout.state) not in Path("/proc/self/mountinfo").read_text()
    cluster.down()
