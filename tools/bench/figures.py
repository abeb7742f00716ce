"""What was measured, what it should be, and the table at the end."""

from __future__ import annotations

import json
import math
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Goal:
    """`limit` is the most that is good, or the least where `at_least`."""

    limit: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {number(self.limit)}"


@dataclass(frozen=True)
class Figure:
    """One row. `beside` is what the same run measured as the floor of it; `note` says what went in."""

    part: str
    name: str
    value: float
    unit: str
    goal: Goal | None = None
    beside: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        return "met" if self.goal.met(self.value) else "missed"


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed (nearest rank)."""
    ranked = sorted(values)
    if not ranked:
        raise ValueError("no values")
    return ranked[max(math.ceil(len(ranked) * percent / 100) - 1, 0)]


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def number(value: float) -> str:
    """Three digits that mean something, and never an exponent."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def show(figures: Sequence[Figure], console: Console) -> None:
    """The table for people."""
    table = Table(title="Figures", title_justify="left")
    for name in ("part", "figure", "value", "unit", "floor", "goal", "verdict", "note"):
        table.add_column(name, justify="right" if name in {"value", "floor", "goal"} else "left")
    before = ""
    for figure in figures:
        if before and figure.part != before:
            table.add_section()
        table.add_row(
            figure.part if figure.part != before else "",
            figure.name,
            number(figure.value),
            figure.unit,
            "" if figure.beside is None else number(figure.beside),
            "" if figure.goal is None else str(figure.goal),
            figure.verdict,
            figure.note,
        )
        before = figure.part
    console.print(table)


def write_json(figures: Sequence[Figure], path: Path, **facts: object) -> None:
    """The same for programs; `facts` say how it was measured."""
    body = {
        "machine": {"kernel": platform.release(), "python": platform.python_version(), **facts},
        "figures": [{**asdict(figure), "verdict": figure.verdict or None} for figure in figures],
    }
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(body, indent=2) + "\n")
    new.replace(path)
