"""Attention of codes on CUDA: tiles, the padding of heads, and the launches of `int_flash`. Needs Triton."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from mezzotint.kernels.triton.arguments import step_of
from mezzotint.kernels.triton.int_attention import Grid, Grids
from mezzotint.kernels.triton.int_flash import attend_codes, prepare_keys

CHUNK = 128  # keys that are made ready together; a tile's keys divide it or are a multiple of it
_MAGIC, _MAGIC_BITS = 12582912.0, 0x4B400000  # 1.5 * 2**23
_MOST_MAGIC = 128  # channels of a head whose scores stay below 2**22
_NO_GRID = (1.0, 0, 255)


class IntTile(NamedTuple):
    """Queries and keys of a block, warps, stages of the pipeline of keys."""

    queries: int
    keys: int
    warps: int
    stages: int


class Heads(NamedTuple):
    """Channels of a head as products take them, in two powers of two each: of scores, and of values with the ones."""

    scores: tuple[int, int]
    values: tuple[int, int]


class Ready(NamedTuple):
    """Keys and values as `int_flash.prepare_keys` leaves them, and how many there are."""

    k: Tensor
    start: Tensor
    v: Tensor
    sums: Tensor
    keys: int


def tile_of(head: int, queries: int, keys: int) -> IntTile:
    """The tile for heads of `head` channels, many queries over `keys` keys."""
    rows = 128 if queries > 64 else 64
    if keys <= 128:
        return IntTile(rows, max(32, triton.next_power_of_2(keys)), rows // 16, 1)
    if keys <= 256:
        return IntTile(64, 256, 4, 1)
    if head > 128:
        return IntTile(64, 64, 4, 2)
    return IntTile(rows, 128 if head <= 64 else 64, rows // 16, 3)


def heads_of(head: int) -> Heads:
    """How heads of `head` channels are padded and cut: an int8 product takes 32 channels at a time."""
    return Heads(_cut(head, 32), _cut(head + 1, 16))


def _cut(count: int, least: int) -> tuple[int, int]:
    """Two powers of two of at least `least` that cover `count` with less than one would, else that one and 0."""
    whole = max(1 << (count.bit_length() - 1), least)
    if whole >= count:
        return whole, 0
    rest = max(1 << (count - whole - 1).bit_length(), least)
    return (whole, rest) if rest < whole else (2 * whole, 0)


def attended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    factor: float,
    grids: Grids,
    multiplier: float,
    dtype: torch.dtype,
    grid: Grid | None,
) -> Tensor:
    """`prepare`, then `attend`: the equations of `int_attention`, with the tile for this shape.

    Args:
        factor: of the integer scores: q_scale * k_scale * scale.
        multiplier: p_scale * v_scale.
        grid: of the result, which is codes then; `dtype` must be int8.
    """
    tile = tile_of(q.shape[2] // heads, q.shape[1], k.shape[1])
    return attend(q, prepare(k, v, heads, grids, tile), heads, factor, grids, multiplier, dtype, grid, tile)


def prepare(k: Tensor, v: Tensor, heads: int, grids: Grids, tile: IntTile) -> Ready:
    """What `attend` reads of k and v [B, M, C], floats or signed codes, padded for tiles of `tile.keys`."""
    batch, keys, head = *k.shape[:2], k.shape[2] // heads
    k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (k, v))
    scores, values = map(sum, heads_of(head))
    chunks, wide = padded_chunks(keys, tile), triton.next_power_of_2(max(scores, values))
    many, padded = batch * heads, chunks * CHUNK
    ready = (
        torch.empty((many, padded, scores), dtype=torch.int8, device=k.device),
        torch.empty((many, padded), dtype=torch.int32, device=k.device),
        torch.empty((many, values, padded), dtype=torch.int8, device=k.device),
        torch.empty((many, chunks, values), dtype=torch.int32, device=k.device),
    )
    with torch.cuda.device_of(k):
        prepare_keys[(chunks, many)](
            k, v, *ready, *step_of(*grids.k), *step_of(*grids.v), grids.q[1] - 128,
            _MAGIC_BITS if head <= _MOST_MAGIC else 0, keys, chunks, k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            HEADS=heads, HEAD=head, CHUNK=CHUNK, CHANNELS=wide, SCORES=scores, VALUES=values,
            K_CODES=k.dtype == torch.int8, V_CODES=v.dtype == torch.int8, num_warps=max(4, wide // 16),
            enable_fp_fusion=False,
        )  # fmt: skip
    return Ready(*ready, keys)


def padded_chunks(keys: int, tile: IntTile) -> int:
    """Chunks of keys that whole tiles fill."""
    return triton.cdiv(keys, max(tile.keys, CHUNK)) * max(tile.keys, CHUNK) // CHUNK


def attend(
    q: Tensor,
    ready: Ready,
    heads: int,
    factor: float,
    grids: Grids,
    multiplier: float,
    dtype: torch.dtype,
    grid: Grid | None,
    tile: IntTile,
) -> Tensor:
    """The result [B, N, C] in `dtype`, with a grid its signed codes; q is floats or signed codes."""
    batch, queries, head = *q.shape[:2], q.shape[2] // heads
    q = q if q.stride(2) == 1 else q.contiguous()
    out = torch.empty(q.shape, dtype=dtype, device=q.device)
    (k1, k2), (v1, v2) = heads_of(head)
    p_scale, p_zero, p_largest = grids.p
    odd = p_zero % 2  # a sum with M and an odd number would round halves to odd codes
    base = _MAGIC + (p_zero - 128 - odd)
    step, chunks = step_of(*grids.p)[0], ready.sums.shape[1]
    with torch.cuda.device_of(q):
        attend_codes[(triton.cdiv(queries, tile.queries), batch * heads)](
            q, *ready[:4], out, factor * math.log2(math.e), step, base, base + (p_largest - p_zero), p_zero - 128,
            grids.v[1] - 128, multiplier, *step_of(*grids.q), *step_of(*(grid or _NO_GRID)), queries, ready.keys,
            chunks, q.stride(0), q.stride(1), HEADS=heads, HEAD=head, K1=k1, K2=k2, V1=v1, V2=v2, QUERIES=tile.queries,
            KEYS=tile.keys, CHUNK=CHUNK, SINGLE=ready.keys <= tile.keys, MAGIC=head <= _MOST_MAGIC, ODD=odd,
            CLAMP=1 / p_scale > p_largest - p_zero + 0.49, Q_CODES=q.dtype == torch.int8, CODES=grid is not None,
            num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=False,
        )  # fmt: skip
    return out
