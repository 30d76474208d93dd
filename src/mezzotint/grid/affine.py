"""How floats land on a grid: equation (1) of `spec`, as pure functions.

Rounding is half to even (torch.round); what lies outside saturates. Inside the grid |x - x_hat| <= scale / 2.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from mezzotint.grid.spec import GridSpec


def expand(parameter: Tensor, x: Tensor, spec: GridSpec) -> Tensor:
    """`parameter` ([G] or [G, O], a scale or zero point of `spec`) in a shape that broadcasts against `x`.

    Args:
        parameter: one value per group, or per group and index of axis 0.
        x: for weights [O, I, ...]; for activations anything without groups, [B, C, ...] with groups.
    """
    if spec.axis is None and not spec.groups:
        return parameter.reshape(())
    trailing = (1,) * (x.dim() - 2)
    if not spec.groups:
        return parameter.reshape(-1, 1, *trailing)
    runs = [row.expand(size, *row.shape[1:]) for row, size in zip(parameter.split(1), spec.groups, strict=True)]
    per_channel = torch.cat(
        runs
    )  # not repeat_interleave: it would copy the counts to the device, which no CUDA graph takes
    if spec.axis is None:
        return per_channel.reshape(1, -1, *trailing)
    return per_channel.t().reshape(parameter.shape[1], -1, *trailing)


def quantize(
    x: Float[Tensor, "..."], scale: Float[Tensor, "..."], zero_point: Integer[Tensor, "..."], spec: GridSpec
) -> Integer[Tensor, "..."]:
    """Codes of `x`: int8 for a signed grid, uint8 for an unsigned one, in the shape of `x`."""
    codes = torch.round(x / expand(scale, x, spec)) + expand(zero_point, x, spec)
    return codes.clamp_(spec.quant_min, spec.quant_max).to(spec.dtype)


def dequantize(
    codes: Integer[Tensor, "..."], scale: Float[Tensor, "..."], zero_point: Integer[Tensor, "..."], spec: GridSpec
) -> Float[Tensor, "..."]:
    """Floats that `codes` stand for: (codes - zero_point) * scale, in the dtype of `scale`."""
    shifted = codes.to(scale.dtype) - expand(zero_point, codes, spec)
    return shifted * expand(scale, codes, spec)


def fake_quantize(
    x: Float[Tensor, "..."], scale: Float[Tensor, "..."], zero_point: Integer[Tensor, "..."], spec: GridSpec
) -> Float[Tensor, "..."]:
    """Nearest point of the grid: dequantize(quantize(x)), without the trip through integers. No gradient flows."""
    step, zero = expand(scale, x, spec), expand(zero_point, x, spec)
    codes = (torch.round(x / step) + zero).clamp_(spec.quant_min, spec.quant_max)
    return codes.sub_(zero).mul_(step)
