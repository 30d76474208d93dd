"""The operators in plain torch: what the GPU kernels are compared with, and what runs where there is no Triton.

Products are exact (float64 sums of integers, as in `kernels.reference`); the float steps are those of the package's
equations, in float32 and in that order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Int32
from torch import Tensor

from mezzotint.kernels.triton.operands import GEGLU_RUN, SHIFT, unpack_nibbles


def accumulators(
    x_q: Int8[Tensor, "*rows c"],
    weight: Tensor,
    correction: Int32[Tensor, "g 16 o"],
    channels: int,
    bits: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    groups: list[int],
) -> list[Int32[Tensor, "*rows2 o"]]:
    """Equation (1), one accumulator for each group of input channels."""
    full = weight if bits == 8 else unpack_nibbles(weight, channels, groups)
    picture = x_q if x_q.dim() == 4 else x_q.reshape(1, 1, -1, channels)
    taps = full.view(full.shape[0], *kernel, channels).permute(0, 3, 1, 2).double()
    rows = picture.permute(0, 3, 1, 2).double()
    padded = F.pad(rows, (padding[2], padding[3], padding[0], padding[1]))
    sums, start = [], 0
    for size, table in zip(groups or [channels], correction, strict=True):
        part = slice(start, start + size)
        acc = F.conv2d(padded[:, part], taps[:, part], stride=stride).round().to(torch.int32).permute(0, 2, 3, 1)
        cases = _cases(list(picture.shape[1:3]), list(acc.shape[1:3]), kernel, stride, padding).to(acc.device)
        sums.append((acc + table[cases]).reshape(*(acc.shape[:3] if x_q.dim() == 4 else x_q.shape[:-1]), -1))
        start += size
    return sums


def int8_product(
    x_q: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    correction: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    channels: int,
    bits: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    groups: list[int],
    dtype: torch.dtype,
) -> Tensor:
    """Equations (1) to (4)."""
    sums = accumulators(x_q, weight, correction, channels, bits, kernel, stride, padding, groups)
    if dtype == torch.int32:
        return sums[0].contiguous()
    y = _scaled(sums, multiplier, bias)
    return (y if residual is None else y + residual.float()).to(dtype).contiguous()


def int8_product_codes(
    x_q: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    correction: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    channels: int,
    bits: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    groups: list[int],
    geglu: bool,
    scale: float,
    zero_point: int,
    largest: int,
) -> Tensor:
    """Equations (1) to (3), then (5) or (6)."""
    sums = accumulators(x_q, weight, correction, channels, bits, kernel, stride, padding, groups)
    y = _scaled(sums, multiplier, bias)
    y = gated(y) if geglu else y
    return _codes(y if residual is None else y + residual.float(), scale, zero_point, largest)


def nhwc_codes(x: Tensor, second: Tensor | None, scale: float, zero_point: int, largest: int) -> Tensor:
    """Equation (5)."""
    return _codes(_whole(x, second), scale, zero_point, largest)


def nhwc_group_norm(
    x: Tensor,
    second: Tensor | None,
    added: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    factor: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> Tensor:
    """GroupNorm over the last axis of [B, *, C], in the dtype of `x`."""
    return _group_norm(x, second, added, weight, bias, factor, shift, groups, eps, silu).to(x.dtype)


def nhwc_group_norm_codes(
    x: Tensor,
    second: Tensor | None,
    added: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    factor: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    scale: float,
    zero_point: int,
    largest: int,
) -> Tensor:
    """`nhwc_group_norm`, then equation (5), without rounding to the dtype of `x` in between."""
    y = _group_norm(x, second, added, weight, bias, factor, shift, groups, eps, silu)
    return _codes(y, scale, zero_point, largest)


def nhwc_layer_norm_codes(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, scale: float, zero_point: int, largest: int
) -> Tensor:
    """LayerNorm over the last axis, then equation (5)."""
    y = F.layer_norm(x.float(), x.shape[-1:], _float(weight), _float(bias), eps)
    return _codes(y, scale, zero_point, largest)


def nhwc_geglu_codes(x: Tensor, scale: float, zero_point: int, largest: int) -> Tensor:
    """Equation (6) of [values | gates]."""
    value, gate = x.float().chunk(2, dim=-1)
    return _codes(value * F.gelu(gate), scale, zero_point, largest)


def _group_norm(
    x: Tensor,
    second: Tensor | None,
    added: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    factor: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> Float[Tensor, "b *pixels c"]:
    whole = _whole(x, second)
    rows = whole.reshape(whole.shape[0], -1, whole.shape[-1])
    if added is not None:
        rows = rows + added.float()[:, None]
    y = F.group_norm(rows.transpose(1, 2), groups, _float(weight), _float(bias), eps).transpose(1, 2)
    if factor is not None:
        y = y * (1 + factor.float()[:, None])
    if shift is not None:
        y = y + shift.float()[:, None]
    return (F.silu(y) if silu else y).reshape(whole.shape).contiguous()


def _float(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.float()


def _whole(x: Tensor, second: Tensor | None) -> Float[Tensor, "..."]:
    return x.float() if second is None else torch.cat([x.float(), second.float()], dim=-1)


def gated(y: Tensor) -> Float[Tensor, "..."]:
    value, gate = y.unflatten(-1, (-1, 2, GEGLU_RUN)).unbind(-2)
    return (value * F.gelu(gate)).flatten(-2)


def _codes(y: Tensor, scale: float, zero_point: int, largest: int) -> Int8[Tensor, "..."]:
    step = torch.full((), scale, device=y.device)  # a number would be multiplied by its inverse on CUDA
    codes = (torch.round(y / step) + zero_point).clamp(0, largest) - SHIFT
    return codes.to(torch.int8).contiguous()


def _scaled(sums: list[Tensor], multiplier: Tensor, bias: Tensor | None) -> Float[Tensor, "*rows o"]:
    """Equation (3); with one accumulator, (2)."""
    y = sums[0].float() * multiplier[0]
    for acc, factors in zip(sums[1:], multiplier[1:], strict=True):
        y = y + acc.float() * factors
    return y if bias is None else y + bias


def _cases(picture: list[int], result: list[int], kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """int64 [H', W']: the case of every position, see `operands`."""
    rows = torch.arange(result[0]) * stride[0] - padding[0]
    columns = torch.arange(result[1]) * stride[1] - padding[2]
    vertical = (rows < 0).long() + 2 * (rows + kernel[0] > picture[0]).long()
    horizontal = 4 * (columns < 0).long() + 8 * (columns + kernel[1] > picture[1]).long()
    return vertical[:, None] + horizontal[None, :]
