"""The figures of a table: paired measures, distribution scores, time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mezzotint.benchmark.row import Row
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


def _interval(name: str) -> Callable[[Row], Interval | None]:
    return lambda row: row.intervals.get(name)


SQNR = Column("sqnr_db", "SQNR of eps", "dB", 2, "higher", lambda row: row.sqnr_db)
SAMPLER = Column("sampler_sqnr_db", "SQNR in the sampler", "dB", 2, "higher", lambda row: row.sampler_sqnr_db)
PSNR = Column(
    "psnr_mean_db", "PSNR, mean", "dB", 2, "higher", lambda row: row.psnr_mean_db, lambda row: row.psnr_interval_db
)
POOLED = Column(
    "psnr_pooled_db", "PSNR, pooled", "dB", 2, "higher", lambda row: row.psnr_pooled_db, _interval("psnr_pooled_db")
)
SSIM = Column("ssim", "SSIM", "", 3, "higher", lambda row: row.ssim, _interval("ssim"))
LPIPS = Column("lpips", "LPIPS", "", 3, "lower", lambda row: row.lpips, _interval("lpips"))
FD = Column("fd", "FD to the float model", "", 2, "lower", lambda row: row.fd, lambda row: row.fd_interval)
TRAINED = Column(
    "fd_train",
    "FD to the training images",
    "",
    2,
    "lower",
    lambda row: row.fd_train,
    _interval("fd_train"),
    floating=lambda row: row.fd_train_float,
)
SECONDS = Column("seconds", "calibration", "s", 0, "", lambda row: row.seconds.get("calibrate"))
PAIRED = (SQNR, SAMPLER, PSNR, POOLED, SSIM, LPIPS, FD, TRAINED)
HIGHER_IS_BETTER = {name for metric in METRICS.values() if metric.higher_is_better for name in metric.names}


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """The columns for which some row has a figure: paired measures, scores in the order of their first row, time.

    What the sampler sees is one where it is not what the network says: under guidance, and with a correction.
    """
    names = list(dict.fromkeys(score["name"] for row in rows for score in row.scores))
    every = [*PAIRED, *map(score_column, names), SECONDS]
    if all(row.sampler_sqnr_db is None or math.isclose(row.sampler_sqnr_db, row.sqnr_db) for row in rows):
        every.remove(SAMPLER)
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
