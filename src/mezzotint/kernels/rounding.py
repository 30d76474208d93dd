"""Rounding to a grid and back in one kernel on a GPU: what simulated networks do between any two products.

`grid.affine.fake_quantize` is six elementwise operators, each of which reads and writes the whole tensor; here it is
read once and written once. Division is rounded to nearest and nothing is contracted, so every value is the same bit for
bit.

    y = (clamp(rint(x / scale) + zero_point, quant_min, quant_max) - zero_point) * scale                            (1)
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor


def can_round(x: Tensor, scale: Tensor) -> bool:
    """Whether `round_to_grid` takes these: float32 on a GPU without gaps, one scale, no gradient, Triton installed."""
    if x.device.type != "cuda" or x.dtype != torch.float32 or scale.dtype != torch.float32 or scale.numel() != 1:
        return False
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        return False
    return x.numel() < 2**31 and torch.ops.aten.is_non_overlapping_and_dense(x) and _has_triton()


def round_to_grid(
    x: Float[Tensor, "..."], scale: Float[Tensor, "1"], zero_point: Int[Tensor, "1"], quant_min: int, quant_max: int
) -> Float[Tensor, "..."]:
    """Equation (1), in the shape and layout of `x`; only where `can_round` says so."""
    from mezzotint.kernels.triton import rounding

    y = torch.empty_like(x)
    rounding.launch(x, y, scale, zero_point, quant_min, quant_max)
    return y


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
