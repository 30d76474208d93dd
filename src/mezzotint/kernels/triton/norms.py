"""What lies between products, channels-last: norms, SiLU, GEGLU, and the step to codes, each in few passes.

    GroupNorm   `group_sums` reads the picture once and leaves a count-free pair of sums for each run of pixels and each
                group: s1 = sum (x - p), s2 = sum (x - p)**2 about the group's first value p, so that nothing cancels
                when the mean is large; `group_norm` adds the runs in their order and reads the picture again. It
                starts from the end, where the cache is warm.                                                      (1)
                Where one program can hold the pixels of a group block, `group_norm_whole` does both in one launch.
    LayerNorm   one program holds some rows.                                                                       (2)

Loops over pixels take two blocks a turn, so that twice as much is on its way from memory.

Two tensors [x | second] side by side along the channels are read from where they are. A residual block with a shortcut
needs their codes as well, x and second each on its own grid: GroupNorm has them in its hands when it normalizes, and
writes the codes on the way (`entry`), which saves another reading and the concatenation.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mezzotint.kernels.triton.epilogue import gelu, quantized, silu

_GRIDS = [f"{name}{part}" for name in ("zero_point", "largest") for part in ("", "1", "2")]


@triton.jit
def _row(
    x, second, added, added_row, b, m, c, rows, channels1, channels2, there, HAS_SECOND: tl.constexpr,
    HAS_ADDED: tl.constexpr,
):  # fmt: skip
    """float32 [m, c] of [x | second] + added, zero where not `there`; m counts the rows of one sample."""
    row = tl.cast(b * rows, tl.int64) + m[:, None]
    v = tl.load(x + row * channels1 + c[None, :], mask=there & (c < channels1)[None, :], other=0.0).to(tl.float32)
    if HAS_SECOND:
        own = there & (c >= channels1)[None, :]
        v += tl.load(second + row * channels2 + (c - channels1)[None, :], mask=own, other=0.0).to(tl.float32)
    if HAS_ADDED:
        channels = channels1 + channels2
        v += tl.load(added + b * added_row + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    return v


@triton.jit
def _pivot(
    x, second, added, added_row, b, c, width, rows, channels1, channels2, HAS_SECOND: tl.constexpr,
    HAS_ADDED: tl.constexpr,
):  # fmt: skip
    """float32 [c]: the first value of each channel's group."""
    first = c // width * width
    channels = channels1 + channels2
    row = tl.cast(b * rows, tl.int64)
    v = tl.load(x + row * channels1 + first, mask=first < channels1, other=0.0).to(tl.float32)
    if HAS_SECOND:
        own = (first >= channels1) & (first < channels)
        v += tl.load(second + row * channels2 + (first - channels1), mask=own, other=0.0).to(tl.float32)
    if HAS_ADDED:
        v += tl.load(added + b * added_row + first, mask=first < channels, other=0.0).to(tl.float32)
    return v


@triton.jit
def group_sums(
    x,
    second,
    added,  # [B, C] or anything
    sums,  # float32 [B, runs, 2, groups]
    added_row,
    rows,  # pixels of a sample
    channels1,
    channels2,
    groups,
    per_run,  # pixels of a run, a multiple of BM
    width: tl.constexpr,  # channels of a group
    BM: tl.constexpr,
    BC: tl.constexpr,
    BG: tl.constexpr,
    HAS_SECOND: tl.constexpr,
    HAS_ADDED: tl.constexpr,
):
    """Sums of one run of pixels over a block of BG groups, BG * width <= BC channels."""
    run = tl.program_id(0)
    b = tl.program_id(1)
    g0 = tl.program_id(2) * BG
    local = tl.arange(0, BC)
    c = g0 * width + local
    valid = (local < BG * width) & (c < channels1 + channels2)
    pivot = _pivot(x, second, added, added_row, b, c, width, rows, channels1, channels2, HAS_SECOND, HAS_ADDED)
    s1 = tl.zeros((BM, BC), tl.float32)
    s2 = tl.zeros((BM, BC), tl.float32)
    for start in tl.range(run * per_run, tl.minimum(run * per_run + per_run, rows), BM, loop_unroll_factor=2):
        m = start + tl.arange(0, BM)
        there = (m < rows)[:, None] & valid[None, :]
        v = _row(x, second, added, added_row, b, m, c, rows, channels1, channels2, there, HAS_SECOND, HAS_ADDED)
        v = tl.where(there, v - pivot[None, :], 0.0)
        s1 += v
        s2 += v * v
    t1 = tl.sum(s1, axis=0)
    t2 = tl.sum(s2, axis=0)
    g = tl.arange(0, BG)
    member = (local // width)[:, None] == g[None, :]
    at = sums + (b * tl.num_programs(0) + run) * 2 * groups + g0 + g
    there = g0 + g < groups
    tl.store(at, tl.sum(tl.where(member, t1[:, None], 0.0), axis=0), mask=there)
    tl.store(at + groups, tl.sum(tl.where(member, t2[:, None], 0.0), axis=0), mask=there)


@triton.jit(do_not_specialize=_GRIDS)
def group_norm(
    x,
    second,
    added,
    sums,
    weight,
    bias,
    factor,  # [B, C] or anything
    shift,
    out,  # [B, P, C]
    entry,  # int8 [B, P, C]: codes of what is normed, or anything
    added_row,  # elements between the rows of `added`, `factor`, `shift`
    factor_row,
    shift_row,
    rows,
    channels1,
    channels2,
    groups,
    runs,
    eps,
    step,
    inverse,
    zero_point,
    largest,
    step1,
    inverse1,
    zero_point1,
    largest1,
    step2,
    inverse2,
    zero_point2,
    largest2,
    per_program,  # pixels, a multiple of BM
    width: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,  # powers of two: at least `runs`, and the groups that BC channels may touch
    BG: tl.constexpr,
    HAS_SECOND: tl.constexpr,
    HAS_ADDED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_FACTOR: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    SILU: tl.constexpr,
    CODES: tl.constexpr,
    ENTRY: tl.constexpr,
):
    channels = channels1 + channels2
    b = tl.num_programs(1) - 1 - tl.program_id(1)
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * per_program
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    valid = c < channels
    r = tl.arange(0, BR)
    g0 = tl.program_id(2) * BC // width
    g = g0 + tl.arange(0, BG)
    at = sums + (b * runs + r)[:, None] * 2 * groups + g[None, :]
    mask = (r < runs)[:, None] & (g < groups)[None, :]
    count = rows * width * 1.0
    mean_g = tl.sum(tl.load(at, mask=mask, other=0.0), axis=0) / count
    variance = tl.sum(tl.load(at + groups, mask=mask, other=0.0), axis=0) / count - mean_g * mean_g
    gain_g = 1.0 / tl.sqrt(tl.maximum(variance, 0.0) + eps)
    own = tl.minimum(c // width - g0, BG - 1)
    mean = tl.gather(mean_g, own, 0)
    gain = tl.gather(gain_g, own, 0)
    pivot = _pivot(x, second, added, added_row, b, c, width, rows, channels1, channels2, HAS_SECOND, HAS_ADDED)
    scale, offset = _affine(
        b, c, valid, gain, -(mean + pivot) * gain, weight, bias, factor, shift, factor_row,
        shift_row, HAS_WEIGHT, HAS_BIAS, HAS_FACTOR, HAS_SHIFT,
    )  # fmt: skip
    for start in tl.range(first, tl.minimum(first + per_program, rows), BM, loop_unroll_factor=2):
        m = start + tl.arange(0, BM)
        there = (m < rows)[:, None] & valid[None, :]
        v = _row(x, second, added, added_row, b, m, c, rows, channels1, channels2, there, HAS_SECOND, HAS_ADDED)
        row = tl.cast(b * rows, tl.int64) + m
        if ENTRY:
            _store_entry(
                v, entry, row, c, channels1, channels, there, step1, inverse1, zero_point1, largest1, step2, inverse2,
                zero_point2, largest2, HAS_SECOND,
            )  # fmt: skip
        v = v * scale[None, :] + offset[None, :]
        _store(v, out, row, c, channels, there, step, inverse, zero_point, largest, SILU, CODES)


@triton.jit(do_not_specialize=_GRIDS)
def group_norm_whole(
    x,
    second,
    added,
    weight,
    bias,
    factor,
    shift,
    out,
    entry,
    added_row,
    factor_row,
    shift_row,
    rows,
    channels1,
    channels2,
    eps,
    step,
    inverse,
    zero_point,
    largest,
    step1,
    inverse1,
    zero_point1,
    largest1,
    step2,
    inverse2,
    zero_point2,
    largest2,
    width: tl.constexpr,
    BM: tl.constexpr,  # at least `rows`
    BC: tl.constexpr,
    BG: tl.constexpr,
    HAS_SECOND: tl.constexpr,
    HAS_ADDED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_FACTOR: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    SILU: tl.constexpr,
    CODES: tl.constexpr,
    ENTRY: tl.constexpr,
):
    """All pixels of BG groups in one program; groups of a sample one after another, as they share sectors of memory."""
    channels = channels1 + channels2
    b = tl.program_id(1)
    local = tl.arange(0, BC)
    c = tl.program_id(0) * BG * width + local
    valid = (local < BG * width) & (c < channels)
    m = tl.arange(0, BM)
    there = (m < rows)[:, None] & valid[None, :]
    v = _row(x, second, added, added_row, b, m, c, rows, channels1, channels2, there, HAS_SECOND, HAS_ADDED)
    g = tl.arange(0, BG)
    member = (local // width)[:, None] == g[None, :]
    count = rows * width * 1.0
    mean = _of_groups(tl.sum(tl.where(there, v, 0.0), axis=0), member) / count
    centred = tl.where(there, v - mean[None, :], 0.0)
    variance = _of_groups(tl.sum(centred * centred, axis=0), member) / count
    gain = 1.0 / tl.sqrt(variance + eps)
    scale, offset = _affine(
        b, c, valid, gain, -mean * gain, weight, bias, factor, shift, factor_row, shift_row, HAS_WEIGHT, HAS_BIAS,
        HAS_FACTOR, HAS_SHIFT,
    )  # fmt: skip
    row = tl.cast(b * rows, tl.int64) + m
    if ENTRY:
        _store_entry(
            v, entry, row, c, channels1, channels, there, step1, inverse1, zero_point1, largest1, step2, inverse2,
            zero_point2, largest2, HAS_SECOND,
        )  # fmt: skip
    y = v * scale[None, :] + offset[None, :]
    _store(y, out, row, c, channels, there, step, inverse, zero_point, largest, SILU, CODES)


@triton.jit
def _of_groups(per_channel, member):
    """Sums of the groups [BC], from sums of the channels."""
    per_group = tl.sum(tl.where(member, per_channel[:, None], 0.0), axis=0)
    return tl.sum(tl.where(member, per_group[None, :], 0.0), axis=1)


@triton.jit
def _affine(
    b, c, valid, scale, offset, weight, bias, factor, shift, factor_row, shift_row, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_FACTOR: tl.constexpr, HAS_SHIFT: tl.constexpr,
):  # fmt: skip
    """(scale, offset) [BC] with everything that is affine in it: weight and bias, then (1 + factor) and shift."""
    if HAS_WEIGHT:
        w = tl.load(weight + c, mask=valid, other=0.0).to(tl.float32)
        scale = scale * w
        offset = offset * w
    if HAS_BIAS:
        offset = offset + tl.load(bias + c, mask=valid, other=0.0).to(tl.float32)
    if HAS_FACTOR:
        f = 1.0 + tl.load(factor + b * factor_row + c, mask=valid, other=0.0).to(tl.float32)
        scale = scale * f
        offset = offset * f
    if HAS_SHIFT:
        offset = offset + tl.load(shift + b * shift_row + c, mask=valid, other=0.0).to(tl.float32)
    return scale, offset


@triton.jit
def _store(
    y, out, row, c, channels, there, step, inverse, zero_point, largest, SILU: tl.constexpr, CODES: tl.constexpr
):
    if SILU:
        y = silu(y)
    at = out + row[:, None] * channels + c[None, :]
    if CODES:
        tl.store(at, quantized(y, step, inverse, zero_point, largest), mask=there)
    else:
        tl.store(at, y.to(out.dtype.element_ty), mask=there)


@triton.jit
def _store_entry(
    v, entry, row, c, channels1, channels, there, step1, inverse1, zero_point1, largest1, step2, inverse2, zero_point2,
    largest2, HAS_SECOND: tl.constexpr,
):  # fmt: skip
    """Codes of `v`, on the first grid or, from channel `channels1` on, the second."""
    at = entry + row[:, None] * channels + c[None, :]
    if HAS_SECOND:
        own = (c >= channels1)[None, :]
        step = tl.where(own, step2, step1)
        inverse = tl.where(own, inverse2, inverse1)
        zero_point = tl.where(own, zero_point2, zero_point1)
        largest = tl.where(own, largest2, largest1)
        tl.store(at, quantized(v, step, inverse, zero_point, largest), mask=there)
    else:
        tl.store(at, quantized(v, step1, inverse1, zero_point1, largest1), mask=there)


@triton.jit
def layer_norm_codes(
    x,
    weight,
    bias,
    out,
    rows,
    channels,
    eps,
    step,
    inverse,
    zero_point,
    largest,
    BM: tl.constexpr,
    BC: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.arange(0, BC)
    valid = c < channels
    there = (m < rows)[:, None] & valid[None, :]
    at = m.to(tl.int64)[:, None] * channels + c[None, :]
    v = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    mean = tl.sum(v, axis=1) / channels
    v = tl.where(there, v - mean[:, None], 0.0)
    gain = 1.0 / tl.sqrt(tl.sum(v * v, axis=1) / channels + eps)
    y = v * gain[:, None]
    if HAS_WEIGHT:
        y = y * tl.load(weight + c, mask=valid, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        y = y + tl.load(bias + c, mask=valid, other=0.0).to(tl.float32)[None, :]
    tl.store(out + at, quantized(y, step, inverse, zero_point, largest), mask=there)


@triton.jit
def geglu_codes(x, out, rows, channels, step, inverse, zero_point, largest, BM: tl.constexpr, BC: tl.constexpr):
    m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    there = (m < rows)[:, None] & (c < channels)[None, :]
    at = m[:, None] * (2 * channels) + c[None, :]
    value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    gate = tl.load(x + at + channels, mask=there, other=0.0).to(tl.float32)
    y = quantized(value * gelu(gate), step, inverse, zero_point, largest)
    tl.store(out + m[:, None] * channels + c[None, :], y, mask=there)


@triton.jit
def upsampled_codes(
    x, out, rows, width, channels, step, inverse, zero_point, largest, FACTOR: tl.constexpr, BM: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """Codes of each pixel, FACTOR times along both axes; `width` is of the picture that is read."""
    m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    there = (m < rows)[:, None] & (c < channels)[None, :]
    v = tl.load(x + m[:, None] * channels + c[None, :], mask=there, other=0.0).to(tl.float32)
    y = quantized(v, step, inverse, zero_point, largest)
    first = m // width * (FACTOR * FACTOR * width) + m % width * FACTOR
    for i in tl.static_range(FACTOR):
        for j in tl.static_range(FACTOR):
            at = first + i * FACTOR * width + j
            tl.store(out + at[:, None] * channels + c[None, :], y, mask=there)


@triton.jit
def codes(
    x, second, out, rows, channels1, channels2, step, inverse, zero_point, largest, BM: tl.constexpr,
    BC: tl.constexpr, HAS_SECOND: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    channels = channels1 + channels2
    there = (m < rows)[:, None] & (c < channels)[None, :]
    v = _row(x, second, x, 0, tl.program_id(2), m, c, rows, channels1, channels2, there, HAS_SECOND, False)
    at = m.to(tl.int64)[:, None] * channels + c[None, :]
    tl.store(out + at, quantized(v, step, inverse, zero_point, largest), mask=there)
