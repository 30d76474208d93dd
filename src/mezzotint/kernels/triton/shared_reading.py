"""Two operators that read floats once and write what else would take two steps.

    mezzotint::nhwc_entry_codes       at the entry of a residual block: codes of the GroupNorm of [x | second], and
                                      codes of x and second for the shortcut, side by side, each on its own grid
    mezzotint::nhwc_upsampled_codes   codes of a picture, each pixel several times along both axes (nearest)

Codes are those of `nhwc_group_norm_codes` and `nhwc_codes`, equation (5) of the package, bit for bit: the GroupNorm has
its inputs in registers when it writes, and an upsampled pixel is quantized once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mezzotint.errors import KernelError
from mezzotint.kernels.triton import exact

_OPERATORS = torch.library.Library("mezzotint", "FRAGMENT")
_SCHEMAS = {
    "nhwc_entry_codes": "(Tensor x, Tensor? second, Tensor? added, Tensor? weight, Tensor? bias, Tensor? factor, "
    "Tensor? shift, int groups, float eps, bool silu, float scale, int zero_point, int largest, "
    "float[] scales, int[] zero_points, int[] largests) -> (Tensor, Tensor)",
    "nhwc_upsampled_codes": "(Tensor x, int factor, float scale, int zero_point, int largest) -> Tensor",
}


def entry_codes(
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
    scales: list[float],
    zero_points: list[int],
    largests: list[int],
) -> tuple[Tensor, Tensor]:
    """The first operator in plain torch; both results are int8 [B, *, C]."""
    _check_entry(second, added, scales, zero_points, largests)
    norm = (x, second, added, weight, bias, factor, shift, groups, eps, silu)
    grids = zip(scales, zero_points, largests, strict=True)
    parts = [exact.nhwc_codes(part, None, *grid) for part, grid in zip(_parts(x, second), grids, strict=True)]
    return exact.nhwc_group_norm_codes(*norm, scale, zero_point, largest), torch.cat(parts, -1)


def upsampled_codes(x: Tensor, factor: int, scale: float, zero_point: int, largest: int) -> Tensor:
    """The second operator in plain torch: int8 [B, factor H, factor W, C] of [B, H, W, C]."""
    codes = exact.nhwc_codes(x, None, scale, zero_point, largest)
    return codes.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def _parts(x: Tensor, second: Tensor | None) -> list[Tensor]:
    return [x] if second is None else [x, second]


def _check_entry(second: Tensor | None, added: Tensor | None, *grids: list[float] | list[int]) -> None:
    wanted = 1 if second is None else 2
    if added is not None or any(len(numbers) != wanted for numbers in grids):
        raise KernelError(f"entry codes: want {wanted} grids and nothing added, got {[len(g) for g in grids]}")


def _entry_meta(x: Tensor, second: Tensor | None, added: Tensor | None, *rest: object) -> tuple[Tensor, Tensor]:
    channels = sum(part.shape[-1] for part in _parts(x, second))
    shape = (*x.shape[:-1], channels)
    return x.new_empty(shape, dtype=torch.int8), x.new_empty(shape, dtype=torch.int8)


def _upsampled_meta(x: Tensor, factor: int, *grid: object) -> Tensor:
    b, h, w, c = x.shape
    return x.new_empty((b, factor * h, factor * w, c), dtype=torch.int8)


def _entry_on_gpu(*arguments: object) -> tuple[Tensor, Tensor]:
    from mezzotint.kernels.triton import launch_norms  # Triton is an extra, and slow to import

    _check_entry(arguments[1], arguments[2], *arguments[-3:])  # type: ignore[arg-type]
    return launch_norms.nhwc_entry_codes(*arguments)


def _upsampled_on_gpu(x: Tensor, factor: int, scale: float, zero_point: int, largest: int) -> Tensor:
    from mezzotint.kernels.triton import launch_norms

    return launch_norms.nhwc_upsampled_codes(x, factor, scale, zero_point, largest)


for _name, _meta, _cpu, _gpu in (
    ("nhwc_entry_codes", _entry_meta, entry_codes, _entry_on_gpu),
    ("nhwc_upsampled_codes", _upsampled_meta, upsampled_codes, _upsampled_on_gpu),
):
    _OPERATORS.define(f"{_name}{_SCHEMAS[_name]}", tags=(torch.Tag.pt2_compliant_tag,))
    _OPERATORS.impl(_name, _meta, "Meta")
    _OPERATORS.impl(_name, _cpu, "CPU")
    _OPERATORS.impl(_name, _gpu, "CUDA")
