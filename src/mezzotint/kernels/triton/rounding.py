"""Rounding to a grid and back as one kernel; see `mezzotint.kernels.rounding`, which calls it."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

BLOCK = 1024  # elements of a program


@triton.jit
def _round_to_grid(x, y, scale, zero_point, count, low, high, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    step, zero = tl.load(scale), tl.load(zero_point).to(tl.float32)
    code = libdevice.rint(tl.div_rn(tl.load(x + at, mask=inside), step)) + zero
    code = tl.minimum(tl.maximum(code, low), high)
    tl.store(y + at, (code - zero) * step, mask=inside)


def launch(x: Tensor, y: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> None:
    """Fills `y`, laid out like `x`."""
    count = x.numel()
    if count:
        grid = (triton.cdiv(count, BLOCK),)
        _round_to_grid[grid](x, y, scale, zero_point, count, float(low), float(high), BLOCK=BLOCK)
