"""What lies between two integer products, as single operators: codes, and what comes before them.

    n   = (x + added - mean_g) / sqrt(var_g + eps) * weight + bias      mean and variance of a group of channels (1)
    y   = n, or n * sigmoid(n)                                                                                  (2)
    x_q = clamp(round(y / scale) + zero_point, 0, input_max)                                                    (3)
    y   = (x - mean_r) / sqrt(var_r + eps) * weight + bias              mean and variance of a row              (4)
    y   = value * gelu(gate)                                            gelu(g) = g (1 + erf(g / sqrt(2))) / 2  (5)

    name    dtype    shape       meaning
    x       float32  [B, C, *]   what a convolution left; read as rows of C channels
    added   float32  [B, C]      what is added to every pixel first (the time embedding), or None
    x_q     uint8    [B, C, *]   codes, in channels-last order

(3) is exact: the codes of `codes.activation_codes`. (1) and (2) are float arithmetic in another order than torch's:
sums of x and x**2 in float32 within 64 pixels and in float64 above, an own exponential (2 ulp). n differs from
F.group_norm's by a few 1e-7 of its size, so x_q differs where y / scale lies that near to the edge between two codes,
then by one: measured on normal input, in at most 4 of a million. Likewise (4), whose rows are summed in 16 lanes, and
(5), whose erf is a polynomial good to 1.5e-7. The order is fixed: neither the number of threads nor the instruction set
changes a bit.

These are `torch.library` operators, so that a traced network holds each as one node. `codes` dissolves into plain
torch where a compiler (inductor) wants to fuse it itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from torch import Tensor

from mezzotint.kernels.codes import activation_codes
from mezzotint.kernels.native import library

_OPERATORS = torch.library.Library("mezzotint", "FRAGMENT")
_OPERATORS.define("codes(Tensor x, float scale, int zero_point, int input_max) -> Tensor")
_NORM = "Tensor x, Tensor? added, Tensor? weight, Tensor? bias, int groups, float eps, bool silu"
_OPERATORS.define(f"group_norm_codes({_NORM}, float scale, int zero_point, int input_max) -> Tensor")
_OPERATORS.define(f"group_norm({_NORM}) -> Tensor")
_GRID = "float scale, int zero_point, int input_max"
_OPERATORS.define(f"layer_norm_codes(Tensor x, Tensor? weight, Tensor? bias, float eps, {_GRID}) -> Tensor")
_OPERATORS.define(f"geglu_codes(Tensor x, {_GRID}) -> Tensor")

_CHUNK = 64  # rows, as in fused.cpp


def codes(x: Float32[Tensor, "..."], scale: float, zero_point: int, input_max: int) -> UInt8[Tensor, "..."]:
    """Codes of `x`, equation (3); channels-last input gives channels-last codes."""
    if torch.compiler.is_compiling():
        return (torch.round(x / _step(scale, x)) + zero_point).clamp(0, input_max).to(torch.uint8)
    rows = _as_rows(x)
    built = library() if rows is not None and x.device.type == "cpu" else None
    if rows is None or built is None:
        return activation_codes(x, _step(scale, x), zero_point, input_max)
    out = torch.empty_like(x, dtype=torch.uint8)
    built.mezzotint_codes(x.data_ptr(), *rows, scale, zero_point, input_max, out.data_ptr())
    return out


def group_norm_codes(
    x: Float32[Tensor, "b c *pixels"],
    added: Float32[Tensor, "b c"] | None,
    weight: Float32[Tensor, " c"] | None,
    bias: Float32[Tensor, " c"] | None,
    groups: int,
    eps: float,
    silu: bool,
    scale: float,
    zero_point: int,
    input_max: int,
) -> UInt8[Tensor, "b c *pixels"]:
    """Equations (1) to (3)."""
    if library() is None:
        return codes(group_norm(x, added, weight, bias, groups, eps, silu), scale, zero_point, input_max)
    out = _empty_channels_last(x, torch.uint8)
    _run(x, added, weight, bias, groups, eps, silu, (scale, zero_point, input_max, out.data_ptr(), None))
    return out


def group_norm(
    x: Float32[Tensor, "b c *pixels"],
    added: Float32[Tensor, "b c"] | None,
    weight: Float32[Tensor, " c"] | None,
    bias: Float32[Tensor, " c"] | None,
    groups: int,
    eps: float,
    silu: bool,
) -> Float32[Tensor, "b c *pixels"]:
    """Equations (1) and (2)."""
    if library() is None:
        whole = x if added is None else x + added.view(*added.shape, *(1,) * (x.dim() - 2))
        n = F.group_norm(whole, groups, weight, bias, eps)
        return F.silu(n) if silu else n
    out = _empty_channels_last(x, torch.float32)
    _run(x, added, weight, bias, groups, eps, silu, (1.0, 0.0, 0.0, None, out.data_ptr()))
    return out


def layer_norm_codes(
    x: Float32[Tensor, "*rows c"],
    weight: Float32[Tensor, " c"] | None,
    bias: Float32[Tensor, " c"] | None,
    eps: float,
    scale: float,
    zero_point: int,
    input_max: int,
) -> UInt8[Tensor, "*rows c"]:
    """Equations (4) and (3)."""
    built, width = library(), x.shape[-1]
    if built is None:
        return codes(F.layer_norm(x, (width,), weight, bias, eps), scale, zero_point, input_max)
    operands = [None if v is None else v.contiguous() for v in (x, weight, bias)]
    pointers = [None if v is None else v.data_ptr() for v in operands]
    out = torch.empty(x.shape, dtype=torch.uint8)
    sizes = (x.numel() // width, width)
    built.mezzotint_layer_norm_codes(*pointers, *sizes, eps, scale, zero_point, input_max, out.data_ptr())
    return out


def geglu_codes(
    x: Float32[Tensor, "*rows c2"], scale: float, zero_point: int, input_max: int
) -> UInt8[Tensor, "*rows c"]:
    """Equations (5) and (3); the first half of each row of `x` are values, the second gates."""
    built, width = library(), x.shape[-1] // 2
    if built is None:
        value, gate = x.chunk(2, dim=-1)
        return codes(value * F.gelu(gate), scale, zero_point, input_max)
    rows, out = x.contiguous(), torch.empty((*x.shape[:-1], width), dtype=torch.uint8)
    grid = (scale, zero_point, input_max)
    built.mezzotint_geglu_codes(rows.data_ptr(), out.numel() // width, width, *grid, out.data_ptr())
    return out


def _run(
    x: Tensor,
    added: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    output: tuple[float, int, int, int | None, int | None] | tuple[float, float, float, None, int],
) -> None:
    batch, channels = x.shape[:2]
    pixels = x.movedim(1, -1).contiguous()  # no copy if x is channels-last
    rows = pixels[0, ..., 0].numel() if batch else 0
    chunks = -(-rows // _CHUNK)
    work = torch.empty(batch * (chunks * 2 + 2) * channels)
    operands = [None if v is None else v.contiguous() for v in (added, weight, bias)]
    pointers = [None if v is None else v.data_ptr() for v in operands]
    built = library()
    assert built is not None
    sizes = (batch, rows, channels, groups)
    built.mezzotint_group_norm(pixels.data_ptr(), *pointers, work.data_ptr(), *sizes, eps, silu, *output)


def _step(scale: float, x: Tensor) -> Tensor:
    """`scale` as a tensor: CUDA divides by a number as a product with its inverse, which rounds otherwise."""
    return torch.full((), scale, device=x.device)


def _empty_channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, C, *] whose channels lie next to each other."""
    batch, channels, *pixels = x.shape
    return torch.empty((batch, *pixels, channels), dtype=dtype, device=x.device).movedim(-1, 1)


def _as_rows(x: Tensor) -> tuple[int, int, int] | None:
    """(rows, width, stride) that visit `x` in the order of its memory, or None if it is not such a run of rows."""
    if x.is_contiguous():
        width = x.shape[-1] if x.dim() else 1
        return (x.numel() // width, width, width) if x.numel() else None
    if x.dim() < 3 or x.stride(1) != 1 or not x.numel():
        return None
    channels, pixels = x.shape[1], x.movedim(1, -1)  # [B, *, C]
    stride = x.stride(-1)
    even = stride >= channels and all(
        pixels.stride(i) == pixels.stride(i + 1) * pixels.shape[i + 1] for i in range(pixels.dim() - 2)
    )
    return (x.numel() // channels, channels, stride) if even else None


def _meta(dtype: torch.dtype) -> Callable[..., Tensor]:
    return lambda x, *_: _empty_channels_last(x, dtype)


def _half_row(x: Tensor) -> Tensor:
    return torch.empty((*x.shape[:-1], x.shape[-1] // 2), dtype=torch.uint8, device=x.device)


_OPERATORS.impl("codes", codes, "CompositeImplicitAutograd")
_OPERATORS.impl("group_norm_codes", group_norm_codes, "CPU")
_OPERATORS.impl("group_norm", group_norm, "CPU")
_OPERATORS.impl("group_norm_codes", _meta(torch.uint8), "Meta")
_OPERATORS.impl("group_norm", _meta(torch.float32), "Meta")
_OPERATORS.impl("layer_norm_codes", layer_norm_codes, "CPU")
_OPERATORS.impl("geglu_codes", geglu_codes, "CPU")
_OPERATORS.impl("layer_norm_codes", lambda x, *_: torch.empty(x.shape, dtype=torch.uint8, device=x.device), "Meta")
_OPERATORS.impl("geglu_codes", lambda x, *_: _half_row(x), "Meta")
