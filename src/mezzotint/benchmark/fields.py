"""What a table is made of: fields of text, and figures as text.

figure, several seeds    1.28 ± 0.05            mean and standard deviation
figure, one seed         1.28 [1.15, 1.41]      with its interval where it has one
best of its bits         "best"; what lies within the spread of the best is "within"
effect of a change       2.61 (+1.33 ± 0.21)    with what it does to the whole recipe; "clear" beyond its spread
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mezzotint.benchmark.changes import Change
from mezzotint.benchmark.columns import Column
from mezzotint.benchmark.table import Stat

MINUS = "\u2212"
MISSING = "–"


@dataclass(frozen=True)
class Field:
    """One field of a table.

    Attributes:
        standing: "best", "within" (the spread of the best), "clear" (a change) or "".
        under: what stands behind the figure, or below it where room is short: its interval, or the change.
    """

    text: str
    standing: str = ""
    under: str = ""

    @property
    def whole(self) -> str:
        return f"{self.text} {self.under}".rstrip()


@dataclass(frozen=True)
class TextTable:
    """A table ready to be set.

    Attributes:
        words: how many columns at the left are words, the second of them a name; the rest are numbers.
        sections: rows in groups that a rule divides, one a bit setting.
        rank: columns by weight, those that a narrow place leaves out last first; words stay, but for sentences.
        sentences: the column of words that holds sentences, None if there is none.
    """

    title: str
    caption: str
    header: list[str]
    words: int
    sections: list[list[list[Field]]]
    notes: list[str] = field(default_factory=list)
    rank: list[int] = field(default_factory=list)
    sentences: int | None = None


def heading(column: Column) -> str:
    """Title of a column with its unit and the direction that is better."""
    arrow = {"higher": " ↑", "lower": " ↓", "": ""}[column.better]
    return f"{column.title}{f', {column.unit}' if column.unit else ''}{arrow}"


def stat_text(stat: Stat | None, digits: int) -> str:
    """A figure with its spread over the seeds."""
    if stat is None:
        return MISSING
    mean = number_text(stat.mean, digits)
    if stat.spread is None or not digits:  # whole numbers are seconds, whose spread says nothing of a recipe
        return mean
    return f"{mean} ± {number_text(stat.spread, digits)}"


def stat_field(stat: Stat | None, digits: int, standing: str = "") -> Field:
    """A figure with its spread, or else with its interval."""
    known = stat is not None and stat.interval is not None and all(map(math.isfinite, stat.interval))
    low, high = stat.interval if stat is not None and stat.interval is not None and known else (0.0, 0.0)
    interval = f"[{number_text(low, digits)}, {number_text(high, digits)}]" if known else ""
    return Field(stat_text(stat, digits), standing, interval)


def effect_field(stat: Stat, change: Change, digits: int) -> Field:
    """A figure, and what a change does to it."""
    moved = "" if change.spread is None else f" ± {number_text(change.spread, digits)}"
    sign = "+" if change.mean >= 0 else MINUS
    effect = f"({sign}{number_text(abs(change.mean), digits)}{moved})"
    return Field(stat_text(stat, digits), "clear" if change.clear else "", effect)


def number_text(value: float, digits: int) -> str:
    """A number with a true minus and commas between thousands."""
    if not math.isfinite(value):
        return "∞" if value > 0 else f"{MINUS}∞" if value < 0 else MISSING
    return f"{value:,.{digits}f}".replace("-", MINUS)
