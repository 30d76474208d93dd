from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from mezzotint.evaluation import paired


def pair(seed: int, noise: float, shape: tuple[int, ...] = (4, 3, 24, 20)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(shape, generator=generator) * 2 - 1
    return a, (a + noise * torch.randn(shape, generator=generator)).clamp(-1, 1)


def test_psnr_is_skimages_on_a_peak_of_two() -> None:
    a, b = pair(0, 0.2)
    ours = paired.psnr_of_mse(paired.mse_per_image(a, b))
    theirs = [
        peak_signal_noise_ratio(x.double().numpy(), y.double().numpy(), data_range=2) for x, y in zip(a, b, strict=True)
    ]
    torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64), rtol=1e-10, atol=0)


def test_black_against_white_is_zero_decibel() -> None:
    white = torch.ones(2, 3, 4, 4)
    assert paired.psnr_pooled(paired.mse_per_image(white, -white)) == pytest.approx(0.0, abs=1e-12)


def test_pooled_and_mean_psnr_differ_as_defined() -> None:
    mse = torch.tensor([0.4, 0.004], dtype=torch.float64)  # 10 dB and 30 dB
    assert paired.psnr_mean(mse) == pytest.approx(20.0)
    assert paired.psnr_pooled(mse) == pytest.approx(10 * math.log10(4 / 0.202))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(1e-6, 4.0), min_size=1, max_size=20))
def test_mean_psnr_is_never_below_the_pooled_one(errors: list[float]) -> None:
    mse = torch.tensor(errors, dtype=torch.float64)
    assert paired.psnr_mean(mse) >= paired.psnr_pooled(mse) - 1e-9


def test_equal_images_are_infinitely_close() -> None:
    a, _ = pair(1, 0.0)
    assert math.isinf(paired.psnr_pooled(paired.mse_per_image(a, a)))
    torch.testing.assert_close(paired.ssim_per_image(a, a), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("noise", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("shape", [(4, 3, 24, 20), (2, 1, 11, 11)])
def test_ssim_is_skimages(noise: float, shape: tuple[int, ...]) -> None:
    a, b = pair(2, noise, shape)
    theirs = [
        structural_similarity(
            x.double().numpy(),
            y.double().numpy(),
            data_range=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=0,
        )
        for x, y in zip(a, b, strict=True)
    ]
    expected = torch.tensor([float(value) for value in theirs], dtype=torch.float64)
    torch.testing.assert_close(paired.ssim_per_image(a, b), expected, rtol=0, atol=1e-6)


def test_ssim_needs_room_for_its_window() -> None:
    assert paired.ssim_fits(11, 11)
    assert not paired.ssim_fits(32, 10)
    with pytest.raises(ValueError, match="at least 11x11 pixels"):
        paired.ssim_per_image(*pair(0, 0.1, (1, 3, 32, 10)))


def test_sqnr_of_known_sums() -> None:
    assert paired.sqnr_db(100.0, 1.0) == pytest.approx(20.0)
    assert paired.sqnr_db(1.0, 0.0) == math.inf
    assert paired.sqnr_db(0.0, 1.0) == -math.inf
