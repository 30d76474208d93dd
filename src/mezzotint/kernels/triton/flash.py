"""The kernel behind `attention` for few keys: all keys and values of a head stay with a program, queries pass by.

With some 80 keys (a prompt has 77) the scores of a block of queries fit in registers, so softmax needs no running
maximum and no second scaling. What is left is to read q and write the result, as codes if they are wanted.

Heads of 40, 80 and 160 channels are no powers of two, which tiles must be; nor are 77 keys. Each is cut in two powers
of two, 32 + 16, 64 + 16, 128 + 32, and 64 + 16 (`pieces`), the last padded with zeros; 64, 128 and 256 would be up to
a third more work. Exponentials are of base 2, with log2(e) inside the factor of the scores: one multiply-add and one
ex2 each.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mezzotint.kernels.triton.arguments import step_of
from mezzotint.kernels.triton.epilogue import quantized

_NO_GRID = (1.0, 0, 255)
_PROGRAMS = 1056  # about two rounds of four on 132 multiprocessors


class Tile(NamedTuple):
    """Queries of a block, warps, stages of the pipeline of queries."""

    queries: int
    warps: int
    stages: int


def tile_of(head: int) -> Tile:
    """The tile for heads of `head` channels."""
    return Tile(64, 4, 2 if head > 64 else 3)


def pieces(count: int) -> tuple[int, int]:
    """Two powers of two that cover `count` channels or keys; the second is 0 where the first does."""
    whole = 1 << (count.bit_length() - 1)
    if whole == count:
        return max(count, 16), 0
    rest = max(1 << (count - whole - 1).bit_length(), 16)
    return (whole, rest) if whole >= 16 and whole + rest < 2 * whole else (max(2 * whole, 16), 0)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    scale: float,
    grid: tuple[float, int, int] | None,
    tile: Tile | None = None,
) -> Tensor:
    """The output of `mezzotint::flash_attention` for up to `attention.FEW_KEYS` keys and scale > 0.

    With a grid (step, zero_point, largest) its signed codes.
    """
    batch, queries, channels = q.shape
    keys, head = k.shape[1], channels // heads
    q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    out = torch.empty(q.shape, dtype=q.dtype if grid is None else torch.int8, device=q.device)
    tile = tile or tile_of(head)
    (first, second), (keys1, keys2) = pieces(head), pieces(keys)
    blocks = triton.cdiv(queries, tile.queries)
    together = max(1, blocks * batch * heads // _PROGRAMS)
    with torch.cuda.device_of(q):
        _flash[(triton.cdiv(blocks, together), batch * heads)](
            q, k, v, out, scale * math.log2(math.e), *step_of(*(grid or _NO_GRID)), queries, keys,
            together * tile.queries, q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            HEADS=heads, HEAD=head, FIRST=first, SECOND=second, QUERIES=tile.queries, KEYS1=keys1, KEYS2=keys2,
            ALL1=keys >= keys1, CODES=grid is not None, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out


def softmax(scores: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """softmax(scale * scores) over the last axis of float32 scores, scale > 0, rounded to `dtype` as it is written."""
    keys = scores.shape[-1]
    rows, block = scores.numel() // keys, triton.next_power_of_2(keys)
    out, together = torch.empty(scores.shape, dtype=dtype, device=scores.device), max(1, 4096 // block)
    with torch.cuda.device_of(scores):
        _softmax[(triton.cdiv(rows, together),)](
            scores.contiguous(), out, rows, keys, scale * math.log2(math.e), ROWS=together, KEYS=block,
            num_warps=max(4, min(16, block // 512)),
        )  # fmt: skip
    return out


@triton.jit
def _softmax(scores, out, rows, keys, factor, ROWS: tl.constexpr, KEYS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    key = tl.arange(0, KEYS)
    at = row[:, None].to(tl.int64) * keys + key[None, :]
    there = (row < rows)[:, None] & (key < keys)[None, :]
    s = tl.load(scores + at, mask=there, other=float("-inf"))
    highest = tl.where(row < rows, tl.max(s, 1), 0.0)
    p = tl.math.exp2((s - highest[:, None]) * factor)
    p = p * (1.0 / tl.sum(p, 1))[:, None]
    tl.store(out + at, p.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["zero_point", "largest"])
def _flash(
    q, k, v, out, factor, step, inverse, zero_point, largest, queries, keys, per_program,
    q_batch, q_row, k_batch, k_row, v_batch, v_row,
    HEADS: tl.constexpr, HEAD: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, QUERIES: tl.constexpr,
    KEYS1: tl.constexpr, KEYS2: tl.constexpr, ALL1: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = tl.program_id(1) % HEADS
    q += batch * q_batch + head * HEAD
    k += batch * k_batch + head * HEAD
    v += batch * v_batch + head * HEAD
    out += batch * queries * HEADS * HEAD + head * HEAD
    c1 = tl.arange(0, FIRST)
    at1 = tl.arange(0, KEYS1)
    k11 = _tile(k, at1, c1, k_row, keys, HEAD)
    v11 = _tile(v, at1, c1, v_row, keys, HEAD)
    if SECOND > 0:
        c2 = FIRST + tl.arange(0, SECOND)
        k12 = _tile(k, at1, c2, k_row, keys, HEAD)
        v12 = _tile(v, at1, c2, v_row, keys, HEAD)
    if KEYS2 > 0:
        at2 = KEYS1 + tl.arange(0, KEYS2)
        k21 = _tile(k, at2, c1, k_row, keys, HEAD)
        v21 = _tile(v, at2, c1, v_row, keys, HEAD)
        if SECOND > 0:
            k22 = _tile(k, at2, c2, k_row, keys, HEAD)
            v22 = _tile(v, at2, c2, v_row, keys, HEAD)
    first = tl.program_id(0) * per_program
    for start in tl.range(first, tl.minimum(first + per_program, queries), QUERIES):
        rows = start + tl.arange(0, QUERIES)
        q1 = _tile(q, rows, c1, q_row, queries, HEAD)
        s1 = tl.dot(q1, tl.trans(k11))
        if SECOND > 0:
            q2 = _tile(q, rows, c2, q_row, queries, HEAD)
            s1 = tl.dot(q2, tl.trans(k12), s1)
        if not ALL1:
            s1 = tl.where((at1 < keys)[None, :], s1, float("-inf"))
        highest = tl.max(s1, 1)
        if KEYS2 > 0:
            s2 = tl.dot(q1, tl.trans(k21))
            if SECOND > 0:
                s2 = tl.dot(q2, tl.trans(k22), s2)
            s2 = tl.where((at2 < keys)[None, :], s2, float("-inf"))
            highest = tl.maximum(highest, tl.max(s2, 1))
        highest = highest * factor
        p1 = tl.math.exp2(s1 * factor - highest[:, None])
        total = tl.sum(p1, 1)
        p1 = p1.to(v11.dtype)
        y1 = tl.dot(p1, v11)
        if SECOND > 0:
            y2 = tl.dot(p1, v12)
        if KEYS2 > 0:
            p2 = tl.math.exp2(s2 * factor - highest[:, None])
            total += tl.sum(p2, 1)
            p2 = p2.to(v11.dtype)
            y1 = tl.dot(p2, v21, y1)
            if SECOND > 0:
                y2 = tl.dot(p2, v22, y2)
        share = (1.0 / total)[:, None]
        _store(out, y1 * share, rows, c1, queries, step, inverse, zero_point, largest, HEADS * HEAD, HEAD, CODES)
        if SECOND > 0:
            _store(out, y2 * share, rows, c2, queries, step, inverse, zero_point, largest, HEADS * HEAD, HEAD, CODES)


@triton.jit
def _tile(x, rows, columns, row, count, HEAD: tl.constexpr):
    """[rows, columns] of a head; what lies outside is zero."""
    at = x + rows[:, None].to(tl.int64) * row + columns[None, :]
    return tl.load(at, mask=(rows < count)[:, None] & (columns < HEAD)[None, :], other=0.0)


@triton.jit
def _store(
    out, y, rows, columns, count, step, inverse, zero_point, largest,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    if CODES:
        y = quantized(y, step, inverse, zero_point, largest)
    at = out + rows[:, None].to(tl.int64) * WIDTH + columns[None, :]
    tl.store(at, y.to(out.dtype.element_ty), mask=(rows < count)[:, None] & (columns < HEAD)[None, :])
