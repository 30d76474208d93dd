"""Rows that differ in the seed alone become one line: mean and spread of each figure, and who is best.

*Spread* is the standard deviation (n - 1) over seeds; one seed has none. A figure is best if it is the best mean among
the recipes of one bit setting. Another is *within the spread* of the best if they differ by no more than the larger of
their two standard deviations, or, with one seed each, if the best mean lies in the interval of the other figure or the
other way round. Without seeds and intervals nothing is known about spread, and nothing is within it.

Rows of one name that differ in more than the seed are lines of their own, named by what differs; lines are compared
with each other where they were judged on the same images: one float model, sampler, and list of prompts, drawn by
networks that compute the same (`Row.computes`: what is deployed stands apart). Recipes that calibrated on the prompts
or classes that are drawn are compared among themselves; a changed recipe with its whole one, also where that is the
change.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mezzotint.benchmark.columns import Column, Interval
from mezzotint.benchmark.plan import OURS, RELEASED, Kind
from mezzotint.benchmark.row import DEFINED, USUAL_SOURCE, Row
from mezzotint.recipes.registry import RECIPES

SAMPLER_PART = "sampler."
MOST_OPTIONS = 3  # in a name
SAW = {False: "calibrated on others than are drawn", True: "calibrated on what is drawn"}


@dataclass(frozen=True)
class Stat:
    """Mean of a figure over the seeds, with its spread (None for one seed) and, for one seed, its interval."""

    mean: float
    spread: float | None
    count: int
    interval: Interval | None

    @property
    def half(self) -> float | None:
        """Half of the interval."""
        return None if self.interval is None else (self.interval[1] - self.interval[0]) / 2


@dataclass(frozen=True)
class Line:
    """Rows that differ in the seed alone.

    Attributes:
        apart: options by which it differs from other lines of its recipe, in words; "" where it is the only one.
    """

    rows: tuple[Row, ...]
    apart: str = ""

    @property
    def first(self) -> Row:
        return self.rows[0]

    @property
    def name(self) -> str:
        """Of the recipe, with the variant where there is one, and with what tells it from lines of the same name."""
        words = "; ".join(filter(None, (self.first.variant, self.apart)))
        return f"{self.first.recipe} ({words})" if words else self.first.recipe

    def stat(self, column: Column) -> Stat | None:
        """None where no row has the figure."""
        values = [value for row in self.rows if (value := column.value(row)) is not None]
        if not values:
            return None
        finite = all(map(math.isfinite, values))
        spread = statistics.stdev(values) if len(values) > 1 and finite else None
        interval = column.interval(self.first) if len(values) == 1 else None
        return Stat(statistics.fmean(values), spread, len(values), interval)


@dataclass(frozen=True)
class Block:
    """The lines of one model and one bit setting that were judged on the same images.

    Attributes:
        setting: what tells those images from the images of the model's other blocks, in words; mostly "".
    """

    model: str
    bits: str
    samples: int
    lines: tuple[Line, ...]
    setting: str = ""

    def stats(self, column: Column) -> list[Stat | None]:
        return [line.stat(column) for line in self.lines]

    def best(self, column: Column) -> int | None:
        """Index of the best line, None if the figure has no better or fewer than two lines have it."""
        means = [(stat.mean, index) for index, stat in enumerate(self.stats(column)) if stat is not None]
        if not column.better or len(means) < 2:
            return None
        return (max(means, key=lambda pair: pair[0]) if column.better == "higher" else min(means))[1]

    def standings(self, column: Column) -> list[str]:
        """Of each line: "best", "within" the spread of the best, or ""."""
        best, stats = self.best(column), self.stats(column)
        if best is None:
            return [""] * len(stats)
        top = stats[best]
        return [
            "best" if index == best else "within" if stat and top and within_spread(stat, top) else ""
            for index, stat in enumerate(stats)
        ]


def within_spread(a: Stat, b: Stat) -> bool:
    """Whether two figures are too close to tell apart; see the module's docstring."""
    spreads = [stat.spread for stat in (a, b) if stat.spread is not None]
    if spreads:
        return abs(a.mean - b.mean) <= max(spreads)
    inside = [stat.interval[0] <= other.mean <= stat.interval[1] for stat, other in ((a, b), (b, a)) if stat.interval]
    return any(inside)


def lines_of(rows: Iterable[Row], kinds: Sequence[Kind]) -> list[Line]:
    """The rows of these kinds as lines, in the order of their first rows."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row.kind in kinds:
            options = {name: value for name, value in row.options.items() if name != "seed"}
            key = (row.model, row.weights, row.variant, row.samples, row.shown, row.drawn, str(options))
            groups.setdefault(key, []).append(row)
    return [Line(tuple(sorted(group, key=lambda row: row.seed))) for group in groups.values()]


def recipe_blocks(rows: Sequence[Row]) -> list[Block]:
    """Recipes side by side: a block for every model, bit setting and number of images.

    Who calibrated on the very prompts or classes that are drawn stands apart from who did not (`Row.saw_drawn`).
    """
    lines = lines_of(rows, ("recipe",))
    blocks = []
    for block in _blocks(lines):
        others = [line.first.saw_drawn for line in lines if line.first.model == block.model]
        for saw in sorted(set(others)):
            found = tuple(line for line in block.lines if line.first.saw_drawn == saw)
            words = [block.setting, SAW[saw] if len(set(others)) > 1 else ""]
            if found:
                blocks.append(replace(block, lines=found, setting=", ".join(filter(None, words))))
    return blocks


def effect_blocks(rows: Sequence[Row], kind: Kind) -> list[Block]:
    """The changed recipes of a kind under the whole one, which is the first line; the release ends the differences.

    Only what was computed with as many iterations and samples as the changed lines stands beside them.
    """
    found = []
    for block in _blocks(lines_of(rows, (kind,))):
        first = block.lines[0].first
        whole = [
            line
            for line in lines_of(rows, ("recipe",))
            if _judged_on(line) == _judged_on(block.lines[0])
            and line.first.variant == first.variant.rpartition(", ")[0]
        ]
        iters = max(line.first.iters for line in block.lines)
        ours = [line for line in whole if line.first.recipe == OURS and line.first.iters == iters]
        released = [line for line in whole if line.first.recipe == RELEASED and kind == "difference"]
        if ours:
            nearest = min(ours, key=lambda line: sum(len(differing((line, other))) for other in block.lines))
            found.append(replace(block, lines=(nearest, *block.lines, *released[:1])))
    return found


def differing(lines: Sequence[Line]) -> list[str]:
    """Dotted names of the options in which the lines differ, the seed left out."""
    options = [line.first.options for line in lines]
    names = dict.fromkeys(name for found in options for name in found)
    return [name for name in names if name != "seed" and len({found.get(name) for found in options}) > 1]


def _blocks(lines: Sequence[Line]) -> list[Block]:
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        groups.setdefault(_judged_on(line), []).append(line)
    found = []
    for (model, bits, samples, *_), group in sorted(groups.items(), key=_weight_first):
        ordered = _told_apart(sorted(group, key=_place))
        found.append(Block(model, bits, samples, ordered, _setting(group[0], lines)))
    return found


def _judged_on(line: Line) -> tuple[Any, ...]:
    """Equal for lines that may be compared: model, bits, images; then weights, prompts, sampler, what is computed."""
    row = line.first
    sampler = [(name, value) for name, value in row.options.items() if name.startswith(SAMPLER_PART)]
    return row.model, row.bits, row.samples, row.weights, row.shown, str(sampler), row.computes


def _place(line: Line) -> tuple[int, bool]:
    """Recipes as the registry has them, ours last; plain ones before variants. Changes keep the order they ran in."""
    row, known = line.first, [name for name in RECIPES if name != OURS]
    return known.index(row.recipe) if row.recipe in known else len(known), bool(row.variant)


def _setting(line: Line, lines: Sequence[Line]) -> str:
    """What of sampler, prompts, weights, images and arithmetic differs among `lines` of the model, as `line` has it."""
    row, others = line.first, [other for other in lines if other.first.model == line.first.model]
    words = option_words(line, [name for name in differing(others) if name.startswith(SAMPLER_PART)])
    if len({other.first.shown for other in others}) > 1:
        words.append(row.told.source if row.told else USUAL_SOURCE)
    if len({other.first.weights for other in others}) > 1:
        words.append(f"weights {row.weights[:8] or 'not recorded'}")
    if len({other.first.samples for other in others}) > 1:
        words.append(f"{row.samples:,} images")
    if len(computing := {other.first.computes for other in others}) > 1:
        alike = [computes for computes in computing if computes != DEFINED]
        attention = f", {row.attention} attention" if len(alike) > 1 else ""
        words.append(DEFINED if row.computes == DEFINED else f"{row.arithmetic}{attention}")
    return ", ".join(words)


def _told_apart(lines: Sequence[Line]) -> tuple[Line, ...]:
    """The lines, those of one name with the options in which they differ; iterations have a column of their own."""
    found = []
    for line in lines:
        same = [other for other in lines if other.name == line.name]
        names = [name for name in differing(same) if name != "reconstruction.iters"]
        words = option_words(line, names)
        if len({other.first.drawn for other in same}) > 1:
            words.append(line.first.arithmetic)
        found.append(replace(line, apart=", ".join(words)))
    return tuple(found)


def option_words(line: Line, names: Sequence[str]) -> list[str]:
    """Options of a line in words, the first of many."""
    words = [f"{name.rpartition('.')[2]} {line.first.options.get(name, 'unknown')}" for name in names[:MOST_OPTIONS]]
    return words + (["..."] if len(names) > MOST_OPTIONS else [])


def _weight_first(item: tuple[tuple[Any, ...], Any]) -> tuple[Any, ...]:
    """Models by name, then most bits first."""
    model, bits, *others = item[0]
    digits = [int(part) for part in bits.removeprefix("w").split("a")]
    return model, [-digit for digit in digits], *others
