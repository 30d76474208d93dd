"""The range search finds what a loop over every threshold finds, and what theory says."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mezzotint.grid import search
from mezzotint.grid.affine import fake_quantize
from mezzotint.grid.search import affine_from_range, errors_of_trials, rounding_error, search_affine, search_symmetric
from mezzotint.grid.spec import activation_spec, weight_spec


def error(x: torch.Tensor, scale: float, zero_point: int, spec, norm: float = 2.4) -> float:
    grid = torch.tensor([scale]), torch.tensor([zero_point], dtype=torch.int32)
    flat = spec.model_copy(update={"axis": None})
    return float((fake_quantize(x, *grid, flat) - x).abs().pow(norm).mean())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_symmetric_search_is_the_best_of_the_hundred_thresholds(bits: int) -> None:
    x = torch.randn(3, 400, generator=torch.Generator().manual_seed(bits))
    spec = weight_spec(bits)
    scales = search_symmetric(x, spec)
    for row, scale in zip(x, scales.tolist(), strict=True):
        full = float(row.abs().max()) * 2 / (2**bits - 1)
        best = min(error(row, full * k / 100, 0, spec) for k in range(1, 101))
        assert error(row, scale, 0, spec) <= best * (1 + 1e-5)


def test_two_bit_gaussian_is_clipped_well_inside_its_maximum() -> None:
    x = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0))
    scale = float(search_symmetric(x, weight_spec(2)))
    assert 0.7 < scale < 1.4  # the optimal step of a 4-level quantizer of a unit Gaussian is near 1.0 (Max 1960)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(7, 50, generator=torch.Generator().manual_seed(1))
    whole, affine = search_symmetric(x, weight_spec(4)), search_affine(x.flatten(), activation_spec(4))
    monkeypatch.setattr(search, "CHUNK_ELEMENTS", 60)
    assert_close(search_symmetric(x, weight_spec(4)), whole, rtol=0, atol=0)
    assert search_affine(x.flatten(), activation_spec(4)) == affine


def test_rows_of_zeros_stay_zero_and_finite() -> None:
    scale = search_symmetric(torch.zeros(2, 5), weight_spec(4))
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()


def test_affine_range_after_silu_is_nearly_a_bit_finer_than_a_symmetric_one() -> None:
    x = torch.nn.functional.silu(torch.randn(50_000, generator=torch.Generator().manual_seed(2)) * 2)
    spec = activation_spec(8)
    scale, zero_point = search_affine(x, spec)
    symmetric = float(search_symmetric(x[None], spec, zero_point=128))
    assert float(scale) < 0.65 * symmetric
    assert error(x, float(scale), int(zero_point), spec) < 0.4 * error(x, symmetric, 128, spec)


def test_affine_grid_always_holds_zero() -> None:
    for low, high in [(1.0, 2.0), (-2.0, -1.0), (-1.0, 3.0), (0.0, 0.0)]:
        scale, zero_point = affine_from_range(low, high, activation_spec(8))
        assert scale > 0
        assert 0 <= zero_point <= 255


def test_softmax_needs_no_zero_point() -> None:
    probabilities = torch.randn(64, 64, generator=torch.Generator().manual_seed(3)).softmax(-1).flatten()
    assert int(search_affine(probabilities, activation_spec(8))[1]) == 0


@pytest.mark.parametrize("together", [3, 100])
def test_trials_side_by_side_have_the_errors_they_have_alone(together: int) -> None:
    x, spec = torch.randn(5, 64), weight_spec(4)
    trials = torch.rand(10, 5) + 0.01
    alone = torch.stack([rounding_error(x, scales, torch.zeros(5), spec, norm=2.4) for scales in trials])
    assert_close(errors_of_trials(x, trials, 0.0, spec, norm=2.4, together=together), alone)
