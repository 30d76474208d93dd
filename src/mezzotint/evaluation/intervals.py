"""How sure a number measured on a few hundred images is.

An interval here is value +- 2 standard deviations of the statistic over resamples: the images (pairs, for a paired
measure) are drawn again with replacement, the same number of them (Efron 1979). It answers one question: how much
would the number move had other seeds been drawn? It does not remove a bias of the statistic. A Frechet distance in
particular is biased upward in small samples, and resampling, which repeats images, adds bias of its own; that is why
the interval is centred on the value measured and takes only the *spread* from the resamples, not their mean or
quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict
from torch import Tensor

DEVIATIONS = 2.0


class Estimate(BaseModel):
    """A measured value and value +- 2 bootstrap standard deviations; low = high = value if nothing varies."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Callable[[Int[Tensor, " n"]], float],
    count: int,
    *,
    resamples: int,
    seed: int,
    lower_bound: float = -math.inf,
    upper_bound: float = math.inf,
) -> Estimate:
    """The statistic of all `count` images and its interval.

    Args:
        statistic: maps indices of images, possibly repeated, to the number.
        resamples: how many sets of indices to draw; fewer than 2 give an interval without width.
        seed: of the generator that draws the indices.
        lower_bound: the statistic is never below it, so the interval stops there; likewise `upper_bound`.
    """
    value = statistic(torch.arange(count))
    drawn = [statistic(rows) for rows in resample_rows(count, resamples, seed)]
    return interval(value, drawn, lower_bound=lower_bound, upper_bound=upper_bound)


def interval(
    value: float, drawn: Iterable[float], *, lower_bound: float = -math.inf, upper_bound: float = math.inf
) -> Estimate:
    """`value` +- 2 standard deviations of `drawn`, what the statistic was in the resamples."""
    finite = torch.tensor([x for x in drawn if math.isfinite(x)], dtype=torch.float64)
    if not math.isfinite(value) or len(finite) < 2:
        return Estimate(value=value, low=value, high=value)
    half = DEVIATIONS * float(finite.std())
    return Estimate(value=value, low=max(lower_bound, value - half), high=min(upper_bound, value + half))


def resample_rows(count: int, resamples: int, seed: int) -> list[Int[Tensor, " n"]]:
    """The indices of each resample: `count` of `count`, with replacement."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(count, (count,), generator=generator) for _ in range(resamples)]


def resample_counts(count: int, resamples: int, seed: int) -> Float[Tensor, "r n"]:
    """How often each image is in each resample: the same ones as `resample_rows`, for statistics of weighted sums."""
    rows = resample_rows(count, resamples, seed)
    counts = [torch.bincount(row, minlength=count).double() for row in rows]
    return torch.stack(counts) if counts else torch.zeros((0, count), dtype=torch.float64)
