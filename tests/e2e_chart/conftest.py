"""One cluster of its own for this folder: other tests' cluster never sees an uninstall."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from chart_world import ChartWorld

_INSTANCE = 8
_STATE = Path(f"/var/lib/cinderblock-dev{_INSTANCE}")  # where `tools.cluster down` of that instance looks


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChartWorld]:
    path = os.environ["PATH"]  # `up` adds to it
    world = ChartWorld.up(_STATE, _INSTANCE, tmp_path_factory.mktemp("chart"))
    try:
        yield world
    finally:
        world.machinery.down()
        os.environ["PATH"] = path
