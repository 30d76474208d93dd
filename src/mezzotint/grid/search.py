"""Which range a grid should cover: clip thresholds searched by the L_p error of rounding.

For thresholds c_k = (k / K) max|x|, k = 1..K, the range that minimises mean |x - x_hat|**p is kept, with p = 2.4 and
K = 100 as in the code of EDA-DM (and of Q-Diffusion before it). A symmetric range [-c, c] has scale 2c / (2**bits -
1).

The tensor is walked in chunks, so memory is that of one chunk whatever the number of candidates.

Differs from the paper's code: its asymmetric search tries every pair (width, zero point), 25,600 full passes at 8
bit, and is therefore never used there. `search_affine` moves one end of the range at a time, 2 K passes a round: what
follows SiLU is bounded below by -0.28 and has a long upper tail, so the ends are nearly independent.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mezzotint.grid.spec import GridSpec

CHUNK_ELEMENTS = 1 << 22
SMALLEST_SCALE = 1e-12

Weights = Float[Tensor, "k"] | None  # of the values of a row; None weighs them alike


def rounding_error(
    x: Float[Tensor, "r k"],
    scale: Float[Tensor, "r"],
    zero_point: Float[Tensor, "r"],
    spec: GridSpec,
    *,
    norm: float,
    weights: Weights = None,
) -> Float[Tensor, "r"]:
    """Mean over k, weighted by `weights`, of |x - x_hat|**norm, for every row with its own scale and zero point."""
    step, zero = scale[:, None], zero_point[:, None]
    codes = torch.round(x / step).add_(zero).clamp_(spec.quant_min, spec.quant_max)
    difference = codes.sub_(zero).mul_(step).sub_(x).abs_()
    errors = difference.pow_(norm)
    return errors.mean(dim=1) if weights is None else errors @ (weights / weights.sum())


def search_symmetric(
    x: Float[Tensor, "r k"],
    spec: GridSpec,
    *,
    zero_point: int = 0,
    norm: float = 2.4,
    candidates: int = 100,
    weights: Weights = None,
) -> Float[Tensor, "r"]:
    """Scale of every row's best range [-c, c], or [0, c] for an unsigned grid with zero point 0.

    A row of zeros gets a positive scale of at most `SMALLEST_SCALE`, which keeps zero exact and every division finite.
    """
    one_sided = not spec.signed and zero_point == 0
    width = 1.0 if one_sided else 2.0
    shares = x.new_tensor([[k / candidates] for k in range(1, candidates + 1)])
    rows_per_chunk = max(1, CHUNK_ELEMENTS // max(1, x.shape[1]))
    scales = []
    for rows in x.split(rows_per_chunk):
        full = (rows.abs().amax(dim=1) * width / (2**spec.bits - 1)).clamp_min(SMALLEST_SCALE)
        trials = full * shares
        together = max(1, CHUNK_ELEMENTS // max(1, rows.numel())) if x.is_cuda else 1  # a launch costs more than a row
        errors = errors_of_trials(rows, trials, float(zero_point), spec, norm=norm, together=together, weights=weights)
        best = errors.argmin(dim=0)
        scales.append(trials.gather(0, best[None])[0])
    return torch.cat(scales)


def errors_of_trials(
    x: Float[Tensor, "r k"],
    trials: Float[Tensor, "t r"],
    zero_point: float,
    spec: GridSpec,
    *,
    norm: float,
    together: int = 1,
    weights: Weights = None,
) -> Float[Tensor, "t r"]:
    """`rounding_error` of every trial, a scale for each row; `together` of them side by side."""
    errors = []
    for scales in trials.split(together):
        repeated = x.expand(len(scales), *x.shape).flatten(0, 1)
        zero = torch.full((repeated.shape[0],), zero_point, dtype=x.dtype, device=x.device)
        found = rounding_error(repeated, scales.flatten(), zero, spec, norm=norm, weights=weights)
        errors.append(found.view_as(scales))
    return torch.cat(errors)


def affine_from_range(low: float, high: float, spec: GridSpec) -> tuple[float, int]:
    """(scale, zero_point) of the unsigned grid over [low, high], widened to hold zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / (2**spec.bits - 1), SMALLEST_SCALE)
    zero_point = min(max(round(-low / scale), spec.quant_min), spec.quant_max)
    return scale, zero_point


def search_affine(
    x: Float[Tensor, "k"],
    spec: GridSpec,
    *,
    norm: float = 2.4,
    candidates: int = 100,
    rounds: int = 2,
    weights: Weights = None,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Scale (float32 []) and zero point (int32 []) of the best range [low, high] for an unsigned grid.

    Each round first moves the upper end over K thresholds with the lower end fixed, then the lower end likewise.
    """
    top, bottom = max(float(x.max()), 0.0), min(float(x.min()), 0.0)
    ends = [top, bottom]
    for _ in range(rounds):
        for moving in (0, 1):
            full = (top, bottom)[moving]
            if full == 0.0:
                continue
            trials = [[*ends] for _ in range(candidates)]
            for k, trial in enumerate(trials, start=1):
                trial[moving] = full * k / candidates
            grids = [affine_from_range(low, high, spec) for high, low in trials]
            ends = trials[_best(x, grids, spec, norm, weights)]
    scale, zero_point = affine_from_range(ends[1], ends[0], spec)
    return (
        torch.tensor(scale, dtype=torch.float32, device=x.device),
        torch.tensor(zero_point, dtype=torch.int32, device=x.device),
    )


def _best(x: Tensor, grids: list[tuple[float, int]], spec: GridSpec, norm: float, weights: Weights) -> int:
    """Index of the grid with the smallest error on `x`; one transfer from the device for all of them."""
    scale = torch.tensor([g[0] for g in grids], dtype=x.dtype, device=x.device)
    zero = torch.tensor([float(g[1]) for g in grids], dtype=x.dtype, device=x.device)
    rows = max(1, CHUNK_ELEMENTS // max(1, x.numel()))
    errors = [
        rounding_error(x.expand(s.shape[0], -1), s, z, spec, norm=norm, weights=weights)
        for s, z in zip(scale.split(rows), zero.split(rows), strict=True)
    ]
    return int(torch.cat(errors).argmin())
