"""Backends are judged by one function, with messages that say what to fix."""

from importlib.metadata import EntryPoint

import pytest

from cinderblock.core.errors import InvalidRequest
from cinderblock.core.units import GIB
from cinderblock.drivers.fake import FakeConfig, FakeDriver
from cinderblock.drivers.registry import Registry


@pytest.fixture
def registry() -> Registry:
    return Registry.load()


def test_our_drivers_are_installed(registry: Registry) -> None:
    assert {"fake", "file"} <= set(registry.names())
    assert registry.get("fake") is FakeDriver


def test_a_good_configuration_is_parsed(registry: Registry) -> None:
    config = registry.judge("fake", {"totalSize": "3Gi", "thin": False}, None)
    assert isinstance(config, FakeConfig)
    assert config.total_size == 3 * GIB
    assert not config.thin


@pytest.mark.parametrize(
    ("driver", "config", "selector", "words"),
    [
        ("fak", {}, None, ["'fak' is not installed", "fake", "file"]),
        ("fake", {}, {}, ["remove spec.nodeSelector"]),
        ("file", {}, None, ["set spec.nodeSelector"]),
        ("fake", {"size": "1Gi"}, None, ["spec.config.size is not a setting", "totalSize"]),
        ("fake", {"total_size": "1Gi"}, None, ["spec.config.total_size is not a setting"]),
        ("fake", {"totalSize": "much"}, None, ["spec.config.totalSize", "'much' is not a size"]),
        ("fake", {"totalSize": 0}, None, ["spec.config.totalSize", "above 0"]),
        ("fake", {"totalSize": True}, None, ["spec.config.totalSize"]),
        ("fake", {"faults": [{"verb": "create", "error": "Nope"}]}, None, ["no such error", "OutOfCapacity"]),
        ("fake", {"faults": [{"verb": "delete", "when": "Half"}]}, None, ["Half is only for verb create"]),
        (
            "fake",
            {"pools": [{"name": "a", "totalSize": "1Gi"}, {"name": "a", "totalSize": "1Gi"}]},
            None,
            ["two pools have one name"],
        ),
    ],
)
def test_a_bad_backend_is_refused_with_what_to_fix(
    registry: Registry, driver: str, config: dict, selector: dict | None, words: list[str]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        registry.judge(driver, config, selector)
    for word in words:
        assert word in caught.value.message


def test_values_never_reach_the_message(registry: Registry) -> None:
    with pytest.raises(InvalidRequest) as caught:
        registry.judge("fake", {"thin": "hunter2", "password": "hunter2"}, None)
    assert "hunter2" not in caught.value.message


def test_a_broken_driver_harms_only_its_own_backends() -> None:
    broken = EntryPoint(name="broken", value="no_such_module:Driver", group="cinderblock.drivers")
    registry = Registry({"broken": broken.load, "fake": lambda: FakeDriver})
    assert registry.judge("fake", {}, None)
    with pytest.raises(InvalidRequest, match="'broken' cannot be loaded: ModuleNotFoundError"):
        registry.judge("broken", {}, None)
