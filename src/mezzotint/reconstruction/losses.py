"""The losses of FBR.

    lp(a, b)  = mean over batch and positions of  sum over features (a - b)^2                                  (1)
    L         = lp(block) + gamma * sum over inner layers of lp(layer)  [+ lambda * level(block)]              (2)
    level(a, b) = mean over batch of  P * sum over features (mean over the P positions of a - b)^2             (3)

Features are the channels of a picture [B, C, H, W] and the last axis of anything else. Differs from the released
code, which sums over axis 1 whatever it is: for tokens [B, N, C] that is the token axis, and losses of different
layers are then on different scales (`loss_axis = "first"` does that). Q-Diffusion learns steps under |a - b|**2.4.

The level term (`level_weight`, lambda) is not in the paper. By Parseval (1) is the mean of the error's power over all P
spatial frequencies and (3) its power at frequency zero, so both are the same number for an error without spatial
correlation, and (3) is P times as large for one that is the same everywhere. Such an error is 1/P of what (1) sees, but
it is what a sampler keeps: it does the same at every step, so that n steps add up to n e and not to sqrt(n) e, and the
network does not take it out again, since the first steps settle the level of a picture (`drift`). It is of each
row, and so of each row's time; a bias can take up its mean over all times only. Weights are where it comes from:
rounding moves an output by dW . E[x], and the mean E[x] of what follows SiLU is far from zero.

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


def level_loss(output: Float[Tensor, "b ..."], target: Float[Tensor, "b ..."]) -> Float[Tensor, ""]:
    """Equation (3): the power density of the error at frequency zero, summed over features, mean over the batch."""
    error = (output - target).movedim(feature_axis(output), 1)[..., None].flatten(2)  # [B, F, P], P = 1 for [B, F]
    return error.mean(dim=2).square().sum(dim=1).mean() * error.shape[2]


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """+1 or -1 with equal chance, in the shape of `like`; drawn on the CPU so that every device gets the same."""
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like)
