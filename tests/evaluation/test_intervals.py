from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mezzotint.evaluation.intervals import Estimate, bootstrap

VALUES = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def mean(rows: Tensor) -> float:
    return float(VALUES[rows].mean())


def test_interval_of_a_mean_is_two_standard_errors() -> None:
    found = bootstrap(mean, len(VALUES), resamples=400, seed=0)
    assert found.value == pytest.approx(float(VALUES.mean()))
    assert (found.high - found.low) / 4 == pytest.approx(float(VALUES.std()) / math.sqrt(len(VALUES)), rel=0.12)
    assert found.high - found.value == pytest.approx(found.value - found.low)


def test_same_seed_same_interval() -> None:
    first, again, other = (bootstrap(mean, 50, resamples=5, seed=seed) for seed in (3, 3, 4))
    assert first == again != other


def test_interval_stays_inside_the_range_of_the_statistic() -> None:
    found = bootstrap(lambda rows: abs(mean(rows)), 100, resamples=20, seed=0, lower_bound=0.0, upper_bound=0.05)
    assert found.low >= 0.0
    assert found.high <= 0.05


def test_infinite_values_and_single_resamples_have_no_width() -> None:
    assert bootstrap(lambda _: math.inf, 10, resamples=5, seed=0) == Estimate(
        value=math.inf, low=math.inf, high=math.inf
    )
    alone = bootstrap(mean, 10, resamples=1, seed=0)
    assert alone.low == alone.high == alone.value


def test_a_bias_of_resampling_does_not_move_the_interval() -> None:
    """A statistic that grows with repeated rows: all resamples lie above the value, the interval is centred on it."""

    def repeats(rows: Tensor) -> float:
        return float(len(rows) - len(rows.unique()))

    found = bootstrap(repeats, 100, resamples=20, seed=0)
    assert found.value == 0.0
    assert found.low == pytest.approx(-found.high)
