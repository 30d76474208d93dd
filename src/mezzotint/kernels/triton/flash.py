"""The kernel behind `attention`: online softmax over blocks of keys, a block of queries to a program.

Heads of 40, 80 and 160 channels are no powers of two, which tiles must be. Each is cut in two powers of two, 32 + 16,
64 + 16, 128 + 32 (`pieces`), the last padded with zeros; 64, 128 and 256 would be up to a third more work. Exponentials
are of base 2, with log2(e) inside the factor of the scores: one multiply-add and one ex2 each.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mezzotint.kernels.triton.epilogue import quantized
from mezzotint.kernels.triton.launch import step_of

_NO_GRID = (1.0, 0, 255)


class Tile(NamedTuple):
    """Queries and keys of a block, warps, stages of the pipeline of keys."""

    queries: int
    keys: int
    warps: int
    stages: int


def tile_of(head: int, queries: int, keys: int) -> Tile:
    """The tile for heads of `head` channels, many queries over `keys` keys."""
    rows = 128 if queries > 64 else 64
    if keys <= 96:
        return Tile(rows, 32 if keys > 64 or keys <= 32 else 64, 4, 2)
    if head <= 64:
        return Tile(rows, 128, 8 if rows == 128 else 4, 3)
    return Tile(rows, 64, 8 if rows == 128 else 4, 2)


def pieces(head: int) -> tuple[int, int]:
    """Two powers of two that cover `head` channels; the second is 0 where the first does."""
    whole = 1 << (head.bit_length() - 1)
    if whole == head:
        return max(head, 16), 0
    rest = max(1 << (head - whole - 1).bit_length(), 16)
    return (whole, rest) if whole >= 16 and whole + rest < 2 * whole else (max(2 * whole, 16), 0)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    scale: float,
    grid: tuple[float, int, int] | None,
    tile: Tile | None = None,
    cut: tuple[int, int] | None = None,
) -> Tensor:
    """The output of `mezzotint::flash_attention`, or with a grid (step, zero_point, largest) its signed codes."""
    batch, queries, channels = q.shape
    keys, head = k.shape[1], channels // heads
    q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    out = torch.empty(q.shape, dtype=q.dtype if grid is None else torch.int8, device=q.device)
    tile = tile or tile_of(head, queries, keys)
    first, second = cut or pieces(head)
    programs = (triton.cdiv(queries, tile.queries), batch * heads)
    with torch.cuda.device_of(q):
        _flash[programs](
            q, k, v, out, scale * math.log2(math.e), *step_of(*(grid or _NO_GRID)), queries, keys,
            q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            HEADS=heads, HEAD=head, FIRST=first, SECOND=second, QUERIES=tile.queries, KEYS=tile.keys,
            EVEN=queries % tile.queries == 0, CODES=grid is not None,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out


@triton.jit
def _flash(
    q, k, v, out, factor, step, inverse, zero_point, largest, queries, keys,
    q_batch, q_row, k_batch, k_row, v_batch, v_row,
    HEADS: tl.constexpr, HEAD: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr, EVEN: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = tl.program_id(1) % HEADS
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    inside = rows < queries
    c1 = tl.arange(0, FIRST)
    q += batch * q_batch + head * HEAD
    k += batch * k_batch + head * HEAD
    v += batch * v_batch + head * HEAD
    q1 = _tile(q, rows, c1, q_row, inside, HEAD, EVEN)
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    y1 = tl.zeros([QUERIES, FIRST], tl.float32)
    if SECOND > 0:
        c2 = FIRST + tl.arange(0, SECOND)
        q2 = _tile(q, rows, c2, q_row, inside, HEAD, EVEN)
        y2 = tl.zeros([QUERIES, SECOND], tl.float32)
    whole = keys // KEYS * KEYS
    for start in tl.range(0, whole, KEYS):
        at = start + tl.arange(0, KEYS)
        k1 = _tile(k, at, c1, k_row, at < keys, HEAD, True)
        scores = tl.dot(q1, tl.trans(k1))
        if SECOND > 0:
            k2 = _tile(k, at, c2, k_row, at < keys, HEAD, True)
            scores = tl.dot(q2, tl.trans(k2), scores)
        higher = tl.maximum(highest, tl.max(scores, 1) * factor)
        p = tl.math.exp2(scores * factor - higher[:, None])
        shrink = tl.math.exp2(highest - higher)
        total = total * shrink + tl.sum(p, 1)
        highest = higher
        v1 = _tile(v, at, c1, v_row, at < keys, HEAD, True)
        weights = p.to(v1.dtype)
        y1 = tl.dot(weights, v1, y1 * shrink[:, None])
        if SECOND > 0:
            v2 = _tile(v, at, c2, v_row, at < keys, HEAD, True)
            y2 = tl.dot(weights, v2, y2 * shrink[:, None])
    if whole < keys:
        at = whole + tl.arange(0, KEYS)
        there = at < keys
        k1 = _tile(k, at, c1, k_row, there, HEAD, False)
        scores = tl.dot(q1, tl.trans(k1))
        if SECOND > 0:
            k2 = _tile(k, at, c2, k_row, there, HEAD, False)
            scores = tl.dot(q2, tl.trans(k2), scores)
        scores = tl.where(there[None, :], scores * factor, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        p = tl.math.exp2(scores - higher[:, None])
        shrink = tl.math.exp2(highest - higher)
        total = total * shrink + tl.sum(p, 1)
        v1 = _tile(v, at, c1, v_row, there, HEAD, False)
        weights = p.to(v1.dtype)
        y1 = tl.dot(weights, v1, y1 * shrink[:, None])
        if SECOND > 0:
            v2 = _tile(v, at, c2, v_row, there, HEAD, False)
            y2 = tl.dot(weights, v2, y2 * shrink[:, None])
    out += batch * queries * HEADS * HEAD + head * HEAD
    _store(out, y1 / total[:, None], rows, c1, inside, step, inverse, zero_point, largest, HEADS * HEAD, HEAD, CODES)
    if SECOND > 0:
        _store(
            out, y2 / total[:, None], rows, c2, inside, step, inverse, zero_point, largest, HEADS * HEAD, HEAD, CODES
        )


@triton.jit
def _tile(x, rows, columns, row, inside, HEAD: tl.constexpr, EVEN: tl.constexpr):
    """[rows, columns] of a head; what lies outside is zero."""
    at = x + rows[:, None].to(tl.int64) * row + columns[None, :]
    if EVEN:
        return tl.load(at, mask=(columns < HEAD)[None, :], other=0.0)
    return tl.load(at, mask=inside[:, None] & (columns < HEAD)[None, :], other=0.0)


@triton.jit
def _store(
    out, y, rows, columns, inside, step, inverse, zero_point, largest,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    if CODES:
        y = quantized(y, step, inverse, zero_point, largest)
    at = out + rows[:, None].to(tl.int64) * WIDTH + columns[None, :]
    tl.store(at, y.to(out.dtype.element_ty), mask=inside[:, None] & (columns < HEAD)[None, :])
