"""Kernel Inception distance (Binkowski et al. 2018, arXiv 1801.01401): squared MMD of two sets of features.

    k(a, b) = (a . b / F + 1)^3                                                                                  (1)
    KID = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean k(x_i, y_j)                             (2)

(2) is unbiased at any number of images, which a Frechet distance is not; it can be negative. Published KIDs are means
of (2) over 100 random subsets of 1,000 images; over all images at once it has the same expectation and less noise.
Differs from the usual implementations in that alone: torchmetrics with one subset of all images gives the same.

A resample of the bootstrap counts image i w_i times, and a copy is not compared with its copies:
mean_{i != j} becomes sum_{i != j} w_i w_j k(x_i, x_j) / sum_{i != j} w_i w_j.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 1024  # rows of a kernel matrix at once


def kid(
    x: Float[Tensor, "n f"], y: Float[Tensor, "m f"], weights: Float[Tensor, "r n"] | None = None
) -> Float[Tensor, " r"]:
    """Equation (2) in float64; `weights` says how often each of x counts in each of r resamples, None is once."""
    x, y = x.double(), y.double()
    once = torch.ones(1, len(x), dtype=torch.float64)
    weights = once if weights is None else weights.double()
    cross = torch.zeros(len(weights), dtype=torch.float64)
    for rows in torch.arange(len(x)).split(BLOCK):
        cross += weights[:, rows] @ kernel(x[rows], y).mean(dim=1)
    cross /= weights.sum(dim=1)
    return pairs_mean(x, weights) + pairs_mean(y, torch.ones(1, len(y), dtype=torch.float64)) - 2 * cross


def pairs_mean(x: Float[Tensor, "n f"], weights: Float[Tensor, "r n"]) -> Float[Tensor, " r"]:
    """Mean of k over the pairs i != j, weighted."""
    total = torch.zeros(len(weights), dtype=x.dtype)
    for rows in torch.arange(len(x)).split(BLOCK):
        block = kernel(x[rows], x)
        block[torch.arange(len(rows)), rows] = 0
        total += ((weights[:, rows] @ block) * weights).sum(dim=1)
    return total / (weights.sum(dim=1).square() - weights.square().sum(dim=1))


def kernel(a: Float[Tensor, "n f"], b: Float[Tensor, "m f"]) -> Float[Tensor, "n m"]:
    """Equation (1)."""
    return (a @ b.T / a.shape[1] + 1) ** 3
