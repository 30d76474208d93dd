"""What becomes of a figure when one part of a recipe is changed, and how sure that is.

A *change* is the difference of a figure between a changed line and the whole one, seed by seed where both have the
seeds. Its spread is the standard deviation of these differences. How far luck alone would move it, the *margin*, is
half of a 95 % confidence interval: Student's t times the standard error, with the deviation pooled over all lines of
the block, since two or three seeds of one line hardly tell theirs, and all lines have the same luck (the seed draws the
calibration set and the batches). Of twenty changes that do nothing one is beyond it all the same.

Of one seed nothing of this is known. Then spread and margin are the root of the sum of squares of the half intervals
that both figures have from resampling their images, as if these had nothing to do with each other; they come from the
same seeds, so it is rather too wide for the images, but it knows nothing of the luck of the calibration.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from mezzotint.benchmark.columns import Column
from mezzotint.benchmark.table import Block, Line

# Student's t at 97.5 % for 1 to 30 degrees of freedom.
_STUDENT = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228]
_STUDENT += [2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086]
_STUDENT += [2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042]


@dataclass(frozen=True)
class Change:
    """What becomes of a figure, the deviation of that over the seeds, and its margin; None where nothing is known."""

    mean: float
    spread: float | None
    margin: float | None

    @property
    def clear(self) -> bool:
        """Whether it is beyond its margin."""
        return self.margin is not None and abs(self.mean) > self.margin


def change(block: Block, line: Line, column: Column) -> Change | None:
    """From the first line of `block` to another of it, in the unit of `column`; None where one lacks the figure."""
    whole = block.lines[0]
    moves = _moves(whole, line, column)
    if len(moves) > 1:
        groups = [found for other in block.lines[1:] if len(found := _moves(whole, other, column)) > 1]
        margin = student(_freedom(groups)) * _pooled(groups) / math.sqrt(len(moves))
        return Change(statistics.fmean(moves), statistics.stdev(moves), margin)
    seeds = _values(whole, column).keys() & _values(line, column).keys()
    before, after = (Line(tuple(r for r in x.rows if r.seed in seeds) or x.rows).stat(column) for x in (whole, line))
    if before is None or after is None or not (math.isfinite(before.mean) and math.isfinite(after.mean)):
        return None
    halves = [stat.spread if stat.half is None else stat.half for stat in (before, after)]
    known = [half for half in halves if half is not None]
    unsure = math.hypot(*known) if len(known) == 2 else None
    return Change(after.mean - before.mean, unsure, unsure)


def student(freedom: int) -> float:
    """Student's t at 97.5 %, beyond 30 degrees of freedom to 0.1 %."""
    return _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else 1.96 + 2.5 / freedom


def _values(line: Line, column: Column) -> dict[int, float]:
    """By seed."""
    return {row.seed: value for row in line.rows if (value := column.value(row)) is not None}


def _moves(whole: Line, line: Line, column: Column) -> list[float]:
    """The differences, seed by seed."""
    before, after = _values(whole, column), _values(line, column)
    moves = [after[seed] - before[seed] for seed in after if seed in before]
    return moves if all(map(math.isfinite, moves)) else []


def _freedom(groups: list[list[float]]) -> int:
    return sum(len(group) - 1 for group in groups)


def _pooled(groups: list[list[float]]) -> float:
    """The standard deviation that groups of different means have in common."""
    return math.sqrt(sum((len(group) - 1) * statistics.variance(group) for group in groups) / _freedom(groups))
