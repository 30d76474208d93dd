"""Learned activation steps (LSQ, Esser et al. 2020) with random dropping of the quantization (QDrop, Wei et al. 2022).

    x_hat = s (clamp(round(x / s) + z) - z)
    d x_hat / d x = 1 inside the grid, 0 outside
    d x_hat / d s = round(x / s) - x / s inside, quant_min - z or quant_max - z outside                        (1)

While learning, each element is left unrounded with probability `drop`. The zero point is fixed.

Differs from the paper's code: s = s_0 exp(theta), so a step is always positive and one learning rate is relative to
every tensor's own scale. `linear=True` learns s itself with an absolute rate, as released (it can turn negative
there).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.grid.affine import expand
from mezzotint.layers.activation import ActivationQuantizer


class _StraightThrough(torch.autograd.Function):
    """x_hat with the gradients of (1); `step` and `zero` broadcast against x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
        scaled = x / step
        codes = torch.round(scaled).add_(zero)
        ctx.save_for_backward(scaled, step, zero)
        ctx.bounds = low, high
        return codes.clamp_(low, high).sub_(zero).mul_(step)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor, None, None, None]:
        (gradient,) = gradients
        scaled, step, zero = ctx.saved_tensors
        low, high = ctx.bounds
        rounded = torch.round(scaled)
        codes = rounded + zero
        clamped = codes.clamp(low, high)
        inside = codes == clamped
        slope = torch.where(inside, rounded - scaled, clamped - zero)
        step_gradient = (gradient * slope).sum_to_size(step.shape)
        return torch.where(inside, gradient, 0) if ctx.needs_input_grad[0] else None, step_gradient, None, None, None


class LearnedStep(nn.Module):
    """Stands in for a quantizer's fixed grid while its step is learned.

    Parameters:
        value: float32 [G], theta (or s itself where `linear`).

    Attributes:
        drop: probability that an element stays unrounded; 0 for evaluation.
    """

    start: Tensor
    zero: Tensor

    def __init__(
        self, quantizer: ActivationQuantizer, *, linear: bool, drop: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.spec = quantizer.spec
        self.linear = linear
        self.drop = drop
        self._generator = generator
        self.register_buffer("start", quantizer.scale.clone())
        self.register_buffer("zero", quantizer.zero_point.to(quantizer.scale.dtype))
        self.value = nn.Parameter(self.start.clone() if linear else torch.zeros_like(self.start))

    def scale(self) -> Tensor:
        """float32 [G], the grid step."""
        return self.value if self.linear else self.start * self.value.exp()

    def forward(self, x: Tensor) -> Tensor:
        step, zero = expand(self.scale(), x, self.spec), expand(self.zero, x, self.spec)
        rounded = _StraightThrough.apply(x, step, zero, self.spec.quant_min, self.spec.quant_max)
        if self.drop == 0:
            return rounded
        keep = torch.rand(x.shape, generator=self._generator, device=x.device) < self.drop
        return torch.where(keep, x, rounded)
