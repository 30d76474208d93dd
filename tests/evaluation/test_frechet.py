from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import linalg

from mezzotint.evaluation.frechet import (
    THREADED_FROM,
    Statistics,
    first_features,
    frechet_distance,
    frechet_estimate,
    one_thread,
    psd_root,
    statistics,
)


def gaussian(features: int, seed: int) -> Statistics:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn((features, features), generator=generator, dtype=torch.float64)
    mean = torch.randn(features, generator=generator, dtype=torch.float64)
    return Statistics(mean, factor @ factor.T / features, 1000)


def samples(count: int, features: int, seed: int) -> torch.Tensor:
    return torch.randn((count, features), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [5, 40, 200])
def test_distance_to_itself_is_zero_even_with_singular_covariances(count: int) -> None:
    stats = statistics(samples(count, 64, seed=0))
    assert frechet_distance(stats, stats) < 1e-5


def test_shifted_copies_are_the_squared_shift_apart() -> None:
    x = samples(100, 8, seed=1)
    shift = torch.tensor([3.0, 4.0, 0, 0, 0, 0, 0, 0])
    assert frechet_distance(statistics(x), statistics(x + shift)) == pytest.approx(25.0, rel=1e-5)


def test_diagonal_gaussians_have_the_closed_form() -> None:
    """d^2 = |m_a - m_b|^2 + sum (sigma_a - sigma_b)^2."""
    sigma_a, sigma_b = torch.tensor([1.0, 2.0, 5.0]).double(), torch.tensor([3.0, 2.0, 0.0]).double()
    a = Statistics(torch.zeros(3).double(), torch.diag(sigma_a**2), 10)
    b = Statistics(torch.tensor([1.0, 0.0, 2.0]).double(), torch.diag(sigma_b**2), 10)
    assert frechet_distance(a, b) == pytest.approx(5.0 + 4.0 + 0.0 + 25.0, rel=1e-12)


def test_full_gaussians_agree_with_the_usual_matrix_square_root() -> None:
    a, b = gaussian(12, seed=2), gaussian(12, seed=3)
    root = torch.from_numpy(linalg.sqrtm((a.cov @ b.cov).numpy())).real
    expected = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * root.trace()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(float(expected), rel=1e-9)


def test_statistics_are_numpys() -> None:
    import numpy as np

    x = samples(30, 5, seed=4)
    stats = statistics(x)
    torch.testing.assert_close(stats.mean, torch.from_numpy(x.double().numpy().mean(axis=0)))
    torch.testing.assert_close(stats.cov, torch.from_numpy(np.cov(x.double().numpy(), rowvar=False)))
    assert stats.cov.dtype == torch.float64


def test_enough_samples_is_two_a_feature() -> None:
    assert statistics(samples(16, 8, seed=5)).enough_samples
    assert not statistics(samples(15, 8, seed=5)).enough_samples


def test_first_features_are_the_statistics_of_fewer_columns() -> None:
    x = samples(50, 9, seed=6)
    part, whole = statistics(x[:, :4]), first_features(statistics(x), 4)
    torch.testing.assert_close(part.cov, whole.cov)
    torch.testing.assert_close(part.mean, whole.mean)


def test_root_of_a_matrix_with_a_negative_eigenvalue_from_rounding() -> None:
    root = psd_root(torch.diag(torch.tensor([4.0, 0.0, -1e-14]).double()))
    torch.testing.assert_close(root, torch.diag(torch.tensor([2.0, 0.0, 0.0]).double()))


def test_different_numbers_of_features_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 and of 4 features"):
        frechet_distance(gaussian(3, seed=0), gaussian(4, seed=0))


def test_small_problems_run_on_one_thread_and_leave_the_threads_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads wait for each other after every step of an eigenproblem: seconds, where other work runs beside it."""
    seen: list[tuple[int, int]] = []
    for name in ("eigh", "eigvalsh", "svdvals"):
        solve = getattr(torch.linalg, name)

        def watched(matrix: torch.Tensor, solve: Callable[..., Any] = solve) -> Any:
            seen.append((len(matrix), torch.get_num_threads()))
            return solve(matrix)

        monkeypatch.setattr(torch.linalg, name, watched)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        stats = statistics(samples(40, 8, seed=4))
        frechet_distance(stats, stats)
        frechet_estimate(samples(40, 8, seed=5), stats, resamples=3, seed=0)
        with pytest.raises(ValueError, match="boom"), one_thread(8):
            raise ValueError("boom")
        assert torch.get_num_threads() == 2
        with one_thread(THREADED_FROM):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert len(seen) == 3 + 3 + 1 + 4  # two distances, the root of the reference, all samples and three resamples
    assert set(seen) == {(8, 1)}
