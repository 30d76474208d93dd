"""What every launch passes to a kernel."""

from __future__ import annotations

import torch
from torch import Tensor


def step_of(scale: float, zero_point: int, largest: int) -> tuple[float, float, int, int]:
    """`scale` as a float32 number and 1 / scale, correctly rounded: what `epilogue.quantized` needs."""
    step = torch.tensor(scale, dtype=torch.float32)
    return step.item(), (1.0 / step).item(), zero_point, largest


def some_or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A kernel's pointer must be some tensor, also where it is not read."""
    return other if tensor is None else tensor
