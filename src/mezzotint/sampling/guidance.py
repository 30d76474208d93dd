"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, in the form of CompVis' samplers).

    eps = e_u + s (e_c - e_u)                                                                                        (1)

e_c is the network's output with the sample's condition, e_u with none, s the guidance scale. Both come from *one* call
on 2B rows, the unconditional ones first:

    name   dtype    shape          meaning
    x      float32  [2B, C, H, W]  [x_t; x_t]
    cond   any      [2B, ...]      [uncond; cond], keyword arguments of the network
    eps    float32  [2B, C, H, W]  [e_u; e_c]

With s = 1, or for a network that has no unconditional rows, (1) is e_c and one call on B rows gives it. The rows as the
network sees them are what quantization has to calibrate and what an error of eps is measured on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mezzotint.models.conditions import Cond, Conditions
from mezzotint.models.denoiser import predict_eps


class NetworkRows(NamedTuple):
    """The rows of one network call: x [B or 2B, C, H, W] and as many rows of every keyword argument."""

    x: Tensor
    cond: Cond


def is_guided(conditions: Conditions | None, guidance_scale: float) -> bool:
    """Whether a step calls the network on unconditional rows too."""
    return conditions is not None and conditions.uncond is not None and guidance_scale != 1


def network_rows(x_t: Float[Tensor, "b c h w"], conditions: Conditions | None, guidance_scale: float) -> NetworkRows:
    """What the network sees at one step. `conditions` has a row for each of x_t, on the same device."""
    if conditions is None:
        return NetworkRows(x_t, {})
    if conditions.uncond is None or not is_guided(conditions, guidance_scale):
        return NetworkRows(x_t, conditions.cond)
    both = {name: torch.cat([conditions.uncond[name], rows]) for name, rows in conditions.cond.items()}
    return NetworkRows(torch.cat([x_t, x_t]), both)


def combine(
    eps: Float[Tensor, "rows c h w"], conditions: Conditions | None, guidance_scale: float
) -> Float[Tensor, "b c h w"]:
    """Equation (1) on the network's output for `network_rows`."""
    if not is_guided(conditions, guidance_scale):
        return eps
    e_u, e_c = eps.chunk(2)
    return e_u + guidance_scale * (e_c - e_u)


def guided_eps(
    network: nn.Module,
    x_t: Float[Tensor, "b c h w"],
    t: int | Int[Tensor, ""],
    conditions: Conditions | None = None,
    guidance_scale: float = 1.0,
) -> Float[Tensor, "b c h w"]:
    """Guided eps at x_t and t: one call of the network."""
    x, cond = network_rows(x_t, conditions, guidance_scale)
    return combine(predict_eps(network, x, t, cond), conditions, guidance_scale)
