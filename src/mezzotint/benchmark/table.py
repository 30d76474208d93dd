"""Rows that differ in the seed alone become one line: mean and spread of each figure, and who is best.

*Spread* is the standard deviation (n - 1) over seeds; one seed has none. A figure is best if it is the best mean among
the recipes of one bit setting. Another is *within the spread* of the best if they differ by no more than the larger of
their two standard deviations, or, with one seed each, if the best mean lies in the interval of the other figure or the
other way round. Without seeds and intervals nothing is known about spread, and nothing is within it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mezzotint.benchmark.plan import OURS, RELEASED, Kind
from mezzotint.benchmark.rows import Row
from mezzotint.benchmark.scoring import TO_FLOAT
from mezzotint.evaluation.metrics import METRICS

Interval = tuple[float, float]


@dataclass(frozen=True)
class Column:
    """One figure of a table.

    Attributes:
        better: "higher", "lower", or "" where neither is (seconds).
        value: the figure of a row, None where the row has none.
        interval: of that figure within one row, where one was measured.
        floating: the float model's own figure, for columns that compare with something else than the float model.
    """

    key: str
    title: str
    unit: str
    digits: int
    better: str
    value: Callable[[Row], float | None]
    interval: Callable[[Row], Interval | None] = lambda _: None
    floating: Callable[[Row], float | None] = lambda _: None


SQNR = Column("sqnr_db", "SQNR of eps", "dB", 2, "higher", lambda row: row.sqnr_db)
PSNR = Column(
    "psnr_mean_db", "PSNR, mean", "dB", 2, "higher", lambda row: row.psnr_mean_db, lambda row: row.psnr_interval_db
)
POOLED = Column("psnr_pooled_db", "PSNR, pooled", "dB", 2, "higher", lambda row: row.psnr_pooled_db)
SSIM = Column("ssim", "SSIM", "", 3, "higher", lambda row: row.ssim)
FD = Column("fd", "FD to the float model", "", 2, "lower", lambda row: row.fd, lambda row: row.fd_interval)
TRAINED = Column(
    "fd_train",
    "FD to the training images",
    "",
    2,
    "lower",
    lambda row: row.fd_train,
    floating=lambda row: row.fd_train_float,
)
SECONDS = Column("seconds", "calibration", "s", 0, "", lambda row: row.seconds.get("calibrate"))
PAIRED = (SQNR, PSNR, POOLED, SSIM, FD, TRAINED)
HIGHER_IS_BETTER = {name for metric in METRICS.values() if metric.higher_is_better for name in metric.names}


@dataclass(frozen=True)
class Stat:
    """Mean of a figure over the seeds, with its spread (None for one seed) and, for one seed, its interval."""

    mean: float
    spread: float | None
    count: int
    interval: Interval | None


@dataclass(frozen=True)
class Line:
    """Rows that differ in the seed alone."""

    rows: tuple[Row, ...]

    @property
    def first(self) -> Row:
        return self.rows[0]

    @property
    def name(self) -> str:
        """Of the recipe, with the variant where there is one."""
        return f"{self.first.recipe} ({self.first.variant})" if self.first.variant else self.first.recipe

    def stat(self, column: Column) -> Stat | None:
        """None where no row has the figure."""
        values = [value for row in self.rows if (value := column.value(row)) is not None]
        if not values:
            return None
        finite = all(map(math.isfinite, values))
        spread = statistics.stdev(values) if len(values) > 1 and finite else None
        interval = column.interval(self.first) if len(values) == 1 else None
        return Stat(statistics.fmean(values), spread, len(values), interval)

    def change_from(self, other: Line, column: Column) -> float | None:
        """Mean difference of a figure over the seeds that both lines have, of their means where they share none."""
        mine, theirs = ({row.seed: column.value(row) for row in line.rows} for line in (self, other))
        pairs = [(a, b) for seed, a in mine.items() if a is not None and (b := theirs.get(seed)) is not None]
        if pairs:
            return statistics.fmean(a - b for a, b in pairs)
        one, two = self.stat(column), other.stat(column)
        return None if one is None or two is None else one.mean - two.mean


@dataclass(frozen=True)
class Block:
    """The lines of one model, one bit setting and one effort, which may be compared with each other."""

    model: str
    bits: str
    samples: int
    lines: tuple[Line, ...]

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


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """The columns for which some row has a figure: paired measures, scores in the order of their first row, time."""
    names = list(dict.fromkeys(score["name"] for row in rows for score in row.scores))
    every = [*PAIRED, *map(score_column, names), SECONDS]
    return [column for column in every if any(column.value(row) is not None for row in rows)]


def score_column(name: str) -> Column:
    """The column of a distribution score."""

    def found(scores: list[dict[str, Any]]) -> dict[str, Any]:
        return next((score for score in scores if score["name"] == name), {})

    def interval(row: Row) -> Interval | None:
        score = found(row.scores)
        return None if score.get("low") is None else (score["low"], score["high"])

    better = "higher" if name.removesuffix(TO_FLOAT) in HIGHER_IS_BETTER else "lower"
    return Column(
        f"score-{name}",
        name,
        "",
        3,
        better,
        lambda row: found(row.scores).get("value"),
        interval,
        lambda row: found(row.float_scores).get("value"),
    )


def lines_of(rows: Iterable[Row], kinds: Sequence[Kind]) -> list[Line]:
    """The rows of these kinds as lines, in the order of their first rows."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row.kind in kinds:
            key = tuple(value for name, value in row.key.items() if name != "seed")
            groups.setdefault(key, []).append(row)
    return [Line(tuple(sorted(group, key=lambda row: row.seed))) for group in groups.values()]


def recipe_blocks(rows: Sequence[Row]) -> list[Block]:
    """Recipes side by side: a block for every model, bit setting and number of images."""
    return _blocks(lines_of(rows, ("recipe",)))


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
            if (line.first.model, line.first.bits, line.first.samples) == (block.model, block.bits, block.samples)
            and line.first.variant == first.variant.rpartition(", ")[0]
        ]
        iters = max(line.first.iters for line in block.lines)
        ours = [line for line in whole if line.first.recipe == OURS and line.first.iters == iters]
        released = [line for line in whole if line.first.recipe == RELEASED and kind == "difference"]
        if ours:
            found.append(Block(block.model, block.bits, block.samples, (ours[0], *block.lines, *released[:1])))
    return found


def _blocks(lines: Sequence[Line]) -> list[Block]:
    groups: dict[tuple[str, str, int], list[Line]] = {}
    for line in lines:
        groups.setdefault((line.first.model, line.first.bits, line.first.samples), []).append(line)
    return [Block(*key, tuple(group)) for key, group in sorted(groups.items(), key=_weight_first)]


def _weight_first(item: tuple[tuple[str, str, int], Any]) -> tuple[str, list[int], int]:
    """Models by name, then most bits first."""
    model, bits, samples = item[0]
    digits = [int(part) for part in bits.removeprefix("w").split("a")]
    return model, [-digit for digit in digits], samples
