from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.evaluation import charts

WIDTHS = pytest.mark.parametrize("width", [charts.WIDE, charts.NARROW])


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 9))
def test_ticks_are_round_inside_and_evenly_spaced(low: float, span: float, count: int) -> None:
    ticks = charts.nice_ticks(low, low + span, count)
    slack = span * 1e-6
    assert count <= len(ticks) <= 2.5 * count + 3
    assert all(low - slack <= tick <= low + span + slack for tick in ticks)
    gaps = {round((b - a) / span, 5) for a, b in itertools.pairwise(ticks)}
    assert len(gaps) <= 1 or max(gaps) - min(gaps) < 1e-4


def test_scale_maps_the_ends() -> None:
    scale = charts.Scale(0, 10, 200, 100)
    assert (scale(0), scale(5), scale(10)) == (200, 150, 100)
    assert charts.Scale(3, 3, 0, 10)(3) == 0  # a single value has a place too


@WIDTHS
def test_selection_runs_from_noise_to_image_with_a_bar_a_step(manifest: dict[str, Any], width: int) -> None:
    selection = manifest["results"]["selection"]
    chart = charts.selection_chart(selection, width)
    xs = [step["x"] for step in chart["steps"]]
    assert xs == sorted(xs)
    assert chart["left"] <= xs[0] < xs[-1] <= chart["right"] <= width
    assert [step["t"] for step in chart["steps"]] == selection["times"]
    heights = [chart["bar_bottom"] - step["y"] for step in chart["steps"]]
    assert heights == pytest.approx([max(heights) * n / 12 for n in selection["counts"]], abs=0.2)
    assert "density 2, variety 100, score 1" in chart["steps"][0]["scores"]
    assert chart["x_ticks"][0]["label"] == "800"
    assert chart["x_ticks"][-1]["label"] == "0"


@WIDTHS
def test_a_selection_without_scores_has_bars_only(width: int) -> None:
    chart = charts.selection_chart(
        {"times": [9, 0], "counts": [3, 4], "density": [], "variety": [], "score": [], "radius": None}, width
    )
    assert chart["curves"] == []
    assert chart["curve_ticks"] == []
    assert len(chart["steps"]) == 2
    assert all(0 < step["y"] < chart["bar_bottom"] < chart["height"] for step in chart["steps"])


def test_constant_curves_lie_on_the_ground() -> None:
    assert charts.unit_range([3.0, 3.0]) == [0.0, 0.0]
    assert charts.unit_range([1.0, 3.0, 2.0]) == [0.0, 1.0, 0.5]


@WIDTHS
def test_sqnr_points_rise_with_the_value_and_infinite_ones_are_left_out(width: int) -> None:
    rows = [
        {"step": 0, "t": 9, "sqnr_db": 40.0},
        {"step": 1, "t": 3, "sqnr_db": math.inf},
        {"step": 2, "t": 0, "sqnr_db": -3.0},
    ]
    chart = charts.sqnr_chart(rows, width)
    assert [point["t"] for point in chart["curves"][0]["points"]] == [9, 0]
    assert chart["curves"][0]["points"][0]["y"] < chart["curves"][0]["points"][1]["y"] <= chart["bottom"]
    assert [tick["label"] for tick in chart["x_ticks"]] == ["9", "3", "0"]


@WIDTHS
def test_units_lie_on_a_log_scale_and_the_worst_are_marked(manifest: dict[str, Any], width: int) -> None:
    chart = charts.units_chart(manifest["results"]["units"], width, worst=1)
    first, second = chart["rows"]
    decade = chart["x_ticks"][1]["x"] - chart["x_ticks"][0]["x"]
    decade /= chart["x_ticks"][1]["power"] - chart["x_ticks"][0]["power"]
    assert first["nearest_x"] - first["learned_x"] == pytest.approx(decade * math.log10(4), abs=0.2)
    assert second["learned_x"] > second["nearest_x"]
    assert (first["worst"], second["worst"]) == (True, False)


def test_worst_is_judged_by_the_rounding_that_was_kept() -> None:
    units = [
        {"name": "a", "nearest_loss": 1.0, "learned_loss": 9.0, "kept": "nearest"},
        {"name": "b", "nearest_loss": 5.0, "learned_loss": 2.0, "kept": "learned"},
    ]
    assert [row["worst"] for row in charts.units_chart(units, charts.WIDE, worst=1)["rows"]] == [False, True]


def test_losses_without_a_logarithm_have_no_mark() -> None:
    units = [{"name": "a", "nearest_loss": 0.0, "learned_loss": None, "kept": "nearest"}]
    row = charts.units_chart(units, charts.WIDE)["rows"][0]
    assert row["nearest_x"] is None
    assert row["learned_x"] is None


def test_long_names_are_shortened_in_the_narrow_chart_only() -> None:
    name = "down_blocks.1.downsamplers.0.conv"
    units = [{"name": name, "nearest_loss": 1.0, "learned_loss": 0.5, "kept": "learned"}]
    assert charts.units_chart(units, charts.WIDE)["rows"][0]["label"] == name
    assert charts.units_chart(units, charts.NARROW)["rows"][0]["label"] == "down.1.downsample"
