"""Attention of codes for all heads at once, as the integer model has it: two operators.

    mezzotint::int_attention          in a float dtype
    mezzotint::int_attention_codes    the same, then equation (5) of the package: codes for the output projection

    s   = float32(sum (q_q - qz) (k_q - kz)) * (q_scale * k_scale) * scale                exact int32          (1)
    p_q = clamp(round(softmax(s) / p_scale) + pz, 0, p_largest)                                                (2)
    y   = float32(sum (p_q - pz) (v_q - vz)) * (p_scale * v_scale)                        exact int32          (3)

    name      shape       meaning
    q         [B, N, C]   floats, or signed codes of q's grid; `heads` heads of d = C / heads channels side by side
    k, v      [B, M, C]   likewise; M <= 33025, or sums leave int32
    grids     4           of q, k, p, v, as lists of scales, zero points 0..255 and largest codes

On a CPU (1) to (3) are `layers.int_matmul` and torch's softmax, bit for bit. The kernels (`int_flash`) have the same
integers; their exponentials are off by 2 units in the last place, s by what float32 leaves of it, and sums come in
another order, so a code of (2) differs by one where softmax(s) / p_scale lies within some 1e-6 of itself from the
middle between two codes. They need a second product of q and k and a second exponential, because a code needs the
finished sum of its row. See `attention` for the other way, products of floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from mezzotint.errors import KernelError
from mezzotint.kernels import reference
from mezzotint.kernels.contract import CODE_MAX, INT32_MAX, Paired
from mezzotint.kernels.triton import exact
from mezzotint.kernels.triton.operands import SHIFT

Grid = tuple[float, int, int]  # scale, zero_point 0..255, largest code
_OPERATORS = torch.library.Library("mezzotint", "FRAGMENT")
_SCHEMA = "Tensor q, Tensor k, Tensor v, int heads, float scale, float[] scales, int[] zero_points, int[] largest_codes"
MOST_CHANNELS = 256  # of a head
MOST_KEYS = INT32_MAX // CODE_MAX**2
_SCORES_AT_ONCE = 1 << 24  # of the exact form


@dataclass(frozen=True)
class Grids:
    """The grids of q, k, the probabilities and v."""

    q: Grid
    k: Grid
    p: Grid
    v: Grid

    def arguments(self) -> tuple[list[float], list[int], list[int]]:
        """As the operators take them."""
        grids = (self.q, self.k, self.p, self.v)
        return [grid[0] for grid in grids], [grid[1] for grid in grids], [grid[2] for grid in grids]

    @classmethod
    def of(cls, scales: Sequence[float], zero_points: Sequence[int], largest_codes: Sequence[int]) -> Grids:
        """From the arguments of an operator."""
        return cls(*zip(scales, zero_points, largest_codes, strict=True))


def int_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, grids: Grids, *, dtype: torch.dtype
) -> Float[Tensor, "b n c"]:
    """Equations (1) to (3), rounded to `dtype`."""
    return torch.ops.mezzotint.int_attention(q, k, v, heads, scale, *grids.arguments(), dtype)


def int_attention_codes(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, grids: Grids, grid: Grid
) -> Int8[Tensor, "b n c"]:
    """Signed codes on `grid` of equation (3), not rounded in between."""
    return torch.ops.mezzotint.int_attention_codes(q, k, v, heads, scale, *grids.arguments(), *grid)


def multipliers(scales: Sequence[float]) -> tuple[float, float]:
    """q_scale * k_scale and p_scale * v_scale as float32 products."""
    q, k, p, v = torch.tensor(scales, dtype=torch.float32)
    return float(q * k), float(p * v)


def exact_int_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    scale: float,
    scales: list[float],
    zero_points: list[int],
    largest_codes: list[int],
    dtype: torch.dtype,
) -> Tensor:
    """`int_attention` in plain torch."""
    return _attend(q, k, v, heads, scale, scales, zero_points, largest_codes).to(dtype)


def exact_int_attention_codes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    scale: float,
    scales: list[float],
    zero_points: list[int],
    largest_codes: list[int],
    step: float,
    zero_point: int,
    largest: int,
) -> Tensor:
    """`int_attention_codes` in plain torch."""
    y = _attend(q, k, v, heads, scale, scales, zero_points, largest_codes)
    return exact.nhwc_codes(y, None, step, zero_point, largest)


def codes_of_probabilities(q_q: Tensor, k_q: Tensor, scale: float, grids: Grids) -> UInt8[Tensor, "*h n m"]:
    """Equations (1) and (2) of heads apart: codes [*h, N, d] and [*h, M, d], 0..255."""
    multiplier, _ = multipliers(grids.arguments()[0])
    scores = reference.prepare_matmul(Paired(grids.q[1], grids.k[1], multiplier))(q_q, k_q.mT) * scale
    return _unsigned(exact.nhwc_codes(scores.softmax(-1), None, *grids.p))


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    scale: float,
    scales: list[float],
    zero_points: list[int],
    largest_codes: list[int],
) -> Float[Tensor, "b n c"]:
    """In float32, a few heads at a time."""
    _check(q, k, v, heads, scale, scales, zero_points, largest_codes)
    grids = Grids.of(scales, zero_points, largest_codes)
    product = reference.prepare_matmul(Paired(grids.p[1], grids.v[1], multipliers(scales)[1]))
    q_q, k_q, v_q = (_apart(x, heads, grid) for x, grid in ((q, grids.q), (k, grids.k), (v, grids.v)))
    count = max(1, _SCORES_AT_ONCE // (q.shape[1] * k.shape[1]))
    parts = [
        product(codes_of_probabilities(a, b, scale, grids), c)
        for a, b, c in zip(q_q.split(count), k_q.split(count), v_q.split(count), strict=True)
    ]
    return torch.cat(parts).unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)


def _apart(x: Tensor, heads: int, grid: Grid) -> UInt8[Tensor, "bh n d"]:
    codes = x if x.dtype == torch.int8 else exact.nhwc_codes(x, None, *grid)
    return _unsigned(codes).unflatten(2, (heads, -1)).transpose(1, 2).flatten(0, 1)


def _unsigned(codes: Int8[Tensor, "*any"]) -> UInt8[Tensor, "*any"]:
    return (codes.to(torch.int16) + SHIFT).to(torch.uint8)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    scale: float,
    scales: list[float],
    zero_points: list[int],
    largest_codes: list[int],
) -> None:
    b, _, c = q.shape
    if k.shape != v.shape or k.shape[0] != b or k.shape[2] != c or c % heads or not k.shape[1]:
        shapes = [list(x.shape) for x in (q, k, v)]
        raise KernelError(f"attention: want q [B, N, C], k and v [B, M, C], C a multiple of {heads}, got {shapes}")
    if k.shape[1] > MOST_KEYS:
        raise KernelError(f"attention: sums over {k.shape[1]} keys do not fit int32; at most {MOST_KEYS}")
    if not (len(scales) == len(zero_points) == len(largest_codes) == 4 and scale > 0 and min(scales) > 0):
        raise KernelError(f"attention: want four grids and positive scales, got {scale} and {scales}")
    others = [value for value in (*zero_points, *largest_codes) if not 0 <= value <= CODE_MAX]
    if others:
        raise KernelError(f"attention: zero points and largest codes must lie in 0..{CODE_MAX}, got {others[0]}")


def _meta(q: Tensor, *rest: Any) -> Tensor:
    _check(q, *rest[:-1])
    return q.new_empty(q.shape, dtype=rest[-1])


def _codes_meta(q: Tensor, *rest: Any) -> Tensor:
    _check(q, *rest[:-3])
    return q.new_empty(q.shape, dtype=torch.int8)


def _on_gpu(*arguments: Any) -> Tensor:
    return _launched(arguments[:-1], arguments[-1], None)


def _codes_on_gpu(*arguments: Any) -> Tensor:
    return _launched(arguments[:-3], torch.int8, arguments[-3:])


def _launched(arguments: tuple[Any, ...], dtype: torch.dtype, grid: Any) -> Tensor:
    """`arguments` up to the grids of q, k, p and v."""
    _check(*arguments)
    q, k, v, heads, scale, *numbers = arguments
    if q.shape[2] > MOST_CHANNELS * heads:
        raise KernelError(f"int8 attention: heads have up to {MOST_CHANNELS} channels, got {q.shape[2] // heads}")
    from mezzotint.kernels.triton import launch_attention  # Triton is an extra, and slow to import

    qk, pv = multipliers(numbers[0])
    return launch_attention.attended(q, k, v, heads, qk * scale, Grids.of(*numbers), pv, dtype, grid)


for _name, _more, _shape_of, _cpu, _gpu in (
    ("int_attention", "ScalarType dtype", _meta, exact_int_attention, _on_gpu),
    (
        "int_attention_codes",
        "float step, int zero_point, int largest",
        _codes_meta,
        exact_int_attention_codes,
        _codes_on_gpu,
    ),
):
    _OPERATORS.define(f"{_name}({_SCHEMA}, {_more}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
    _OPERATORS.impl(_name, _shape_of, "Meta")
    _OPERATORS.impl(_name, _cpu, "CPU")
    _OPERATORS.impl(_name, _gpu, "CUDA")
