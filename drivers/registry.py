"""Which drivers are installed, and whether a Backend's configuration fits its driver.

The leader judges every Backend with `judge`, and a host opens only what the same function accepts, so that both
always agree. A driver that cannot be imported harms nobody but the Backends that name it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Self

from pydantic import ValidationError

from cinderblock.core.errors import InvalidRequest
from cinderblock.drivers.base import DriverConfig, DriverFactory

GROUP = "cinderblock.drivers"


class Registry:
    """Drivers by name. Each is imported when it is first asked for."""

    def __init__(self, loaders: Mapping[str, Callable[[], DriverFactory]]) -> None:
        self._loaders = dict(loaders)

    @classmethod
    def load(cls) -> Self:
        """Every entry point of group `cinderblock.drivers`."""
        return cls({point.name: point.load for point in entry_points(group=GROUP)})

    @classmethod
    def of(cls, **drivers: DriverFactory) -> Self:
        """Exactly these, whatever is installed."""
        return cls({name: _constant(driver) for name, driver in drivers.items()})

    def names(self) -> list[str]:
        return sorted(self._loaders)

    def get(self, name: str) -> DriverFactory:
        """The driver's class. Errors: InvalidRequest (unknown, or it cannot be imported)."""
        loader = self._loaders.get(name)
        if loader is None:
            known = ", ".join(self.names()) or "none"
            raise InvalidRequest(
                f"driver {name!r} is not installed; installed drivers: {known}", reason="UnknownDriver"
            )
        try:
            return loader()
        except Exception as error:  # a stranger's module may raise anything at import
            raise InvalidRequest(
                f"driver {name!r} cannot be loaded: {type(error).__name__}: {error}", reason="BrokenDriver"
            ) from error

    def judge(
        self, driver: str, config: Mapping[str, Any], node_selector: Mapping[str, str] | None
    ) -> DriverConfig:
        """The parsed configuration of a Backend.

        Errors: InvalidRequest, with a message that names each wrong field and says what to fix.
        """
        factory = self.get(driver)
        if factory.node_local and node_selector is None:
            raise InvalidRequest(
                f"driver {driver!r} keeps volumes on nodes: set spec.nodeSelector to the labels of these nodes"
                " ({} for every node)",
                reason="InvalidConfig",
            )
        if not factory.node_local and node_selector is not None:
            raise InvalidRequest(
                f"driver {driver!r} is reached over the network and served by the operator:"
                " remove spec.nodeSelector",
                reason="InvalidConfig",
            )
        try:
            return factory.Config.model_validate(dict(config))
        except ValidationError as error:
            raise InvalidRequest(explain(error, factory.Config), reason="InvalidConfig") from None


def explain(error: ValidationError, config: type[DriverConfig]) -> str:
    """One sentence per wrong field, never with the value of it: a configuration may hold a secret."""
    known = ", ".join(sorted(field.alias or name for name, field in config.model_fields.items()))
    parts = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(("spec.config", *(str(part) for part in item["loc"])))
        if item["type"] == "extra_forbidden":
            hint = f"; known settings: {known}" if len(item["loc"]) == 1 else ""
            parts.append(f"{where} is not a setting{hint}")
        else:
            parts.append(f"{where}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(parts)


def _constant(driver: DriverFactory) -> Callable[[], DriverFactory]:
    return lambda: driver
