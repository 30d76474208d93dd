"""Products whose tiles the copy engine fetches (Hopper): int8 convolution as an implicit matrix product, and linear.

A linear product is a convolution with one tap of a picture [1, 1, M, K]. For every block of channels of every tap,

    a = x[b0 : b0+TB, h0+dh : h0+dh+TH, w0+dw : w0+dw+TW, c : c+BK]        one box of the tensor descriptor      (1)
    acc += a @ weight[n0 : n0+BN, tap, c : c+BK].T                          wgmma, int32

What of (1) lies outside the picture, or beyond the last channel, arrives as zeros: no padding pass, no masks. With
stride 2 the picture is seen as [B, H/2, 2, W/2, 2*C], so that every second pixel is a box too.

TURNED, the product is weight @ a.T, and sums are [outputs, positions]. The weights are wgmma's left operand, which may
be registers: packed weights become int8 where wgmma wants them, in three instructions for eight codes, and never go
back to shared memory. The picture's box, of one row or many, is the right operand where the copy engine put it. What
belongs to outputs is a number or two for each thread. Results are turned back on their way out (`stmatrix.trans`).

The weight's box has its tap first: an axis of one element in front goes away without a reshape, and only then does
the copy engine's buffer be an operand. The same holds for `a` of a linear product; a box of several rows is reshaped,
and comes to wgmma through registers unless TURNED.

A tile is BM = TB*TH*TW positions by BN1 + BN2 outputs. Blocks are powers of two and widths of diffusion UNets are
multiples of 320: 256 + 64 outputs share one `a`. K may be cut in SPLITS runs; `gathered.added_sums` adds their sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mezzotint.kernels.triton.epilogue import along, correct_cases, finish, nibbles, scaled

_COUNTS = (
    "zero_point",
    "largest",
    "height",
    "width",
    "tiles_b",
    "tiles_h",
    "tiles_w",
    "tiles_n",
)  # one kernel for all values


@triton.jit(do_not_specialize=_COUNTS)
def tiled_product(
    x,  # descriptor [B, H, W, C] int8, or [B, H/2, 2, W/2, 2C] with stride 2
    weight1,  # descriptor [T, O, C] int8 (or [T, O, C'/2] with two codes a byte), box of BN1
    weight2,  # the same, box of BN2; with GROUPS == 2 the second group's, box of BN1
    out1,  # descriptor of the result [M, O] (FLAT) or [B, H', W', O]; of sums, one axis for the splits before
    out2,
    residual1,  # the same of the residual, or anything
    residual2,
    correction,  # int32 [G, 16, O]
    multiplier,  # float32 [G, O]
    bias,  # float32 [O] or anything
    step,  # float32: scale of the codes
    inverse,  # float32: 1 / scale
    zero_point,
    largest,
    height,  # of the picture
    width,
    channels,
    boundary,  # channels of the first group
    outputs,
    tiles_b,
    tiles_h,
    tiles_w,
    tiles_n,
    TB: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BK: tl.constexpr,
    BN1: tl.constexpr,
    BN2: tl.constexpr,
    KERNEL: tl.constexpr,  # 1 or 3
    STRIDE: tl.constexpr,
    PAD_TOP: tl.constexpr,
    PAD_LEFT: tl.constexpr,
    HAS_EDGES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    KIND: tl.constexpr,  # "float", "codes", "geglu" or "sums"
    FLAT: tl.constexpr,
    BITS: tl.constexpr,
    GROUPS: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    BAND: tl.constexpr,
    FLATTEN: tl.constexpr,
    PIECE: tl.constexpr,  # outputs (TURNED: positions) that the epilogue writes at once
    TURNED: tl.constexpr,  # sums are [outputs, positions]
):
    BM: tl.constexpr = TB * TH * TW
    BYTES: tl.constexpr = BK * BITS // 8
    N2: tl.constexpr = BN2 if BN2 > 0 else 16
    tiles_m = tiles_b * tiles_h * tiles_w
    tiles = tiles_m * tiles_n * SPLITS
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
        split = tile % SPLITS
        tile_m, tile_n = place(tile // SPLITS, tiles_m, tiles_n, BAND)
        b0 = tile_m // (tiles_h * tiles_w) * TB
        h0 = tile_m // tiles_w % tiles_h * TH
        w0 = tile_m % tiles_w * TW
        n0 = tile_n * (BN1 + BN2)
        blocks = tl.cdiv(boundary if GROUPS == 2 else channels, BK)
        steps = KERNEL * KERNEL * blocks
        acc1 = tl.zeros((BN1, BM) if TURNED else (BM, BN1), tl.int32)
        acc2 = tl.zeros((N2, BM) if TURNED else (BM, N2), tl.int32)
        for k in tl.range(steps * split // SPLITS, steps * (split + 1) // SPLITS, num_stages=STAGES):
            tap = k // blocks
            block = k % blocks
            a = tl.reshape(_box(x, b0, h0, w0, tap, block * BK, channels, KERNEL, STRIDE, PAD_TOP, PAD_LEFT), (BM, BK))
            acc1 = _multiplied(a, weight1.load([tap, n0, block * BYTES]), acc1, BN1, BK, BITS, TURNED)
            if BN2 > 0:
                acc2 = _multiplied(a, weight2.load([tap, n0 + BN1, block * BYTES]), acc2, BN2, BK, BITS, TURNED)
        if BITS == 4:
            acc1, acc2 = acc1 >> 4, acc2 >> 4
        if KIND == "sums":  # of one of the splits: the kernel that adds them finishes
            _store_sums(acc1, out1, split, tile_m * BM, b0, h0, w0, n0, BN1, TB, TH, TW, FLAT, PIECE, TURNED)
            if BN2 > 0:
                _store_sums(acc2, out2, split, tile_m * BM, b0, h0, w0, n0 + BN1, BN2, TB, TH, TW, FLAT, PIECE, TURNED)
        elif GROUPS == 2:
            y1 = _corrected(
                acc1, n0, h0, w0, correction, multiplier, height, width, outputs, BN1, TB, TH, TW, KERNEL, STRIDE,
                PAD_TOP, PAD_LEFT, HAS_EDGES, False, TURNED,
            )  # fmt: skip
            acc1 = tl.zeros((BN1, BM) if TURNED else (BM, BN1), tl.int32)
            blocks = tl.cdiv(channels - boundary, BK)
            for k in tl.range(0, KERNEL * KERNEL * blocks, num_stages=STAGES):
                tap = k // blocks
                block = k % blocks
                at = boundary + block * BK
                a = tl.reshape(_box(x, b0, h0, w0, tap, at, channels, KERNEL, STRIDE, PAD_TOP, PAD_LEFT), (BM, BK))
                acc1 = _multiplied(a, weight2.load([tap, n0, block * BYTES]), acc1, BN1, BK, BITS, TURNED)
            if BITS == 4:
                acc1 = acc1 >> 4
            y1 += _corrected(
                acc1, n0, h0, w0, correction + 16 * outputs, multiplier + outputs, height, width, outputs, BN1, TB,
                TH, TW, KERNEL, STRIDE, PAD_TOP, PAD_LEFT, HAS_EDGES, False, TURNED,
            )  # fmt: skip
            _write(
                y1, n0, tile_m * BM, b0, h0, w0, out1, residual1, correction, multiplier, bias, step, inverse,
                zero_point, largest, height, width, outputs, BN1, TB, TH, TW, KERNEL, STRIDE, PAD_TOP, PAD_LEFT,
                HAS_EDGES, HAS_BIAS, HAS_RESIDUAL, KIND, FLAT, PIECE, TURNED,
            )  # fmt: skip
        else:
            _write(
                acc1, n0, tile_m * BM, b0, h0, w0, out1, residual1, correction, multiplier, bias, step, inverse,
                zero_point, largest, height, width, outputs, BN1, TB, TH, TW, KERNEL, STRIDE, PAD_TOP, PAD_LEFT,
                HAS_EDGES, HAS_BIAS, HAS_RESIDUAL, KIND, FLAT, PIECE, TURNED,
            )  # fmt: skip
            if BN2 > 0:
                _write(
                    acc2, n0 + BN1, tile_m * BM, b0, h0, w0, out2, residual2, correction, multiplier, bias, step,
                    inverse, zero_point, largest, height, width, outputs, BN2, TB, TH, TW, KERNEL, STRIDE, PAD_TOP,
                    PAD_LEFT, HAS_EDGES, HAS_BIAS, HAS_RESIDUAL, KIND, FLAT, PIECE, TURNED,
                )  # fmt: skip


@triton.jit
def _multiplied(a, box, acc, BN: tl.constexpr, BK: tl.constexpr, BITS: tl.constexpr, TURNED: tl.constexpr):
    """`acc` and the products of one step; a box of 4-bit weights counts 16 times, see `nibbles`."""
    w = tl.reshape(box, (BN, BK * BITS // 8))
    if BITS == 4:
        w = nibbles(w, BN, BK)
    if TURNED:
        return tl.dot(w, a.T, acc, out_dtype=tl.int32)
    else:
        return tl.dot(a, w.T, acc, out_dtype=tl.int32)


@triton.jit
def place(tile, tiles_m, tiles_n, BAND: tl.constexpr):
    """(tile_m, tile_n): BAND rows of tiles together, so that what runs at one time reads few rows and columns."""
    per_band = BAND * tiles_n
    start = tile // per_band * BAND
    size = tl.minimum(tiles_m - start, BAND)
    within = tile % per_band
    return start + within % size, within // size


@triton.jit
def _box(
    x, b0, h0, w0, tap, c, channels, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PAD_TOP: tl.constexpr,
    PAD_LEFT: tl.constexpr,
):  # fmt: skip
    """The box (1) of one tap."""
    dh = tap // KERNEL - PAD_TOP
    dw = tap % KERNEL - PAD_LEFT
    if STRIDE == 1:
        return x.load([b0, h0 + dh, w0 + dw, c])
    else:
        return x.load([b0, h0 + (dh >> 1), dh & 1, w0 + (dw >> 1), (dw & 1) * channels + c])


@triton.jit
def _corrected(
    acc, n0, h0, w0, correction, multiplier, height, width, outputs, BN: tl.constexpr, TB: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PAD_TOP: tl.constexpr,
    PAD_LEFT: tl.constexpr, HAS_EDGES: tl.constexpr, BARE: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    """float32 (acc + correction) * multiplier, or the int32 sum (BARE)."""
    n = n0 + tl.arange(0, BN)
    acc = acc + along(tl.load(correction + n, mask=n < outputs, other=0), TURNED)
    if HAS_EDGES:
        p = tl.arange(0, TB * TH * TW)
        acc = correct_cases(
            acc, correction, n, outputs, h0 + p // TW % TH, w0 + p % TW, h0, height, width, KERNEL, STRIDE, PAD_TOP,
            PAD_LEFT, TH, TURNED,
        )  # fmt: skip
    if BARE:
        return acc
    else:
        return scaled(acc, n, multiplier, outputs, TURNED)


@triton.jit
def _halves(acc, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right half of the columns, without moving a register."""
    return tl.split(tl.permute(tl.reshape(acc, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def _store_sums(
    acc, out, split, m0, b0, h0, w0, n0, BN: tl.constexpr, TB: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    FLAT: tl.constexpr, PIECE: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    BM: tl.constexpr = TB * TH * TW
    if TURNED and BM > PIECE:
        B: tl.constexpr = TB // 2 if TB > 1 else TB
        H: tl.constexpr = TH // 2 if TB == 1 and TH > 1 else TH
        W: tl.constexpr = TW // 2 if TB == 1 and TH == 1 else TW
        left, right = _halves(acc, BN, BM)
        _store_sums(left, out, split, m0, b0, h0, w0, n0, BN, B, H, W, FLAT, PIECE, TURNED)
        m0, b0, h0, w0 = m0 + BM // 2, b0 + (TB - B), h0 + (TH - H), w0 + (TW - W)
        _store_sums(right, out, split, m0, b0, h0, w0, n0, BN, B, H, W, FLAT, PIECE, TURNED)
    elif BN > PIECE and not TURNED:
        left, right = _halves(acc, BM, BN)
        _store_sums(left, out, split, m0, b0, h0, w0, n0, BN // 2, TB, TH, TW, FLAT, PIECE, TURNED)
        _store_sums(right, out, split, m0, b0, h0, w0, n0 + BN // 2, BN // 2, TB, TH, TW, FLAT, PIECE, TURNED)
    else:
        if TURNED:
            acc = tl.trans(acc)
        if FLAT:
            out.store([split, m0, n0], tl.reshape(acc, (1, BM, BN)))
        else:
            out.store([split, b0, h0, w0, n0], tl.reshape(acc, (1, TB, TH, TW, BN)))


@triton.jit
def _write(
    acc, n0, m0, b0, h0, w0, out, residual, correction, multiplier, bias, step, inverse, zero_point, largest, height,
    width, outputs, BN: tl.constexpr, TB: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, KERNEL: tl.constexpr,
    STRIDE: tl.constexpr, PAD_TOP: tl.constexpr, PAD_LEFT: tl.constexpr, HAS_EDGES: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, KIND: tl.constexpr, FLAT: tl.constexpr, PIECE: tl.constexpr,
    TURNED: tl.constexpr,
):  # fmt: skip
    """Epilogue of int32 sums, or of float32 ones that are scaled already, a piece at a time: fewer registers."""
    BM: tl.constexpr = TB * TH * TW
    if TURNED and BM > PIECE:
        B: tl.constexpr = TB // 2 if TB > 1 else TB
        H: tl.constexpr = TH // 2 if TB == 1 and TH > 1 else TH
        W: tl.constexpr = TW // 2 if TB == 1 and TH == 1 else TW
        left, right = _halves(acc, BN, BM)
        _write(
            left, n0, m0, b0, h0, w0, out, residual, correction, multiplier, bias, step, inverse, zero_point, largest,
            height, width, outputs, BN, B, H, W, KERNEL, STRIDE, PAD_TOP, PAD_LEFT, HAS_EDGES, HAS_BIAS, HAS_RESIDUAL,
            KIND, FLAT, PIECE, TURNED,
        )  # fmt: skip
        _write(
            right, n0, m0 + BM // 2, b0 + (TB - B), h0 + (TH - H), w0 + (TW - W), out, residual, correction, multiplier,
            bias, step, inverse, zero_point, largest, height, width, outputs, BN, B, H, W, KERNEL, STRIDE, PAD_TOP,
            PAD_LEFT, HAS_EDGES, HAS_BIAS, HAS_RESIDUAL, KIND, FLAT, PIECE, TURNED,
        )  # fmt: skip
    elif BN > PIECE and not TURNED:
        left, right = _halves(acc, BM, BN)
        _write(
            left, n0, m0, b0, h0, w0, out, residual, correction, multiplier, bias, step, inverse, zero_point, largest,
            height, width, outputs, BN // 2, TB, TH, TW, KERNEL, STRIDE, PAD_TOP, PAD_LEFT, HAS_EDGES, HAS_BIAS,
            HAS_RESIDUAL, KIND, FLAT, PIECE, TURNED,
        )  # fmt: skip
        _write(
            right, n0 + BN // 2, m0, b0, h0, w0, out, residual, correction, multiplier, bias, step, inverse, zero_point,
            largest, height, width, outputs, BN // 2, TB, TH, TW, KERNEL, STRIDE, PAD_TOP, PAD_LEFT, HAS_EDGES,
            HAS_BIAS, HAS_RESIDUAL, KIND, FLAT, PIECE, TURNED,
        )  # fmt: skip
    else:
        WIDTH: tl.constexpr = BN // 2 if KIND == "geglu" else BN
        at = n0 // 2 if KIND == "geglu" else n0
        if acc.dtype == tl.int32:
            y = _corrected(
                acc, n0, h0, w0, correction, multiplier, height, width, outputs, BN, TB, TH, TW, KERNEL, STRIDE,
                PAD_TOP, PAD_LEFT, HAS_EDGES, out.dtype == tl.int32, TURNED,
            )  # fmt: skip
        else:
            y = acc
        if out.dtype != tl.int32:
            extra = y
            if HAS_RESIDUAL:
                if FLAT:
                    extra = residual.load([m0, at])
                else:
                    extra = tl.reshape(residual.load([b0, h0, w0, at]), (BM, WIDTH))
                if TURNED:
                    extra = tl.trans(extra)
            n = n0 + tl.arange(0, BN)
            y = finish(
                y, extra, n, bias, step, inverse, zero_point, largest, outputs, BM, BN, HAS_BIAS, HAS_RESIDUAL, KIND,
                out.dtype, TURNED,
            )  # fmt: skip
        if TURNED:
            y = tl.trans(y)
        if FLAT:
            out.store([m0, at], y)
        else:
            out.store([b0, h0, w0, at], tl.reshape(y, (TB, TH, TW, WIDTH)))
