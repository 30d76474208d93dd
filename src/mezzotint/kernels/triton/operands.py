"""The constants of an integer product, prepared once: weights in the kernels' order, corrections, multipliers.

    name        dtype          shape              meaning
    weight      int8 | uint8   [O, T, C | C'/2]   codes by tap; 4-bit ones two a byte, every group by itself, see
                                                  `pack_nibbles`
    multiplier  float32        [G, O]             input_scale[g] * weight_scale[g, o]
    correction  int32          [G, 16, O]         -z'[g] * (sum of the taps of w that are inside), equation (1)
    bias        float32        [O] or None

The case of a position is 1*(rows missing above) + 2*(below) + 4*(left) + 8*(right). "Missing above" stands for one
pattern of missing rows, so the table is exact where a window loses at most one row or column on a side: windows of 1
and of 3 with padding 0 or 1. Other windows are refused and stay with another kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int8, Int32, UInt8
from torch import Tensor

from mezzotint.errors import KernelError
from mezzotint.kernels.contract import Weighted, check_weighted

SHIFT = 128  # x_s8 = x_q - SHIFT
CASES = 16
GEGLU_RUN = 8  # values, then their gates: a thread of wgmma has both, whichever way the product is turned
Window = tuple[int, int]
Edges = tuple[int, int, int, int]  # rows above, rows below, columns left, columns right

_NIBBLES = 32  # channels that share a run of 16 bytes: k and k + 16 in one byte


@dataclass(frozen=True, eq=False)
class Operand:
    """What a product needs beside the codes; the table in the module's docstring. `groups` cut the input channels."""

    weight: Tensor
    multiplier: Tensor
    correction: Tensor
    bias: Tensor | None
    channels: int
    bits: int = 8
    kernel: Window = (1, 1)
    stride: Window = (1, 1)
    padding: Edges = (0, 0, 0, 0)
    groups: tuple[int, ...] = ()

    @property
    def outputs(self) -> int:
        """Columns of the result (before GEGLU halves them)."""
        return self.weight.shape[0]


def linear_operand(parts: Sequence[Weighted], *, bits: int = 8, geglu: bool = False) -> Operand:
    """Operand of one or several linear products of the *same* codes, outputs side by side (q, k and v in one product).

    Args:
        parts: each with weight_q [O_i, K] and one x_zero_point for all; an absent bias counts as 0 beside another.
        bits: 8, or 4 to keep the weights two a byte.
        geglu: outputs are [values | gates], as nn.Linear of GEGLU has them; put in order of GEGLU_RUN values, as many
            gates, and so on.

    Raises:
        KernelError: parts that do not go together, or gates that are no multiple of GEGLU_RUN.
    """
    for part in parts:
        check_weighted("linear", part)
    if len({part.x_zero_point for part in parts}) != 1 or len({part.weight_q.shape[1] for part in parts}) != 1:
        raise KernelError("linear: products of the same codes must have one x_zero_point and one number of inputs")
    weight = torch.cat([part.weight_q for part in parts])[:, None, :]
    multiplier = torch.cat([part.multiplier for part in parts])
    bias = _joined_bias(parts)
    if geglu:
        if weight.shape[0] % (2 * GEGLU_RUN):
            raise KernelError(f"geglu: values and gates are multiples of {GEGLU_RUN}, got {weight.shape[0]} outputs")
        order = torch.arange(weight.shape[0], device=weight.device).view(2, -1, GEGLU_RUN).transpose(0, 1).reshape(-1)
        weight, multiplier = weight[order], multiplier[order]
        bias = None if bias is None else bias[order]
    total = weight.sum(dim=(1, 2), dtype=torch.int32)
    correction = (-(parts[0].x_zero_point - SHIFT) * total).expand(1, CASES, -1).contiguous()
    return Operand(_stored(weight, bits), multiplier[None].contiguous(), correction, bias, weight.shape[2], bits=bits)


def conv2d_operand(
    parts: Sequence[Weighted],
    *,
    bias: Tensor | None = None,
    padding: Edges | None = None,
    bits: int = 8,
) -> Operand:
    """Operand of a convolution; several parts are the groups of input channels of a split shortcut, in order.

    Args:
        parts: weight_q [O, C_g, kh, kw]; one geometry for all.
        bias: of a split shortcut; a single part may carry its own.
        padding: rows above and below, columns left and right, where the picture is padded on some sides only; by
            default the geometry's.
    """
    for part in parts:
        check_weighted("conv2d", part)
    geometry, (height, width) = parts[0].geometry, parts[0].weight_q.shape[2:]
    edges = padding or (geometry.padding[0], geometry.padding[0], geometry.padding[1], geometry.padding[1])
    refusal = refuses_window((height, width), geometry.stride, edges, geometry.dilation, geometry.conv_groups)
    if refusal is not None:
        raise KernelError(f"conv2d: {refusal}")
    own_bias = parts[0].bias if len(parts) == 1 and bias is None else bias
    taps = torch.cat([part.weight_q for part in parts], dim=1).permute(0, 2, 3, 1).flatten(1, 2).contiguous()
    groups = tuple(part.weight_q.shape[1] for part in parts) if len(parts) > 1 else ()
    return Operand(
        weight=_stored(taps, bits, groups),
        multiplier=torch.stack([part.multiplier for part in parts]),
        correction=torch.stack([_corrections(part) for part in parts]),
        bias=own_bias,
        channels=taps.shape[2],
        bits=bits,
        kernel=(height, width),
        stride=geometry.stride,
        padding=edges,
        groups=groups,
    )


def refuses_window(
    kernel: Window, stride: Window, padding: Edges, dilation: Window = (1, 1), conv_groups: int = 1
) -> str | None:
    """Why a convolution is none of these kernels' (see the module's docstring), or None."""
    if conv_groups != 1 or dilation != (1, 1):
        return f"no groups and no dilation, got conv_groups={conv_groups}, dilation={dilation}"
    if stride[0] != stride[1] or stride[0] not in (1, 2):
        return f"strides are 1 or 2, got {stride}"
    for size, before, after in ((kernel[0], *padding[:2]), (kernel[1], *padding[2:])):
        if size not in (1, 3) or max(before, after) > (size - 1) // 2:
            return f"windows are 1 or 3 wide and hang over by at most 1, got {kernel} with padding {padding}"
    return None


def pack_nibbles(weight: Int8[Tensor, "o t c"], groups: Sequence[int] = ()) -> UInt8[Tensor, "o t half"]:
    """Two codes of 4 bits a byte: in each run of 32 channels, byte j has channel j low and channel j + 16 high.

    That is the order in which a register of wgmma's left operand wants them. C is filled up to a multiple of 32; each
    of `groups` by itself, so that no byte holds codes of two.
    """
    o, t, c = weight.shape
    packed = []
    for part in weight.split(list(groups) or [c], dim=2):
        padded = torch.nn.functional.pad(part, (0, -part.shape[2] % _NIBBLES)).view(o, t, -1, 2, _NIBBLES // 2)
        low, high = padded[:, :, :, 0], padded[:, :, :, 1]
        packed.append(((low & 0xF) | (high << 4)).view(torch.uint8).reshape(o, t, -1))
    return torch.cat(packed, dim=2)


def packed_bytes(channels: int, bits: int) -> int:
    """Bytes of one tap of the weights of a group of `channels`."""
    return channels if bits == 8 else -(-channels // _NIBBLES) * (_NIBBLES // 2)


def unpack_nibbles(
    packed: UInt8[Tensor, "o t half"], channels: int, groups: Sequence[int] = ()
) -> Int8[Tensor, "o t c"]:
    """What `pack_nibbles` was given."""
    o, t, _ = packed.shape
    sizes, unpacked = list(groups) or [channels], []
    parts = packed.split([packed_bytes(size, 4) for size in sizes], dim=2)
    for size, part in zip(sizes, parts, strict=True):
        runs = part.contiguous().view(torch.int8).view(o, t, -1, 1, _NIBBLES // 2)
        both = torch.cat([(runs << 4) >> 4, runs >> 4], dim=3)
        unpacked.append(both.reshape(o, t, -1)[:, :, :size])
    return torch.cat(unpacked, dim=2)


def missing_taps(case: int, kernel: Window) -> Tensor:
    """bool [kh, kw]: the taps of the window that are inside, for one of the 16 cases."""
    inside = torch.ones(kernel, dtype=torch.bool)
    if case & 1:
        inside[0] = False
    if case & 2:
        inside[-1] = False
    if case & 4:
        inside[:, 0] = False
    if case & 8:
        inside[:, -1] = False
    return inside


def _corrections(part: Weighted) -> Int32[Tensor, "16 o"]:
    taps = part.weight_q.sum(dim=1, dtype=torch.int32)  # [O, kh, kw]
    height, width = taps.shape[1:]
    rows = []
    for case in range(CASES):
        inside = missing_taps(case, (height, width)).to(taps.device)
        rows.append((taps * inside).sum(dim=(1, 2), dtype=torch.int32))
    return -(part.x_zero_point - SHIFT) * torch.stack(rows)


def _joined_bias(parts: Sequence[Weighted]) -> Tensor | None:
    if all(part.bias is None for part in parts):
        return None
    return torch.cat([torch.zeros_like(part.multiplier) if part.bias is None else part.bias for part in parts])


def _stored(weight: Int8[Tensor, "o t c"], bits: int, groups: Sequence[int] = ()) -> Tensor:
    if bits == 8:
        return weight.contiguous()
    if bits != 4:
        raise KernelError(f"weights on a GPU are kept in 8 or 4 bits, got {bits}")
    return pack_nibbles(weight, groups)
