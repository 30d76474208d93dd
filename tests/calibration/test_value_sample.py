"""A weighted sample: small tensors whole, tails and extremes there, and none of them for more than it is."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from mezzotint.calibration.ranges import fit_activation
from mezzotint.calibration.value_sample import ValueSample, Weighted
from mezzotint.config import RangeConfig
from mezzotint.grid.spec import activation_spec

SPEC = activation_spec(8)


def drawn(x: torch.Tensor, per_batch: int) -> Weighted:
    sample = ValueSample(SPEC, per_batch, seed=1)
    sample.add(x)
    return sample.weighted(0)


@given(st.integers(0, 1000), st.integers(2, 6000), st.sampled_from([64, 300, 2048]))
@settings(max_examples=40, deadline=None)
def test_weights_add_up_and_extremes_are_there(seed: int, size: int, per_batch: int) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed)) ** 3
    values, weights = drawn(x, per_batch)
    assert_close(float(weights.sum()), float(size), rtol=1e-4, atol=0)
    assert float(values.max()) == float(x.max())
    assert float(values.min()) == float(x.min())
    assert len(values) <= max(per_batch, 1.3 * per_batch + 4)


def test_a_small_tensor_is_taken_whole() -> None:
    x = torch.arange(60.0)
    values, weights = drawn(x.view(3, 20), 64)
    assert torch.equal(values, x)
    assert torch.equal(weights, torch.ones(60))


def test_means_of_heavy_tails_come_out_right() -> None:
    """Of ten samples together: a hundredth of the values carries the fourth moment, and extremes must not carry it."""
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(3))
    x[::100] *= 30
    sample = ValueSample(SPEC, 2048, seed=1)
    for _ in range(10):
        sample.add(x)
    values, weights = sample.weighted(0)
    assert_close(float((values**4 * weights).sum() / weights.sum()), float((x**4).mean()), rtol=0.15, atol=0)


def test_ties_leave_no_tail_empty_handed() -> None:
    values, weights = drawn(torch.zeros(10_000), 64)
    assert float(weights.sum()) == 10_000
    assert not values.any()


def test_groups_are_sampled_apart() -> None:
    sample = ValueSample(activation_spec(8, (2, 1)), 64, seed=0)
    sample.add(torch.stack([torch.full((2, 5), value) for value in (1.0, 1.0, 7.0)], dim=1))
    assert set(sample.weighted(0).values.tolist()) == {1.0}
    assert set(sample.weighted(1).values.tolist()) == {7.0}


def test_the_grid_is_that_of_the_whole_tensor() -> None:
    """Attention that is uniform but for one peak: if that weighed more than it is, the steps would be too wide."""
    generator = torch.Generator().manual_seed(5)
    p = (torch.randn(2048, 256, generator=generator) * 0.3).softmax(1)
    p[5, 9] = 0.3
    scale, zero_point = fit_activation(drawn(p, 4096), SPEC, RangeConfig())
    whole, _ = fit_activation(Weighted(p.flatten(), torch.ones(p.numel())), SPEC, RangeConfig())
    assert int(zero_point) == 0

    def error(step: torch.Tensor) -> float:
        return float(((p / step).round().clamp(0, 255) * step - p).abs().pow(2.4).mean())

    assert error(scale) <= 1.15 * error(whole)
