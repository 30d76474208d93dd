"""How far two tensors are apart."""

from __future__ import annotations

import torch
from torch import Tensor


def decibels(expected: Tensor, found: Tensor) -> float:
    """Signal to noise: 10 log10 of sum(expected**2) / sum((expected - found)**2); infinite where they are equal."""
    noise = float((expected - found).double().square().sum())
    return float("inf") if noise == 0 else float(10 * torch.log10(expected.double().square().sum() / noise))
