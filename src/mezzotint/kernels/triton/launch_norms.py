"""The operators between products on CUDA: picks a configuration, launches the kernels of `norms`."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from mezzotint.kernels.triton import norms
from mezzotint.kernels.triton.arguments import some_or, step_of
from mezzotint.kernels.triton.choice import device_of
from mezzotint.kernels.triton.norm_model import NormConfig, norm_configs

Grid = tuple[float, int, int]
_NO_GRID: Grid = (1.0, 0, 255)


def nhwc_group_norm(*norm: Any) -> Tensor:
    """GroupNorm of [x | second] + added, in the dtype of x."""
    x, second = norm[:2]
    return group_norm(*norm, out=_joined(x, second, x.dtype), grid=_NO_GRID)


def nhwc_group_norm_codes(*arguments: Any) -> Tensor:
    """The same, then equation (5)."""
    x, second = arguments[:2]
    return group_norm(*arguments[:-3], out=_joined(x, second, torch.int8), grid=arguments[-3:])


def nhwc_entry_codes(*arguments: Any) -> tuple[Tensor, Tensor]:
    """`nhwc_group_norm_codes` of [x | second], and codes of x and of second on grids of their own."""
    *norm, scale, zero_point, largest, scales, zero_points, largests = arguments
    x, second = norm[:2]
    out, entry = _joined(x, second, torch.int8), _joined(x, second, torch.int8)
    grids = list(zip(scales, zero_points, largests, strict=True))
    group_norm(*norm, out=out, grid=(scale, zero_point, largest), entry=entry, entry_grids=(grids[0], grids[-1]))
    return out, entry


def group_norm(
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
    *,
    out: Tensor,
    grid: Grid,
    config: NormConfig | None = None,
    entry: Tensor | None = None,
    entry_grids: tuple[Grid, Grid] = (_NO_GRID, _NO_GRID),
) -> Tensor:
    """Fills `out`, in codes on `grid` if it is int8; and `entry` with codes of x and of `second`, before the norm."""
    batch, channels = x.shape[0], out.shape[-1]
    rows = out.numel() // max(1, batch * channels)
    if not out.numel():
        return out
    c = config or _likeliest(batch, rows, channels, groups, device_of(x.device).multiprocessors, entry is not None)
    x, second = x.contiguous(), None if second is None else second.contiguous()
    added, factor, shift = (t if t is None or t.stride(-1) == 1 else t.contiguous() for t in (added, factor, shift))
    apart = [0 if t is None else t.stride(0) for t in (added, factor, shift)]
    width, first = channels // groups, x.shape[-1]
    flags = {
        "HAS_SECOND": second is not None, "HAS_ADDED": added is not None, "HAS_WEIGHT": weight is not None,
        "HAS_BIAS": bias is not None, "HAS_FACTOR": factor is not None, "HAS_SHIFT": shift is not None, "SILU": silu,
        "CODES": out.dtype == torch.int8, "ENTRY": entry is not None,
    }  # fmt: skip
    second_, added_, entry = some_or(second, x), some_or(added, x), some_or(entry, out)
    affine = [some_or(t, x) for t in (weight, bias, factor, shift)]
    sizes = (rows, first, channels - first, groups)
    steps = [number for each in (grid, *entry_grids) for number in step_of(*each)]
    block = triton.next_power_of_2(c.groups * width)
    if c.whole:
        norms.group_norm_whole[(groups // c.groups, batch)](
            x, second_, added_, *affine, out, entry, *apart, *sizes[:-1], eps, *steps, width=width, BM=c.rows,
            BC=block, BG=c.groups, **flags, num_warps=c.warps,
        )  # fmt: skip
        return out
    per_run = -(-rows // (c.runs * c.rows)) * c.rows
    runs = -(-rows // per_run)
    sums = torch.empty((batch, runs, 2, groups), dtype=torch.float32, device=x.device)
    norms.group_sums[(runs, batch, -(-groups // c.groups))](
        x, second_, added_, sums, apart[0], *sizes, per_run, width=width, BM=c.rows, BC=block, BG=c.groups,
        HAS_SECOND=flags["HAS_SECOND"], HAS_ADDED=flags["HAS_ADDED"], num_warps=c.warps,
    )  # fmt: skip
    columns = _columns(channels)
    block, blocks = max(1, c.rows * block // columns), triton.cdiv(channels, columns)
    at_once = max(1, min(-(-rows // block), 1056 // (batch * blocks)))
    norms.group_norm[(at_once, batch, blocks)](
        x, second_, added_, sums, *affine, out, entry, *apart, *sizes, runs, eps, *steps,
        triton.cdiv(rows, at_once * block) * block, width=width, BM=block, BC=columns, BR=triton.next_power_of_2(runs),
        BG=triton.next_power_of_2(min(groups, (columns - 2) // width + 2)), **flags, num_warps=c.warps,
    )  # fmt: skip
    return out


def nhwc_layer_norm_codes(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, scale: float, zero_point: int, largest: int
) -> Tensor:
    """LayerNorm over the last axis, then equation (5)."""
    x, out = x.contiguous(), torch.empty(x.shape, dtype=torch.int8, device=x.device)
    channels = x.shape[-1]
    rows, block = x.numel() // channels, triton.next_power_of_2(channels)
    bm = max(1, 4096 // block)
    if rows:
        norms.layer_norm_codes[(triton.cdiv(rows, bm),)](
            x, some_or(weight, x), some_or(bias, x), out, rows, channels, eps, *step_of(scale, zero_point, largest),
            BM=bm, BC=block, HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None, num_warps=4,
        )  # fmt: skip
    return out


def nhwc_geglu_codes(x: Tensor, scale: float, zero_point: int, largest: int) -> Tensor:
    """Equation (6) of [values | gates]."""
    x, channels = x.contiguous(), x.shape[-1] // 2
    out = torch.empty((*x.shape[:-1], channels), dtype=torch.int8, device=x.device)
    rows, block = out.numel() // max(1, channels), min(256, triton.next_power_of_2(channels))
    if out.numel():
        norms.geglu_codes[(triton.cdiv(rows, 4096 // block), triton.cdiv(channels, block))](
            x, out, rows, channels, *step_of(scale, zero_point, largest), BM=4096 // block, BC=block, num_warps=4
        )  # fmt: skip
    return out


def nhwc_codes(x: Tensor, second: Tensor | None, scale: float, zero_point: int, largest: int) -> Tensor:
    """Equation (5) of [x | second]."""
    out = _joined(x, second, torch.int8)
    channels = out.shape[-1]
    rows, block = out.numel() // max(1, channels), _columns(channels)
    if out.numel():
        norms.codes[(triton.cdiv(rows, 4096 // block), triton.cdiv(channels, block))](
            x.contiguous(), some_or(second, x).contiguous(), out, rows, x.shape[-1], channels - x.shape[-1],
            *step_of(scale, zero_point, largest), BM=4096 // block, BC=block, HAS_SECOND=second is not None,
            num_warps=4,
        )  # fmt: skip
    return out


def nhwc_upsampled_codes(x: Tensor, factor: int, scale: float, zero_point: int, largest: int) -> Tensor:
    """Equation (5) of a picture, each pixel `factor` times along both axes."""
    batch, height, width, channels = x.shape
    out = torch.empty((batch, factor * height, factor * width, channels), dtype=torch.int8, device=x.device)
    rows, block = batch * height * width, _columns(channels)
    if out.numel():
        norms.upsampled_codes[(triton.cdiv(rows, 2048 // block), triton.cdiv(channels, block))](
            x.contiguous(), out, rows, width, channels, *step_of(scale, zero_point, largest), FACTOR=factor,
            BM=2048 // block, BC=block, num_warps=4,
        )  # fmt: skip
    return out


@cache
def _likeliest(batch: int, rows: int, channels: int, groups: int, units: int, entry: bool) -> NormConfig:
    return norm_configs(batch, rows, channels, groups, units=units, entry=entry)[0]


def _joined(x: Tensor, second: Tensor | None, dtype: torch.dtype) -> Tensor:
    channels = x.shape[-1] + (0 if second is None else second.shape[-1])
    return torch.empty((*x.shape[:-1], channels), dtype=dtype, device=x.device)


def _columns(channels: int) -> int:
    """Channels of a block: a power of two that divides them if it is not too short; lanes beyond the last are lost."""
    dividing = min(512, channels & -channels)
    return dividing if dividing >= 64 else min(512, triton.next_power_of_2(channels))
