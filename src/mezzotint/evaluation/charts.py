"""Where the marks of a chart go. Geometry only: the template draws, so a chart inherits ink and paper of the page.

Every chart is laid out for a width in CSS pixels (a wide and a narrow one per page), y grows downward as in SVG.
Coordinates are rounded to a tenth of a pixel; values for tooltips and tables stay what they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Number = int | float

WIDE, NARROW = 760, 350
BAR = 24.0  # widest bar
HUES = 8  # looks of curves that the style sheet has
CURVES = ("density", "variety", "score")
ABBREVIATIONS = {
    "_blocks": "",
    "_block": "",
    "resnets": "res",
    "attentions": "attn",
    "downsamplers.0.conv": "downsample",
    "upsamplers.0.conv": "upsample",
    "time_embedding": "time",
}


@dataclass(frozen=True)
class Scale:
    """A straight map from values [low, high] to pixels [start, end]."""

    low: Number
    high: Number
    start: Number
    end: Number

    def __call__(self, value: Number) -> float:
        span = (self.high - self.low) or 1.0
        return round(self.start + (value - self.low) / span * (self.end - self.start), 1)


def nice_ticks(low: Number, high: Number, count: int = 4) -> list[Number]:
    """Multiples inside [low, high] of the largest round step (1, 2 or 5 times 10**n) that gives `count` or more."""
    if not high > low:
        return [low]
    power = 10.0 ** math.ceil(math.log10(high - low))
    for step in (factor * power / 10**down for down in range(4) for factor in (1, 0.5, 0.2)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 >= count:
            break
    return [round(index * step, 10) for index in range(first, last + 1)]


def unit_range(values: Sequence[Number]) -> list[float]:
    """The values moved and scaled to [0, 1]; zeros if they are all equal."""
    low, span = min(values), (max(values) - min(values)) or 1.0
    return [(value - low) / span for value in values]


def polyline(xs: Sequence[Number], ys: Sequence[Number]) -> str:
    """Points of an SVG polyline."""
    return " ".join(f"{x:g},{y:g}" for x, y in zip(xs, ys, strict=True))


def selection_chart(selection: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Score curves over the scored steps above, counts of calibration samples as bars beneath.

    The three curves have units of their own, so each is drawn from its smallest value (0) to its largest (1). A method
    that scores nothing has empty curves and gets the bars alone.
    """
    times, counts = selection["times"], selection["counts"]
    curves = {name: selection[name] for name in CURVES if len(selection.get(name) or ()) == len(times)}
    left, right, curve_top, curve_bottom, bar_top, bar_bottom = 38, width - 10, 14, 170, 204, 290
    slot = (right - left) / len(times)
    across = Scale(0, max(1, len(times) - 1), left + slot / 2, right - slot / 2)
    lift = 0 if curves else bar_top - curve_top - 24
    curve_bottom, bar_top, bar_bottom = curve_bottom - lift, bar_top - lift, bar_bottom - lift
    up, tall = Scale(0, 1, curve_bottom, curve_top), Scale(0, max(1, *counts), bar_bottom, bar_top)
    xs = [across(step) for step in range(len(times))]
    marked = _spread(len(times), 9 if width >= WIDE else 5)
    return {
        "width": width,
        "height": 336 - lift,
        "left": left,
        "right": right,
        "curve_bottom": curve_bottom,
        "bar_bottom": bar_bottom,
        "curves": [
            {"name": name, "points": polyline(xs, [up(value) for value in unit_range(values)])}
            for name, values in curves.items()
        ],
        "curve_ticks": [{"y": up(tick), "label": f"{tick:g}"} for tick in (0, 0.5, 1) if curves],
        "bar_ticks": [{"y": tall(tick), "label": f"{tick:g}"} for tick in nice_ticks(0, max(1, *counts), 3)],
        "bar_width": round(min(BAR, slot * 0.72), 1),
        "slot": round(slot, 1),
        "steps": [
            {
                "x": xs[step],
                "y": tall(counts[step]),
                "t": times[step],
                "count": counts[step],
                "scores": "".join(f", {name} {values[step]:.3g}" for name, values in curves.items()),
            }
            for step in range(len(times))
        ],
        "x_ticks": [{"x": xs[step], "label": f"{times[step]}"} for step in marked],
    }


def sqnr_chart(rows: Sequence[Mapping[str, Any]], width: int) -> dict[str, Any]:
    """SQNR of eps over the measured steps; infinite values are left out of the line and said in the table."""
    return curves_chart([{"name": "", "rows": rows, "hue": 0}], width)


def curves_chart(series: Sequence[Mapping[str, Any]], width: int) -> dict[str, Any]:
    """Several curves of SQNR over steps in one frame; infinite values are left out of a line.

    Args:
        series: `name` of each curve, its `rows` with the keys step, t and sqnr_db, and the number of its look, `hue`.
    """
    left, right, top, bottom = 38, width - 12, 44, 232
    values = [row["sqnr_db"] for curve in series for row in curve["rows"] if math.isfinite(row["sqnr_db"])] or [0.0]
    times = {row["step"]: row["t"] for curve in series for row in curve["rows"]}
    first, last = min(times), max(times)
    low, high = min(0.0, *values), max(1.0, *values)
    across = Scale(first, max(last, first + 1), left + 14, right - 14)
    up = Scale(low, high, bottom, top)
    return {
        "width": width,
        "height": 280,
        "left": left,
        "right": right,
        "bottom": bottom,
        "curves": [
            {"name": curve["name"], "hue": curve["hue"], **_curve(curve["rows"], across, up)} for curve in series
        ],
        "y_ticks": [{"y": up(tick), "label": f"{tick:g}"} for tick in nice_ticks(low, high, 4)],
        "x_ticks": [{"x": across(step), "label": f"{times[step]}"} for step in sorted(times)],
    }


def _curve(rows: Sequence[Mapping[str, Any]], across: Scale, up: Scale) -> dict[str, Any]:
    """Marks and line of one curve."""
    points = [
        {**row, "x": across(row["step"]), "y": up(row["sqnr_db"])} for row in rows if math.isfinite(row["sqnr_db"])
    ]
    return {"points": points, "line": polyline([p["x"] for p in points], [p["y"] for p in points])}


def units_chart(units: Sequence[Mapping[str, Any]], width: int, worst: int = 3) -> dict[str, Any]:
    """One line a unit on a log scale: loss with nearest rounding, loss with learned rounding, and which was kept."""
    losses = [unit[key] for unit in units for key in ("nearest_loss", "learned_loss") if _plottable(unit.get(key))]
    low, high = _decades(losses)
    label, row_height, top = (250, 20, 44) if width >= WIDE else (128, 20, 44)
    across = Scale(math.log10(low), math.log10(high), label + 8, width - 12)
    kept = {unit["name"]: _kept_loss(unit) for unit in units}
    marked = sorted((name for name in kept if _plottable(kept[name])), key=lambda name: -kept[name])[:worst]
    rows = []
    for index, unit in enumerate(units):
        places = {
            key: across(math.log10(unit[f"{key}_loss"])) if _plottable(unit.get(f"{key}_loss")) else None
            for key in ("nearest", "learned")
        }
        rows.append(
            {
                **unit,
                "y": top + row_height * index + row_height / 2,
                "nearest_x": places["nearest"],
                "learned_x": places["learned"],
                "label": _shorten(unit["name"], 36) if width >= WIDE else _shorten(_abbreviate(unit["name"]), 19),
                "worst": unit["name"] in marked,
            }
        )
    decades = range(round(math.log10(low)), round(math.log10(high)) + 1)
    every = max(1, -(-len(decades) // (8 if width >= WIDE else 4)))
    return {
        "width": width,
        "height": top + row_height * len(units) + 12,
        "label": label,
        "top": top,
        "bottom": top + row_height * len(units),
        "rows": rows,
        "x_ticks": [{"x": across(power), "power": power} for power in decades if (power - decades[0]) % every == 0],
    }


def _kept_loss(unit: Mapping[str, Any]) -> Number:
    """Loss of the rounding that was kept."""
    value = unit["nearest_loss"] if unit.get("kept") == "nearest" else unit.get("learned_loss", unit["nearest_loss"])
    return value if value is not None else 0.0


def _plottable(value: Number | None) -> bool:
    """Whether a loss has a place on a log scale."""
    return value is not None and math.isfinite(value) and value > 0


def _decades(values: Sequence[Number]) -> tuple[float, float]:
    """Powers of ten around the values, at least one decade apart."""
    if not values:
        return 1e-1, 1.0
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def _spread(count: int, marks: int) -> list[int]:
    """At most `marks` indices, evenly spread, first and last among them."""
    marks = min(marks, count)
    return sorted({round(index * (count - 1) / max(1, marks - 1)) for index in range(marks)})


def _abbreviate(name: str) -> str:
    """The name with diffusers' long words cut, for narrow charts."""
    for long, short in ABBREVIATIONS.items():
        name = name.replace(long, short)
    return name


def _shorten(name: str, limit: int) -> str:
    """The name with its middle left out if it is longer than `limit` characters."""
    if len(name) <= limit:
        return name
    head = (limit - 1) // 2
    return f"{name[:head]}…{name[-(limit - 1 - head) :]}"
