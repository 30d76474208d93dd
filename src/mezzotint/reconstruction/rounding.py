"""Learned rounding of weights (AdaRound, Nagel et al. 2020).

    w_hat = s * clamp(floor(w / s) + h(a), quant_min, quant_max),   h(a) = clamp(1.2 sigmoid(a) - 0.1, 0, 1)    (1)
    R(beta) = sum 1 - |2 h(a) - 1|**beta    (2)

`a` starts where h(a) = frac(w / s), so that w_hat starts at w. (2) pulls every h to 0 or 1 as beta falls from 20 to 2.
EDA-DM's released code leaves (2) out; on a trained model over half of the h are then undecided when they are hardened.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mezzotint.grid.affine import expand
from mezzotint.layers.simulated import SimulatedLayer

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
DECIDED = 0.01  # an h this close to 0 or 1 counts as decided


class LearnedRounding(nn.Module):
    """Soft weight of one layer; call it for (1).

    Parameters:
        alpha: float32, shape of the weight.
    """

    step: Tensor
    floor: Tensor

    def __init__(self, layer: SimulatedLayer) -> None:
        super().__init__()
        self.spec = layer.weight_spec
        self.register_buffer("step", expand(layer.weight_scale, layer.weight, self.spec).clone())
        scaled = layer.weight.detach() / self.step
        self.register_buffer("floor", scaled.floor())
        fraction = (scaled - self.floor - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)
        self.alpha = nn.Parameter(torch.logit(fraction))

    def soft(self) -> Float[Tensor, "..."]:
        """h(a), in [0, 1]."""
        return (torch.sigmoid(self.alpha) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)

    def forward(self) -> Float[Tensor, "..."]:
        return (self.floor + self.soft()).clamp(self.spec.quant_min, self.spec.quant_max) * self.step

    def regulariser(self, beta: float | Tensor) -> Float[Tensor, ""]:
        """Equation (2)."""
        return (1 - (2 * self.soft() - 1).abs().pow(beta)).sum()

    @torch.no_grad()
    def codes(self) -> Int[Tensor, "..."]:
        """int8 codes after hardening: up where h >= 1/2."""
        up = (self.alpha >= 0).to(self.floor.dtype)
        return (self.floor + up).clamp(self.spec.quant_min, self.spec.quant_max).to(self.spec.dtype)

    @torch.no_grad()
    def undecided(self) -> int:
        """How many h are not within 0.01 of 0 or 1."""
        soft = self.soft()
        return int(((soft > DECIDED) & (soft < 1 - DECIDED)).sum())
