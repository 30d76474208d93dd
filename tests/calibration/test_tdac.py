"""TDAC's promises: equal to the loops of the paper, never NaN, never negative, always N samples."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from mezzotint.calibration import tdac


def features(steps: int = 6, seed: int = 0, offset: float = 0.0) -> torch.Tensor:
    return torch.randn(steps, 3, 5, 4, 4, generator=torch.Generator().manual_seed(seed)) + offset


def similarity(f: torch.Tensor) -> tdac.StepSimilarity:
    s = tdac.StepSimilarity()
    s.add(f)
    return s


def test_distance_and_variety_equal_the_double_loops() -> None:
    f = features()
    distance = torch.tensor([[float((a - b).square().mean()) for b in f] for a in f], dtype=torch.float64)
    cosine = torch.nn.CosineSimilarity(dim=1, eps=1e-6)
    variety = [sum(float((1 - cosine(f[i], f[j])).sum()) for j in range(6) if j != i) for i in range(6)]
    s = similarity(f)
    assert_close(s.distance(), distance, rtol=1e-5, atol=1e-7)
    assert_close(s.variety(), torch.tensor(variety, dtype=torch.float64), rtol=1e-5, atol=1e-4)


def test_near_identical_steps_under_a_large_mean_have_no_negative_distance() -> None:
    base = features(1, offset=300.0)
    f = base + 1e-3 * features(6, seed=1)
    distance = similarity(f).distance()
    exact = torch.tensor([[float((a - b).double().square().mean()) for b in f] for a in f], dtype=torch.float64)
    assert (distance >= 0).all()
    assert_close(distance, exact, rtol=5e-2, atol=1e-8)


def test_pilot_batches_add_up() -> None:
    f = features()
    parts = tdac.StepSimilarity()
    parts.add(f[:, :1])
    parts.add(f[:, 1:])
    assert_close(parts.distance(), similarity(f).distance(), rtol=1e-6, atol=1e-8)
    assert_close(parts.variety(), similarity(f).variety(), rtol=1e-6, atol=1e-6)


def test_density_counts_the_other_steps_within_the_radius() -> None:
    positions = torch.tensor([0.0, 1.0, 2.0, 10.0], dtype=torch.float64)
    distance = (positions[:, None] - positions[None, :]).abs()
    assert tdac.density(distance, 1.0).tolist() == [1, 2, 1, 0]


def test_one_step_and_constant_scores_are_finite() -> None:
    single = similarity(features(1))
    assert tdac.choose_radius(single.distance(), 0.5) == 0.0
    score = tdac.step_score(tdac.density(single.distance(), 0.0), single.variety(), 1.2)
    assert tdac.largest_remainder(score, 7).tolist() == [7]
    same = features(1).expand(4, -1, -1, -1, -1)
    constant = tdac.step_score(tdac.density(similarity(same).distance(), 1.0), similarity(same).variety() * 0, 1.2)
    assert tdac.largest_remainder(constant, 6).tolist() == [2, 2, 1, 1]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=60), st.integers(1, 2000))
def test_largest_remainder_sums_to_n_within_one_of_the_share(score: list[float], total: int) -> None:
    s = torch.tensor(score, dtype=torch.float64)
    counts = tdac.largest_remainder(s, total)
    assert int(counts.sum()) == total
    assert (counts >= 0).all()
    share = s / s.sum() * total if s.sum() > 0 else torch.full_like(s, total / len(score))
    assert ((counts - share).abs() < 1 + 1e-6).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.01, 1e3), min_size=1, max_size=60), st.integers(1, 2000))
def test_the_released_rounding_sums_to_n(score: list[float], total: int) -> None:
    counts = tdac.rounded_allocation(torch.tensor(score, dtype=torch.float64), total)
    assert int(counts.sum()) == total
    assert (counts >= 0).all()


def test_few_samples_go_where_the_score_is_not_to_an_arbitrary_run() -> None:
    score = torch.ones(500, dtype=torch.float64)
    score[100:164] = 3.0
    fair, released = tdac.largest_remainder(score, 64), tdac.rounded_allocation(score, 64)
    assert int(fair[100:164].sum()) == 64
    assert fair.max() == 1
    assert int(released.sum()) == 64
