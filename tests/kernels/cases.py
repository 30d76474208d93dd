"""Random and extreme products, and an integer oracle that shares no code with the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from mezzotint.kernels.contract import Geometry, Weighted

ZERO_POINTS = st.sampled_from([0, 1, 127, 128, 254, 255])
FILLS = st.sampled_from(["random", "all high, weights low", "all high, weights high", "all low"])


@dataclass
class Case:
    x_q: Tensor
    constants: Weighted


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def codes(shape: tuple[int, ...], fill: str, seed: int, high: int = 255) -> Tensor:
    if fill == "random":
        return torch.randint(0, high + 1, shape, generator=generator(seed)).to(torch.uint8)
    return torch.full(shape, 0 if fill == "all low" else high, dtype=torch.uint8)


def weights(shape: tuple[int, ...], fill: str, seed: int, size: int = 128) -> Tensor:
    if fill in ("random", "all low"):
        return torch.randint(-size, size, shape, generator=generator(seed + 1)).to(torch.int8)
    return torch.full(shape, -size if fill.endswith("low") else size - 1, dtype=torch.int8)


def weighted(weight: Tensor, zero_point: int, bias: bool, seed: int, **more: Any) -> Weighted:
    g, o = generator(seed + 2), weight.shape[0]
    multiplier = torch.rand(o, generator=g) * 10.0 ** torch.randint(-9, 1, (o,), generator=g)
    offset = torch.randn(o, generator=g) if bias else None
    return Weighted(weight, multiplier, offset, zero_point, **more)


def laid_out(x_q: Tensor, layout: str) -> Tensor:
    """`x_q` [B, C, H, W] with other strides, the same values."""
    if layout == "channels_last":
        return x_q.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x_q.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "sliced":
        return torch.cat([x_q, x_q], dim=1).contiguous(memory_format=torch.channels_last)[:, : x_q.shape[1]]
    return x_q


@st.composite
def conv2d_cases(draw: st.DrawFn, grouped: bool = False, size: int = 128) -> Case:
    """Convolutions of awkward sizes, with every layout of the input and windows that hang over the edge."""
    groups = draw(st.sampled_from([2, 3])) if grouped else 1
    per_group, o_per_group = draw(st.sampled_from([1, 2, 3, 5, 16, 33, 96])), draw(st.sampled_from([1, 3, 4, 16, 19]))
    kernel = (draw(st.sampled_from([1, 2, 3, 5])), draw(st.sampled_from([1, 3])))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    same = [d * ((k - 1) // 2) for k, d in zip(kernel, dilation, strict=True)]
    padding = (draw(st.integers(0, same[0])), draw(st.integers(0, same[1])))
    reach = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    picture = tuple(r + draw(st.integers(0, 6)) for r in reach)  # as small as H < kernel, where the padding allows it
    stride = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (3, 3), (1, 2), (2, 1)]))
    fill, seed = draw(FILLS), draw(st.integers(0, 2**20))
    x_q = codes((draw(st.sampled_from([1, 2, 5])), groups * per_group, *picture), fill, seed)
    weight = weights((groups * o_per_group, per_group, *kernel), fill, seed, size)
    geometry = Geometry(stride, padding, dilation, groups)
    constants = weighted(weight, draw(ZERO_POINTS), draw(st.booleans()), seed, geometry=geometry)
    layout = draw(st.sampled_from(["contiguous", "channels_last", "transposed", "sliced"]))
    return Case(laid_out(x_q, layout), constants)


@st.composite
def linear_cases(draw: st.DrawFn, size: int = 128) -> Case:
    k, o = draw(st.sampled_from([1, 2, 3, 4, 5, 17, 64, 100, 600, 1500])), draw(st.sampled_from([1, 2, 3, 16, 33]))
    leading = draw(st.sampled_from([(), (1,), (4,), (5, 7), (2, 1, 3), (0,)]))
    fill, seed = draw(FILLS), draw(st.integers(0, 2**20))
    constants = weighted(weights((o, k), fill, seed, size), draw(ZERO_POINTS), draw(st.booleans()), seed)
    x_q = codes((*leading, k), fill, seed)
    return Case(x_q.transpose(0, 1) if len(leading) == 2 and draw(st.booleans()) else x_q, constants)


def oracle_conv2d(case: Case) -> Tensor:
    """The contract by the letter: int64 sums over the taps of the window, then a product and a sum in float32."""
    weight, g = case.constants.weight_q.to(torch.int64), case.constants.geometry
    x = case.x_q.to(torch.int64) - case.constants.x_zero_point
    (pad_v, pad_h), (kernel_v, kernel_h) = g.padding, weight.shape[2:]
    x = torch.nn.functional.pad(x, (pad_h, pad_h, pad_v, pad_v))
    rows = (x.shape[2] - g.dilation[0] * (kernel_v - 1) - 1) // g.stride[0] + 1
    columns = (x.shape[3] - g.dilation[1] * (kernel_h - 1) - 1) // g.stride[1] + 1
    acc = torch.zeros(x.shape[0], g.conv_groups, weight.shape[0] // g.conv_groups, rows, columns, dtype=torch.int64)
    by_group = weight.unflatten(0, (g.conv_groups, -1))
    for u in range(kernel_v):
        for v in range(kernel_h):
            taps = x[:, :, u * g.dilation[0] :, v * g.dilation[1] :][:, :, :: g.stride[0], :: g.stride[1]]
            taps = taps[:, :, :rows, :columns].unflatten(1, (g.conv_groups, -1))
            acc += torch.einsum("bgchw,goc->bgohw", taps, by_group[..., u, v])
    return oracle_epilogue(acc.flatten(1, 2).movedim(1, -1), case.constants).movedim(-1, 1)


def oracle_linear(case: Case) -> Tensor:
    acc = (case.x_q.to(torch.int64) - case.constants.x_zero_point) @ case.constants.weight_q.to(torch.int64).t()
    return oracle_epilogue(acc, case.constants)


def oracle_epilogue(acc: Tensor, constants: Weighted) -> Tensor:
    """`acc` int64 [..., O]."""
    assert acc.numel() == 0 or acc.abs().max() < 2**31
    y = acc.to(torch.int32).to(torch.float32) * constants.multiplier
    return y if constants.bias is None else y + constants.bias
