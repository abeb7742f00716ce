"""`make demo`, as a user runs it. Comes first: the other tests of this folder use the cluster that it starts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tools.paths import REPOSITORY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def test_the_demo_proves_its_four_claims(machinery):
    done = subprocess.run(
        [sys.executable, "-m", "tools.demo"],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    table = done.stdout.partition("Proved")[2]
    for claim in (
        "a bare Volume becomes Available",
        "a file outlives its pod",
        "a raw device outlives its pod",
        "an Attachment brings the device and takes it away",
    ):
        assert claim in table, done.stdout[-4000:]
    assert "Remove everything: make demo-down" in table
