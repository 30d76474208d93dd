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
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.grid.affine import expand
from mezzotint.layers.activation import ActivationQuantizer


def random_mask(like: Tensor, probability: float, generator: torch.Generator) -> Float[Tensor, "..."]:
    """1.0 with `probability`, else 0.0, float32 in the shape of `like`.

    Masks are floats here, and choices between two tensors arithmetic with them: on a CPU `torch.where` follows a branch
    for every element, which takes thirty times as long where the mask is random. The values are the same.
    """
    return torch.rand(like.shape, generator=generator, device=like.device).lt_(probability)


def mixed(x: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """`x` where the mask is 0, `other` where it is 1; both finite."""
    return torch.lerp(x, other, mask)


class _StraightThrough(torch.autograd.Function):
    """x_hat with the gradients of (1), or x itself where `kept` is 1; `step` and `zero` broadcast against x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, zero: Tensor, low: int, high: int, kept: Tensor | None) -> Tensor:
        scaled = x / step
        codes = torch.round(scaled).add_(zero)
        steps = codes.clamp(low, high)
        inside = codes.eq_(steps)  # 1.0 or 0.0
        steps.sub_(zero)
        slope = torch.addcmul(steps, inside, scaled, value=-1)
        rounded = steps.mul_(step)
        ctx.broadcast = step.shape
        if kept is None:
            ctx.save_for_backward(inside, slope)
            return rounded
        ctx.save_for_backward(torch.maximum(inside, kept), slope.mul_(1 - kept))
        return mixed(rounded, x, kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor, None, None, None, None]:
        (gradient,) = gradients
        passes, slope = ctx.saved_tensors
        step_gradient = (gradient * slope).sum_to_size(ctx.broadcast)
        return gradient * passes if ctx.needs_input_grad[0] else None, step_gradient, None, None, None, None


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
        kept = random_mask(x, self.drop, self._generator) if self.drop > 0 else None
        return _StraightThrough.apply(x, step, zero, self.spec.quant_min, self.spec.quant_max, kept)
