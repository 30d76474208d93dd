"""Distances between images made from the same start noise by the float model (a) and by the quantized model (b).

    MSE_n  = mean over c, h, w of (a_n - b_n)^2                                                    (1)
    PSNR   = 10 log10( PEAK^2 / MSE ),  PEAK = 2 because images live in [-1, 1]                    (2)
    SSIM   = Wang et al. 2004, "Image quality assessment", equation 13: Gaussian window of 11 pixels with sigma 1.5,
             K1 = 0.01, K2 = 0.03, data range 2, mean over channels and window positions inside the image
    SQNR   = 10 log10( sum signal^2 / sum (signal - noisy)^2 )                                     (3)

There are two PSNRs of a set and they differ by several dB: of the *pooled* error (one MSE over all images, ruled by
the worst ones) and the *mean* of the PSNRs of single images. Each has its own function here and its own name in every
result. All values are float64; an error of exactly zero gives infinity.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d

PEAK = 2.0
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03


def mse_per_image(a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Equation (1)."""
    return (a.double() - b.double()).square().flatten(1).mean(dim=1)


def psnr_of_mse(mse: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Equation (2) in dB, element by element."""
    return 10 * torch.log10(PEAK**2 / mse.double())


def psnr_pooled(mse: Float[Tensor, " n"]) -> float:
    """PSNR of the error pooled over all images, from the MSE of each (all images have the same size)."""
    return float(psnr_of_mse(mse.mean()))


def psnr_mean(mse: Float[Tensor, " n"]) -> float:
    """Mean of the PSNRs of single images, from the MSE of each."""
    return float(psnr_of_mse(mse).mean())


def ssim_fits(height: int, width: int) -> bool:
    """Whether the window of SSIM fits in images of this size."""
    return min(height, width) >= SSIM_WINDOW


def ssim_per_image(a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Structural similarity of each pair in [-1, 1]; 1 for equal images. Images must be at least 11 x 11."""
    if not ssim_fits(*a.shape[-2:]):
        raise ValueError(f"SSIM needs images of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, got {list(a.shape[-2:])}")
    images, channels = a.shape[:2]
    a, b = a.double().flatten(0, 1)[:, None], b.double().flatten(0, 1)[:, None]  # [n*c, 1, h, w]
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = _blur(a * a) - mean_a.square()
    var_b = _blur(b * b) - mean_b.square()
    cov = _blur(a * b) - mean_a * mean_b
    c1, c2 = (SSIM_K1 * PEAK) ** 2, (SSIM_K2 * PEAK) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return (luminance * structure).reshape(images, channels, -1).mean(dim=(1, 2))


def sqnr_db(signal: float, noise: float) -> float:
    """Equation (3) from the two sums of squares; infinity if there is no noise."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _blur(x: Float[Tensor, "m 1 h w"]) -> Float[Tensor, "m 1 h2 w2"]:
    """Gaussian window mean at every place where the window lies inside the image."""
    offset = torch.arange(SSIM_WINDOW, dtype=x.dtype, device=x.device) - SSIM_WINDOW // 2
    window = torch.exp(-offset.square() / (2 * SSIM_SIGMA**2))
    window = window / window.sum()
    return conv2d(conv2d(x, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))
