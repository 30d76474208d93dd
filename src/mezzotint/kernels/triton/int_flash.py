"""The kernels behind `int_attention`: keys and values made ready once, then two passes over the keys for every query.

    ready     codes of k with the sums that q's zero point asks for; codes of v with the keys last, as int8 wants them
    pass 1    scores as integers, the largest of a row and the sum of its exponentials
    pass 2    the same scores again, p = 2**(..) / sum, its code, the product of codes with v

Where one tile holds all keys (`SINGLE`), pass 1 keeps its exponentials and there is no pass 2.

Zero points. With q' = qz - 128 and so on, signed codes q, k, p, v, and sums over channels or keys:

    sum (q - q')(k - k') = sum (q - q') k + (what is the same for every key: softmax does not see it)               (1)
    sum (p - p')(v - v') = sum p v - p' sum v - v' sum p + M p' v'                                                  (2)

-q' sum k is what the scores of a key start from, sum v is taken while v is made ready, and sum p is one more channel of
v that holds ones. Keys beyond the last are zeros in k, v and the ones, and start from minus infinity.

Scores are read as floats without a conversion: they start from the bits of M = 1.5 * 2**23, so that their bits are the
float M + s while |s| < 2**22 (heads of up to 128 channels). M falls out of s - max. A code is rounded by a sum with M
as well, and its low byte is stored.

A fragment of scores leaves a lane columns 2 i and 2 i + 1 of every eight; a fragment of int8 factors wants 4 i to
4 i + 3 of every sixteen. The order of keys in a sum is free, so v lies in the order in which scores come: no lane hands
a probability to another.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mezzotint.kernels.triton.epilogue import power_of_2, quantized

_NEVER = tl.constexpr(-0x800000)  # the bits of minus infinity


@triton.jit(do_not_specialize=["k_zero", "k_largest", "v_zero", "v_largest", "q_zero"])
def prepare_keys(
    k, v, k_out, first, v_out, sums, k_step, k_inverse, k_zero, k_largest, v_step, v_inverse, v_zero, v_largest,
    q_zero, offset, keys, chunks, k_batch, k_row, v_batch, v_row,
    HEADS: tl.constexpr, HEAD: tl.constexpr, CHUNK: tl.constexpr, CHANNELS: tl.constexpr, SCORES: tl.constexpr,
    VALUES: tl.constexpr, K_CODES: tl.constexpr, V_CODES: tl.constexpr,
):  # fmt: skip
    """A chunk of keys of a head.

    k_out    int8 [B h, M, SCORES]   codes, zeros beyond the head and beyond the keys
    first    int32 [B h, M]          offset - q' sum k; minus infinity beyond the keys
    v_out    int8 [B h, VALUES, M]   codes, keys in the order of fragments; ones in channel HEAD
    sums     int32 [B h, M / CHUNK, VALUES]
    """
    part = tl.program_id(1).to(tl.int64)
    batch, head = part // HEADS, part % HEADS
    place = tl.arange(0, CHUNK)
    c = tl.arange(0, CHANNELS)
    at = tl.program_id(0) * CHUNK + place
    k += batch * k_batch + head * HEAD
    codes = _codes(k, at, c, k_row, keys, k_step, k_inverse, k_zero, k_largest, HEAD, K_CODES)
    rows = part * chunks * CHUNK + at
    tl.store(k_out + rows[:, None] * SCORES + c[None, :], codes, mask=(c < SCORES)[None, :])
    begin = offset - q_zero * tl.sum(codes.to(tl.int32), 1)
    tl.store(first + rows, tl.where(at < keys, begin, _NEVER))

    v += batch * v_batch + head * HEAD
    # position 4 i + 2 a + b of every sixteen holds key 8 a + 2 i + b
    key = (at & -16) | ((at >> 1 & 1) << 3) | ((at >> 2 & 3) << 1) | (at & 1)
    codes = _codes(v, key, c, v_row, keys, v_step, v_inverse, v_zero, v_largest, HEAD, V_CODES)
    codes = tl.where((key < keys)[:, None] & (c == HEAD)[None, :], 1, codes).to(tl.int8)
    column = (part * VALUES + c)[:, None] * (chunks * CHUNK) + at[None, :]
    tl.store(v_out + column, tl.trans(codes), mask=(c < VALUES)[:, None])
    tl.store(sums + (part * chunks + tl.program_id(0)) * VALUES + c, tl.sum(codes.to(tl.int32), 0), mask=c < VALUES)


@triton.jit
def _codes(
    x, rows, c, row, count, step, inverse, zero_point, largest, HEAD: tl.constexpr, CODES: tl.constexpr
):  # fmt: skip
    """Signed codes of a head's [rows, c], zero outside."""
    inside = (rows < count)[:, None] & (c < HEAD)[None, :]
    values = tl.load(x + rows[:, None].to(tl.int64) * row + c[None, :], mask=inside, other=0)
    if CODES:
        return values
    else:
        return tl.where(inside, quantized(values.to(tl.float32), step, inverse, zero_point, largest), 0).to(tl.int8)


@triton.jit(do_not_specialize=["p_zero", "v_zero", "q_zero", "q_largest", "zero_point", "largest"])
def attend_codes(
    q, k, first, v, sums, out, factor, p_step, p_base, p_most, p_zero, v_zero, multiplier, q_step, q_inverse, q_zero,
    q_largest, step, inverse, zero_point, largest, queries, keys, chunks, q_batch, q_row,
    HEADS: tl.constexpr, HEAD: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, V1: tl.constexpr, V2: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr, SINGLE: tl.constexpr, MAGIC: tl.constexpr,
    ODD: tl.constexpr, CLAMP: tl.constexpr, Q_CODES: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    """A block of queries of a head; `q` [B, N, h d], the others as `prepare_keys` leaves them."""
    part = tl.program_id(1).to(tl.int64)
    batch, head = part // HEADS, part % HEADS
    padded = chunks * CHUNK
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    q += batch * q_batch + head * HEAD
    k += part * padded * (K1 + K2)
    v += part * padded * (V1 + V2)
    first += part * padded
    q1 = _codes(q, rows, tl.arange(0, K1), q_row, queries, q_step, q_inverse, q_zero, q_largest, HEAD, Q_CODES)
    q2 = q1
    if K2 > 0:
        more = K1 + tl.arange(0, K2)
        q2 = _codes(q, rows, more, q_row, queries, q_step, q_inverse, q_zero, q_largest, HEAD, Q_CODES)
    c1 = tl.arange(0, V1)
    c2 = V1 + tl.arange(0, V2 if V2 > 0 else V1)
    y1 = tl.zeros([QUERIES, V1], tl.int32)
    y2 = tl.zeros([QUERIES, V2 if V2 > 0 else 16], tl.int32)
    if SINGLE:
        scores = _scores(q1, q2, k, first, 0, K1, K2, KEYS, MAGIC)
        highest = tl.max(scores, 1)
        e = _exponentials(scores, highest, factor)
        p = _probabilities(e, tl.div_rn(1.0, tl.sum(e, 1) * p_step), p_base, p_most, QUERIES, KEYS, ODD, CLAMP)
        y1 = tl.dot(p, tl.trans(_values(v, 0, c1, padded, KEYS)), y1, out_dtype=tl.int32)
        if V2 > 0:
            y2 = tl.dot(p, tl.trans(_values(v, 0, c2, padded, KEYS)), y2, out_dtype=tl.int32)
    else:
        highest = tl.full([QUERIES], float("-inf"), tl.float32)
        total = tl.zeros([QUERIES], tl.float32)
        for start in tl.range(0, keys, KEYS):
            scores = _scores(q1, q2, k, first, start, K1, K2, KEYS, MAGIC)
            higher = tl.maximum(highest, tl.max(scores, 1))
            e = _exponentials(scores, higher, factor)
            total = total * power_of_2((highest - higher) * factor) + tl.sum(e, 1)
            highest = higher
        weight = tl.div_rn(1.0, total * p_step)
        for start in tl.range(0, keys, KEYS):
            scores = _scores(q1, q2, k, first, start, K1, K2, KEYS, MAGIC)
            e = _exponentials(scores, highest, factor)
            p = _probabilities(e, weight, p_base, p_most, QUERIES, KEYS, ODD, CLAMP)
            y1 = tl.dot(p, tl.trans(_values(v, start, c1, padded, KEYS)), y1, out_dtype=tl.int32)
            if V2 > 0:
                y2 = tl.dot(p, tl.trans(_values(v, start, c2, padded, KEYS)), y2, out_dtype=tl.int32)

    if HEAD < V1:
        ones = tl.sum(tl.where((c1 == HEAD)[None, :], y1, 0), 1)
    else:
        ones = tl.sum(tl.where((c2 == HEAD)[None, :], y2, 0), 1)
    same = v_zero * (keys * p_zero - ones)  # [QUERIES]
    sums += part * chunks * (V1 + V2)
    out += batch * queries * HEADS * HEAD + head * HEAD
    acc = y1 + (same[:, None] - p_zero * _added(sums, c1, chunks, V1 + V2)[None, :])
    _store(out, acc, rows, c1, queries, multiplier, step, inverse, zero_point, largest, HEADS * HEAD, HEAD, CODES)
    if V2 > 0:
        acc = y2 + (same[:, None] - p_zero * _added(sums, c2, chunks, V1 + V2)[None, :])
        _store(out, acc, rows, c2, queries, multiplier, step, inverse, zero_point, largest, HEADS * HEAD, HEAD, CODES)


@triton.jit
def _scores(
    q1, q2, k, first, start, K1: tl.constexpr, K2: tl.constexpr, KEYS: tl.constexpr, MAGIC: tl.constexpr
):  # fmt: skip
    """float32 [queries, KEYS]: integers plus M (or plus 0, without MAGIC) that lack what is the same along a row."""
    at = start + tl.arange(0, KEYS)
    row = k + at[:, None] * (K1 + K2)
    acc = tl.dot(q1, tl.trans(tl.load(row + tl.arange(0, K1)[None, :])), out_dtype=tl.int32)
    if K2 > 0:
        rest = tl.load(row + K1 + tl.arange(0, K2)[None, :])
        acc = tl.dot(q2, tl.trans(rest), acc, out_dtype=tl.int32)
    begin = tl.load(first + at)[None, :]
    if MAGIC:
        return (acc + begin).to(tl.float32, bitcast=True)
    else:
        return tl.where(begin == _NEVER, float("-inf"), (acc + begin).to(tl.float32))


@triton.jit
def _exponentials(scores, highest, factor):
    """2**((scores - highest) * factor), 1 for the largest: a multiply-add would leave what highest * factor loses."""
    return power_of_2((scores - highest[:, None]) * factor)


@triton.jit
def _probabilities(
    e, weight, base, most, QUERIES: tl.constexpr, KEYS: tl.constexpr, ODD: tl.constexpr, CLAMP: tl.constexpr
):  # fmt: skip
    """Signed codes of e * weight, keys in the order of fragments."""
    rounded = tl.fma(e, weight[:, None], base)
    if CLAMP:
        rounded = tl.minimum(rounded, most)
    codes = (rounded.to(tl.int32, bitcast=True) + ODD).to(tl.int8)
    apart = tl.permute(tl.reshape(codes, (QUERIES, KEYS // 16, 2, 4, 2)), (0, 1, 3, 2, 4))
    return tl.reshape(apart, (QUERIES, KEYS))


@triton.jit
def _values(v, start, c, padded, KEYS: tl.constexpr):
    """int8 [c, KEYS]."""
    return tl.load(v + c[:, None] * padded + (start + tl.arange(0, KEYS))[None, :])


@triton.jit
def _added(sums, c, chunks, VALUES: tl.constexpr):
    """Sums of v over all keys, of channels `c`."""
    total = tl.zeros(c.shape, tl.int32)
    for chunk in tl.range(0, chunks):
        total += tl.load(sums + chunk * VALUES + c)
    return total


@triton.jit
def _store(
    out, acc, rows, c, queries, multiplier, step, inverse, zero_point, largest,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    y = acc.to(tl.float32) * multiplier
    if CODES:
        y = quantized(y, step, inverse, zero_point, largest)
    at = out + rows[:, None].to(tl.int64) * WIDTH + c[None, :]
    tl.store(at, y.to(out.dtype.element_ty), mask=(rows < queries)[:, None] & (c < HEAD)[None, :])
