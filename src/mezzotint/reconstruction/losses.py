"""The losses of FBR.

    lp(a, b)  = mean over batch and positions of  sum over features (a - b)^2                                  (1)
    L         = lp(block) + gamma * sum over inner layers of lp(layer)                                         (2)

Features are the channels of a picture [B, C, H, W] and the last axis of anything else. Differs from the released
code, which sums over axis 1 whatever it is: for tokens [B, N, C] that is the token axis, and losses of different
layers are then on different scales (`loss_axis = "first"` does that). Q-Diffusion learns steps under |a - b|**2.4.

With `weight` (Fisher weighting) the squared error of each entry is weighted. For eps-prediction with unit Gaussian
likelihood the Fisher information of a block's output z is J^T J with J = d eps / d z; its diagonal is E[(J^T v)^2]
for random signs v (Hutchinson). One draw of v a row estimates it; weights are scaled to mean 1. The paper's abstract
speaks of a Hessian loss, its code uses plain MSE, so MSE is the default.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def feature_axis(x: Tensor) -> int:
    return 1 if x.dim() == 4 else -1


def lp_loss(
    output: Float[Tensor, "b ..."],
    target: Float[Tensor, "b ..."],
    weight: Float[Tensor, "b ..."] | None = None,
    *,
    norm: float = 2.0,
    axis: int | None = None,
) -> Float[Tensor, ""]:
    """Equation (1), each error times `weight` where given; `norm` in place of 2, `axis` in place of the features."""
    difference = output - target
    error = difference.square() if norm == 2 else difference.abs().pow(norm)
    if weight is not None:
        error = error * weight
    return error.sum(dim=feature_axis(error) if axis is None else axis).mean()


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """+1 or -1 with equal chance, in the shape of `like`; drawn on the CPU so that every device gets the same."""
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like)
