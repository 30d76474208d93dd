"""Products with plain, masked loads: any GPU, any number of channels, any picture.

The same tiles as `tiled`, but every element of `a` has its own address; what lies outside the picture is masked to
zero. On Ampere and Ada these loads are asynchronous copies, 16 bytes a thread where the channels allow it. On Hopper
this kernel does what the copy engine cannot: ends with 3 or 4 channels, odd pictures.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mezzotint.kernels.triton.epilogue import finish, nibbles, scaled
from mezzotint.kernels.triton.tiled import place


@triton.jit
def gathered_product(
    x,  # int8 [B, H, W, C]
    weight,  # int8 [O, T, C], or uint8 [O, T, C'/2]
    out,  # [B, H', W', O], or int32 [SPLITS, B, H', W', O]
    residual,  # the result's shape, or anything
    correction,  # int32 [G, 16, O]
    multiplier,  # float32 [G, O]
    bias,  # float32 [O] or anything
    step,
    inverse,
    zero_point,
    largest,
    height,
    width,
    channels,
    row_bytes,  # of one tap of the weight
    boundary,  # channels of the first group
    boundary_bytes,  # of its weights in a tap
    outputs,
    out_height,
    out_width,
    rows,  # B * H' * W'
    tiles_m,
    tiles_n,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD_TOP: tl.constexpr,
    PAD_LEFT: tl.constexpr,
    HAS_EDGES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    GROUPS: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    BAND: tl.constexpr,
):
    tile = tl.program_id(0)
    split = tile % SPLITS
    tile_m, tile_n = place(tile // SPLITS, tiles_m, tiles_n, BAND)
    m = tile_m * BM + tl.arange(0, BM)
    n = tile_n * BN + tl.arange(0, BN)
    b = m // (out_height * out_width)
    h = m // out_width % out_height
    w = m % out_width
    y = _sums(
        x, weight, m, n, b, h, w, height, width, channels, row_bytes, 0, boundary if GROUPS == 2 else channels, 0,
        outputs, rows, split, BM, BN, BK, KERNEL, STRIDE, PAD_TOP, PAD_LEFT, BITS, SPLITS, STAGES,
    )  # fmt: skip
    inside = (m < rows)[:, None] & (n < outputs)[None, :]
    at = m.to(tl.int64)[:, None] * outputs + n[None, :]
    if KIND == "sums":
        tl.store(out + tl.cast(split, tl.int64) * rows * outputs + at, y, mask=inside)
    else:
        y = _corrected(
            y, n, h, w, correction, multiplier, height, width, outputs, KERNEL, STRIDE, PAD_TOP, PAD_LEFT, HAS_EDGES,
            out.dtype.element_ty == tl.int32,
        )  # fmt: skip
        if GROUPS == 2:
            more = _sums(
                x, weight, m, n, b, h, w, height, width, channels, row_bytes, boundary, channels, boundary_bytes,
                outputs, rows, split, BM, BN, BK, KERNEL, STRIDE, PAD_TOP, PAD_LEFT, BITS, SPLITS, STAGES,
            )  # fmt: skip
            y += _corrected(
                more, n, h, w, correction + 16 * outputs, multiplier + outputs, height, width, outputs, KERNEL, STRIDE,
                PAD_TOP, PAD_LEFT, HAS_EDGES, False,
            )  # fmt: skip
        write_rows(
            y, m, tile_n * BN, out, residual, bias, step, inverse, zero_point, largest, outputs, rows, BM, BN, HAS_BIAS,
            HAS_RESIDUAL, KIND,
        )  # fmt: skip


@triton.jit
def added_sums(
    sums,  # int32 [SPLITS, B, H', W', O]
    out,
    residual,
    correction,
    multiplier,
    bias,
    step,
    inverse,
    zero_point,
    largest,
    height,
    width,
    outputs,
    out_height,
    out_width,
    rows,
    tiles_n,
    BM: tl.constexpr,
    BN: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD_TOP: tl.constexpr,
    PAD_LEFT: tl.constexpr,
    HAS_EDGES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    KIND: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Adds the int32 sums of the splits and finishes: exact, whatever the order."""
    tile = tl.program_id(0)
    m = tile // tiles_n * BM + tl.arange(0, BM)
    n = tile % tiles_n * BN + tl.arange(0, BN)
    inside = (m < rows)[:, None] & (n < outputs)[None, :]
    at = m.to(tl.int64)[:, None] * outputs + n[None, :]
    acc = tl.load(sums + at, mask=inside, other=0)
    for split in tl.static_range(1, SPLITS):
        acc += tl.load(sums + split * tl.cast(rows, tl.int64) * outputs + at, mask=inside, other=0)
    y = _corrected(
        acc, n, m // out_width % out_height, m % out_width, correction, multiplier, height, width, outputs, KERNEL,
        STRIDE, PAD_TOP, PAD_LEFT, HAS_EDGES, out.dtype.element_ty == tl.int32,
    )  # fmt: skip
    write_rows(
        y, m, tile % tiles_n * BN, out, residual, bias, step, inverse, zero_point, largest, outputs, rows, BM, BN,
        HAS_BIAS, HAS_RESIDUAL, KIND,
    )  # fmt: skip


@triton.jit
def _sums(
    x, weight, m, n, b, h, w, height, width, channels, row_bytes, first, last, first_byte, outputs, rows, split,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    PAD_TOP: tl.constexpr, PAD_LEFT: tl.constexpr, BITS: tl.constexpr, SPLITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """int32 [BM, BN]: sums over channels first..last of every tap, or of this split's share of the steps.

    Weights of channel `first` begin at `first_byte` of a tap. Bytes beyond the last channel, of another group or
    filled up, meet codes that are masked.
    """
    BYTES: tl.constexpr = BK * BITS // 8
    blocks = tl.cdiv(last - first, BK)
    steps = KERNEL * KERNEL * blocks
    acc = tl.zeros((BM, BN), tl.int32)
    kx = tl.arange(0, BK)
    kw = tl.arange(0, BYTES)
    for k in tl.range(steps * split // SPLITS, steps * (split + 1) // SPLITS, num_stages=STAGES):
        tap = k // blocks
        block = k % blocks
        c = first + block * BK
        ih = h * STRIDE - PAD_TOP + tap // KERNEL
        iw = w * STRIDE - PAD_LEFT + tap % KERNEL
        there = (m < rows) & (ih >= 0) & (ih < height) & (iw >= 0) & (iw < width)
        pixel = ((b * height + ih).to(tl.int64) * width + iw) * channels
        a = tl.load(x + pixel[:, None] + (c + kx)[None, :], mask=there[:, None] & (c + kx < last)[None, :], other=0)
        cw = first_byte + block * BYTES + kw
        wp = weight + n.to(tl.int64)[:, None] * (KERNEL * KERNEL * row_bytes) + tap * row_bytes + cw[None, :]
        wt = tl.load(wp, mask=(n < outputs)[:, None] & (cw < row_bytes)[None, :], other=0)
        if BITS == 4:
            wt = nibbles(wt, BN, BK)
        acc = tl.dot(a, tl.trans(wt), acc, out_dtype=tl.int32)
    return acc >> 4 if BITS == 4 else acc


@triton.jit
def _corrected(
    acc, n, h, w, correction, multiplier, height, width, outputs, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    PAD_TOP: tl.constexpr, PAD_LEFT: tl.constexpr, HAS_EDGES: tl.constexpr, BARE: tl.constexpr,
):  # fmt: skip
    """float32 (acc + correction) * multiplier, or the int32 sum (BARE)."""
    if HAS_EDGES:
        top = h * STRIDE - PAD_TOP < 0
        bottom = h * STRIDE - PAD_TOP + KERNEL > height
        left = w * STRIDE - PAD_LEFT < 0
        right = w * STRIDE - PAD_LEFT + KERNEL > width
        case = top.to(tl.int32) + 2 * bottom.to(tl.int32) + 4 * left.to(tl.int32) + 8 * right.to(tl.int32)
        acc = acc + tl.load(correction + case[:, None] * outputs + n[None, :], mask=(n < outputs)[None, :], other=0)
    else:
        acc = acc + tl.load(correction + n, mask=n < outputs, other=0)[None, :]
    if BARE:
        return acc
    else:
        return scaled(acc, n, multiplier, outputs)


@triton.jit
def write_rows(
    y, m, n0, out, residual, bias, step, inverse, zero_point, largest, outputs, rows, BM: tl.constexpr,
    BN: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Finishes scaled sums [BM, BN] and stores them; int32 sums are stored as they are."""
    HALF: tl.constexpr = 2 if KIND == "geglu" else 1
    n = n0 + tl.arange(0, BN)
    columns = n0 // HALF + tl.arange(0, BN // HALF)
    inside = (m < rows)[:, None] & (columns < outputs // HALF)[None, :]
    at = m.to(tl.int64)[:, None] * (outputs // HALF) + columns[None, :]
    if y.dtype != tl.int32:
        if HAS_RESIDUAL:
            extra = tl.load(residual + at, mask=inside, other=0.0)
        else:
            extra = y
        y = finish(
            y, extra, n, bias, step, inverse, zero_point, largest, outputs, BM, BN, HAS_BIAS, HAS_RESIDUAL, KIND,
            out.dtype.element_ty,
        )  # fmt: skip
    tl.store(out + at, y, mask=inside)
