"""csi-sanity against the whole path: real API server, leader, volume host with the file driver, controller, node."""

import re
import subprocess
from collections.abc import Iterator

import pytest
from real_stack import RealStack, real_stack
from tools.build import binary

pytestmark = [pytest.mark.root, pytest.mark.apiserver, pytest.mark.timeout(900)]

# Specs of capabilities that are advertised; with a further capability the number grows.
_SPECS = 58
_RESULT = re.compile(r"(\d+) Passed.*?\| .*?(\d+) Failed")


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Iterator[RealStack]:
    with real_stack(tmp_path_factory.mktemp("sanity")) as stack:
        yield stack


@pytest.mark.parametrize("access", ["mount", "block"])
def test_every_spec_of_the_advertised_capabilities_passes(stack, access):
    done = subprocess.run(
        [
            str(binary("csi-sanity")),
            f"-csi.endpoint={stack.node_socket}",
            f"-csi.controllerendpoint={stack.controller_socket}",
            f"-csi.mountdir={stack.root}/work/mount",
            f"-csi.stagingdir={stack.root}/work/staging",
            f"-csi.testvolumesize={64 * 1024**2}",
            f"-csi.testvolumeexpandsize={128 * 1024**2}",
            f"-csi.testvolumeaccesstype={access}",
            "-ginkgo.no-color",
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    found = _RESULT.search(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + stack.logs()
    assert found is not None
    assert (int(found[1]) >= _SPECS, int(found[2])) == (True, 0), done.stdout[-1500:]
    left = stack.plane.kubectl("get", "volumes.cinderblock.io,attachments.cinderblock.io", "-A", "-o", "name")
    assert left == ""
    assert list((stack.root / "pools" / "disk").rglob("*.img")) == []
