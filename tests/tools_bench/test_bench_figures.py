"""Figures: the arithmetic, the verdicts and what people and programs get to see."""

import io
import json

import pytest
from rich.console import Console
from tools.bench.figures import Figure, Goal, median, number, percentile, show, write_json


def test_percentiles_are_values_that_were_measured():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert percentile(values, 50) == 3
    assert percentile(values, 99) == 5
    assert percentile(values, 20) == 1
    assert percentile([7.0], 1) == 7
    assert median([1.0, 2.0]) == 1.5
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


@pytest.mark.parametrize(
    ("goal", "value", "verdict"),
    [
        (Goal(30), 30.0, "met"),
        (Goal(30), 30.1, "missed"),
        (Goal(0), 0.0, "met"),
        (Goal(80, at_least=True), 80.0, "met"),
        (Goal(80, at_least=True), 79.9, "missed"),
        (None, 1.0, ""),
    ],
)
def test_a_verdict_is_only_for_figures_with_a_goal(goal, value, verdict):
    assert Figure("part", "name", value, "ms", goal).verdict == verdict


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0123, "0.0123"),
        (1.5, "1.5"),
        (25.44, "25.4"),
        (147.3, "147"),
        (114321.6, "114322"),
        (30, "30"),
    ],
)
def test_numbers_have_three_digits_that_mean_something(value, text):
    assert number(value) == text


def test_the_table_shows_goal_verdict_and_floor():
    out = io.StringIO()
    figures = [
        Figure("create", "p50", 25.4, "ms", Goal(30), beside=17.2, note="n=50"),
        Figure("create", "burst", 42.0, "per s", Goal(80, at_least=True)),
        Figure("fio", "raw", 12345.6, "IOPS"),
    ]
    show(figures, Console(file=out, width=150))
    lines = out.getvalue().splitlines()
    (p50,) = [line for line in lines if "p50" in line]
    assert [word in p50 for word in ("25.4", "17.2", "<= 30", "met", "n=50")] == [True] * 5
    (burst,) = [line for line in lines if "burst" in line]
    assert ">= 80" in burst
    assert "missed" in burst
    assert sum("create" in line for line in lines) == 1, "a part is named once"


def test_programs_get_every_figure_and_the_machine(tmp_path):
    path = tmp_path / "figures.json"
    write_json([Figure("create", "p50", 25.4, "ms", Goal(30), beside=17.2)], path, cores=2)
    read = json.loads(path.read_text())
    assert read["machine"]["cores"] == 2
    assert read["figures"] == [
        {
            "part": "create",
            "name": "p50",
            "value": 25.4,
            "unit": "ms",
            "goal": {"limit": 30, "at_least": False},
            "beside": 17.2,
            "note": "",
            "verdict": "met",
        }
    ]
    assert list(tmp_path.iterdir()) == [path]
