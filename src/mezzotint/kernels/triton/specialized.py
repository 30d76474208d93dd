"""The tiles of `tiled`, by warps that each do one thing (Hopper, in Gluon).

One warp fetches boxes into a ring of STAGES buffers. Two groups of four warps take the upper and the lower half of a
tile: they wait for a buffer, issue wgmma, and free the buffer when the products of the step *before* are done. Neither
waits for the other: while one writes its half of a tile, the other still multiplies, and the fetching warp is already
in the next tile. In `tiled` all warps do everything in turn, and nothing multiplies during an epilogue.

A residual is fetched by the copy engine while the tile is computed, into the buffers that the result leaves from.

Weights of 4 bits are fetched as they are, and four more warps turn them into the int8 buffers that the others multiply
from. They leave a code in the upper half of its byte, which is 16 times the code and takes one or two instructions for
four of them; the sum is divided by 16 at the end, exactly. |16 w| <= 128, so the bound of the sums is that of 8 bits.
Tried and left: unpacking in registers as wgmma's left operand, which both halves would have to do for themselves.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from mezzotint.kernels.triton import epilogue, tiled

_place = gluon.jit(tiled.place.fn)
_add_case = gluon.jit(epilogue._add_case.fn)
_finish = gluon.jit(epilogue.finish.fn)
_scaled = gluon.jit(epilogue.scaled.fn)
_correct_cases = gluon.jit(epilogue.correct_cases.fn)


@gluon.jit(do_not_specialize=tiled.COUNTS)
def specialized_product(
    x,
    weight1,
    weight2,
    out,  # boxes of 64 rows by PIECE columns
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
    channels,
    outputs,
    tiles_b,
    tiles_h,
    tiles_w,
    tiles_n,
    TB: gl.constexpr,
    TH: gl.constexpr,
    TW: gl.constexpr,
    BK: gl.constexpr,
    BN1: gl.constexpr,
    BN2: gl.constexpr,
    KERNEL: gl.constexpr,
    STRIDE: gl.constexpr,
    PAD_TOP: gl.constexpr,
    PAD_LEFT: gl.constexpr,
    HAS_EDGES: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    HAS_RESIDUAL: gl.constexpr,
    KIND: gl.constexpr,
    FLAT: gl.constexpr,
    SPLITS: gl.constexpr,
    STAGES: gl.constexpr,
    BAND: gl.constexpr,
    PIECE: gl.constexpr,
    BUFFERS: gl.constexpr,  # of PIECE columns of the result, for each half
    BITS: gl.constexpr,  # of the weights
):
    N2: gl.constexpr = BN2 if BN2 > 0 else 16
    S2: gl.constexpr = STAGES if BN2 > 0 else 1
    WEIGHTS: gl.constexpr = gl.NVMMASharedLayout(min(BK, 128), 8, rank=3)
    a_bufs = gl.allocate_shared_memory(gl.int8, [STAGES] + x.block_type.shape, x.layout)
    b1_bufs = gl.allocate_shared_memory(gl.int8, [STAGES, BN1, 1, BK], WEIGHTS)
    b2_bufs = gl.allocate_shared_memory(gl.int8, [S2, N2, 1, BK], WEIGHTS)
    y_bufs = gl.allocate_shared_memory(out.dtype, [2 * BUFFERS] + out.block_type.shape, out.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    packed = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    extra = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=2 if BITS == 4 else 1)
        mbarrier.init(packed.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    for i in gl.static_range(2):
        mbarrier.init(extra.index(i), count=1)
    fence_async_shared()
    blocks = gl.cdiv(channels, BK)
    sizes = (channels, outputs, height, width, blocks, tiles_h, tiles_w, tiles_b * tiles_h * tiles_w, tiles_n)
    inputs = (a_bufs, b1_bufs, b2_bufs)
    barriers = (full, empty, extra, packed)
    constants = (correction, multiplier, bias, step, inverse, zero_point, largest)
    outs = (out, residual, y_bufs)
    shape: gl.constexpr = (TB, TH, TW, BK, BN1, BN2, KERNEL, STRIDE, PAD_TOP, PAD_LEFT, SPLITS, STAGES, BAND, BITS)
    flags: gl.constexpr = (HAS_EDGES, HAS_BIAS, HAS_RESIDUAL, KIND, FLAT, PIECE, BUFFERS)
    if BITS == 4:
        p1_bufs = gl.allocate_shared_memory(gl.uint8, [STAGES] + weight1.block_type.shape, weight1.layout)
        p2_bufs = gl.allocate_shared_memory(gl.uint8, [S2] + weight2.block_type.shape, weight2.layout)
        gl.warp_specialize(
            [
                (_multiply, (inputs, barriers, outs, constants, sizes, 0, shape, flags)),
                (_multiply, (inputs, barriers, outs, constants, sizes, 1, shape, flags)),
                (_unpack, (inputs, (p1_bufs, p2_bufs), barriers, sizes, shape)),
                (_fetch, (x, weight1, weight2, (a_bufs, p1_bufs, p2_bufs), barriers, sizes, shape)),
            ],
            [4, 4, 1],
            [208, 72, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_multiply, (inputs, barriers, outs, constants, sizes, 0, shape, flags)),
                (_multiply, (inputs, barriers, outs, constants, sizes, 1, shape, flags)),
                (_fetch, (x, weight1, weight2, inputs, barriers, sizes, shape)),
            ],
            [4, 1],
            [240, 24],
        )


@gluon.jit
def _unpack(inputs, packs, barriers, sizes, shape: gl.constexpr):
    """Four warps: bytes of two codes into bytes of one, 16 times the code."""
    BK: gl.constexpr = shape[3]
    BN1: gl.constexpr = shape[4]
    BN2: gl.constexpr = shape[5]
    STAGES: gl.constexpr = shape[11]
    SPLITS: gl.constexpr = shape[10]
    a_bufs, b1_bufs, b2_bufs = inputs
    p1_bufs, p2_bufs = packs
    full, empty, extra, packed = barriers
    channels, outputs, height, width, blocks, tiles_h, tiles_w, tiles_m, tiles_n = sizes
    steps = shape[6] * shape[6] * blocks
    slot = gl.to_tensor(0)
    phase = gl.to_tensor(0)
    for tile in range(gl.program_id(0), tiles_m * tiles_n * SPLITS, gl.num_programs(0)):
        split = tile % SPLITS
        for _ in range(steps * split // SPLITS, steps * (split + 1) // SPLITS):
            mbarrier.wait(packed.index(slot), phase)
            _unpack_box(p1_bufs.index(slot), b1_bufs.index(slot), BN1, BK)
            if BN2 > 0:
                _unpack_box(p2_bufs.index(slot), b2_bufs.index(slot), BN2, BK)
            fence_async_shared()
            gl.thread_barrier()
            mbarrier.arrive(full.index(slot), count=1)
            slot += 1
            wrap = slot == STAGES
            phase = gl.where(wrap, phase ^ 1, phase)
            slot = gl.where(wrap, 0, slot)


@gluon.jit
def _unpack_box(source, target, BN: gl.constexpr, BK: gl.constexpr):
    """[BN, BK/2] bytes to [BN, BK]: a thread takes 16 bytes, which are 32 channels that follow each other."""
    RUNS: gl.constexpr = BK // 32
    FROM: gl.constexpr = gl.BlockedLayout([1, 16], [32 // RUNS, RUNS], [4, 1], [1, 0])
    flat = source._reinterpret(gl.int8, [BN, BK // 2], gl.NVMMASharedLayout(min(BK // 2, 128), 8))
    low, high = gl.inline_asm_elementwise(
        "shl.b32 $0, $2, 4; and.b32 $0, $0, 0xf0f0f0f0; and.b32 $1, $2, 0xf0f0f0f0;",
        "=&r,=&r,r",
        [flat.load(FROM)],
        dtype=(gl.int8, gl.int8),
        is_pure=True,
        pack=4,
    )
    both = gl.permute(gl.reshape(gl.join(low, high), (BN, RUNS, 16, 2)), (0, 1, 3, 2))
    goal = target._reinterpret(gl.int8, [BN, BK], gl.NVMMASharedLayout(min(BK, 128), 8))
    goal.store(gl.reshape(both, (BN, BK)))


@gluon.jit
def _fetch(x, weight1, weight2, inputs, barriers, sizes, shape: gl.constexpr):
    """The warp that fetches: one box of codes and one or two of weights a step."""
    TB: gl.constexpr = shape[0]
    TH: gl.constexpr = shape[1]
    TW: gl.constexpr = shape[2]
    BK: gl.constexpr = shape[3]
    BN1: gl.constexpr = shape[4]
    BN2: gl.constexpr = shape[5]
    KERNEL: gl.constexpr = shape[6]
    STRIDE: gl.constexpr = shape[7]
    SPLITS: gl.constexpr = shape[10]
    STAGES: gl.constexpr = shape[11]
    BAND: gl.constexpr = shape[12]
    BITS: gl.constexpr = shape[13]
    a_bufs, b1_bufs, b2_bufs = inputs
    full, empty, extra, packed = barriers
    channels, outputs, height, width, blocks, tiles_h, tiles_w, tiles_m, tiles_n = sizes
    steps = KERNEL * KERNEL * blocks
    slot = gl.to_tensor(0)
    phase = gl.to_tensor(1)
    for tile in range(gl.program_id(0), tiles_m * tiles_n * SPLITS, gl.num_programs(0)):
        split = tile % SPLITS
        tile_m, tile_n = _place(tile // SPLITS, tiles_m, tiles_n, BAND)
        b0 = tile_m // (tiles_h * tiles_w) * TB
        h0 = tile_m // tiles_w % tiles_h * TH - shape[8]
        w0 = tile_m % tiles_w * TW - shape[9]
        n0 = tile_n * (BN1 + BN2)
        first = steps * split // SPLITS
        last = steps * (split + 1) // SPLITS
        tap = first // blocks
        c = first % blocks * BK
        if STRIDE == 2:  # in units of two pixels; the first is odd where the padding is
            h0 = tile_m // tiles_w % tiles_h * TH
            w0 = tile_m % tiles_w * TW
        for _ in range(first, last):
            ready = full.index(slot)
            mbarrier.wait(empty.index(slot), phase)
            mbarrier.expect(ready, TB * TH * TW * BK + (0 if BITS == 4 else (BN1 + BN2) * BK))
            dh = tap // KERNEL
            dw = tap % KERNEL
            if STRIDE == 1:
                at = [b0, h0 + dh, w0 + dw, c]
            else:
                dh -= shape[8]
                dw -= shape[9]
                at = [b0, h0 + (dh >> 1), dh & 1, w0 + (dw >> 1), (dw & 1) * channels + c]
            tma.async_copy_global_to_shared(x, at, ready, a_bufs.index(slot))
            cw = c
            if BITS == 4:
                cw = c // 2
                ready = packed.index(slot)
                mbarrier.expect(ready, (BN1 + BN2) * BK // 2)
            tma.async_copy_global_to_shared(weight1, [n0, tap, cw], ready, b1_bufs.index(slot))
            if BN2 > 0:
                tma.async_copy_global_to_shared(weight2, [n0 + BN1, tap, cw], ready, b2_bufs.index(slot))
            c += BK
            over = c >= blocks * BK
            tap = gl.where(over, tap + 1, tap)
            c = gl.where(over, 0, c)
            slot += 1
            wrap = slot == STAGES
            phase = gl.where(wrap, phase ^ 1, phase)
            slot = gl.where(wrap, 0, slot)


@gluon.jit
def _multiply(inputs, barriers, outs, constants, sizes, HALF: gl.constexpr, shape: gl.constexpr, flags: gl.constexpr):
    """Four warps: products and epilogue of 64 rows of every tile."""
    TB: gl.constexpr = shape[0]
    TH: gl.constexpr = shape[1]
    TW: gl.constexpr = shape[2]
    BK: gl.constexpr = shape[3]
    BN1: gl.constexpr = shape[4]
    BN2: gl.constexpr = shape[5]
    KERNEL: gl.constexpr = shape[6]
    SPLITS: gl.constexpr = shape[10]
    STAGES: gl.constexpr = shape[11]
    BAND: gl.constexpr = shape[12]
    HAS_RESIDUAL: gl.constexpr = flags[2]
    PIECE: gl.constexpr = flags[5]
    PIECES: gl.constexpr = (BN1 + BN2) // PIECE
    L1: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, min(BN1, 128), 32])
    N2: gl.constexpr = BN2 if BN2 > 0 else 16
    L2: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N2, 32])
    FLAT_A: gl.constexpr = gl.NVMMASharedLayout(BK if BK < 128 else 128, 8)
    a_bufs, b1_bufs, b2_bufs = inputs
    full, empty, extra, packed = barriers
    channels, outputs, height, width, blocks, tiles_h, tiles_w, tiles_m, tiles_n = sizes
    steps = KERNEL * KERNEL * blocks
    slot = gl.to_tensor(0)
    phase = gl.to_tensor(0)
    turn = gl.to_tensor(0)
    for tile in range(gl.program_id(0), tiles_m * tiles_n * SPLITS, gl.num_programs(0)):
        split = tile % SPLITS
        tile_m, tile_n = _place(tile // SPLITS, tiles_m, tiles_n, BAND)
        b0 = tile_m // (tiles_h * tiles_w) * TB
        h0 = tile_m // tiles_w % tiles_h * TH
        w0 = tile_m % tiles_w * TW
        n0 = tile_n * (BN1 + BN2)
        m0 = tile_m * (TB * TH * TW)
        if HAS_RESIDUAL:
            _fetch_residual(outs, extra, n0, m0, b0, h0, w0, PIECES, HALF, shape, flags)
        first = steps * split // SPLITS
        last = steps * (split + 1) // SPLITS
        acc1 = gl.zeros([64, BN1], gl.int32, L1)
        acc2 = gl.zeros([64, N2], gl.int32, L2)
        before = slot
        for k in range(first, last):
            mbarrier.wait(full.index(slot), phase)
            a = a_bufs.index(slot)._reinterpret(gl.int8, [TB * TH * TW, BK], FLAT_A).slice(64 * HALF, 64)
            b1 = b1_bufs.index(slot)._reinterpret(gl.int8, [BN1, BK], FLAT_A).permute((1, 0))
            acc1 = warpgroup_mma(a, b1, acc1, use_acc=k > first, is_async=True)
            if BN2 > 0:
                b2 = b2_bufs.index(slot)._reinterpret(gl.int8, [BN2, BK], FLAT_A).permute((1, 0))
                acc2 = warpgroup_mma(a, b2, acc2, use_acc=k > first, is_async=True)
                acc1, acc2 = warpgroup_mma_wait(num_outstanding=2, deps=[acc1, acc2])
            else:
                acc1 = warpgroup_mma_wait(num_outstanding=1, deps=[acc1])
            mbarrier.arrive(empty.index(before), count=1, pred=k > first)
            before = slot
            slot += 1
            wrap = slot == STAGES
            phase = gl.where(wrap, phase ^ 1, phase)
            slot = gl.where(wrap, 0, slot)
        if BN2 > 0:
            acc1, acc2 = warpgroup_mma_wait(num_outstanding=0, deps=[acc1, acc2])
        else:
            acc1 = warpgroup_mma_wait(num_outstanding=0, deps=[acc1])
        mbarrier.arrive(empty.index(before), count=1, pred=last > first)
        if HAS_RESIDUAL:
            mbarrier.wait(extra.index(HALF), turn)
            turn = turn ^ 1
        _write(acc1, 0, split, n0, m0, b0, h0, w0, outs, constants, sizes, BN1, HALF, shape, flags)
        if BN2 > 0:
            _write(acc2, BN1 // PIECE, split, n0 + BN1, m0, b0, h0, w0, outs, constants, sizes, BN2, HALF, shape, flags)
    tma.store_wait(0)


@gluon.jit
def _position(tensor, m0, b0, h0, w0, n, split, HALF: gl.constexpr, shape: gl.constexpr, flags: gl.constexpr):
    """Where the half of a tile begins in a result."""
    if flags[3] == "sums":
        if flags[4]:
            at = [split, m0 + 64 * HALF, n]
        else:
            at = [split, b0 + _half_b(HALF, shape), h0 + _half_h(HALF, shape), w0 + _half_w(HALF, shape), n]
    else:
        if flags[4]:
            at = [m0 + 64 * HALF, n]
        else:
            at = [b0 + _half_b(HALF, shape), h0 + _half_h(HALF, shape), w0 + _half_w(HALF, shape), n]
    return at


@gluon.jit
def _half_b(HALF: gl.constexpr, shape: gl.constexpr):
    return (64 * HALF) // (shape[1] * shape[2])


@gluon.jit
def _half_h(HALF: gl.constexpr, shape: gl.constexpr):
    return (64 * HALF) // shape[2] % shape[1]


@gluon.jit
def _half_w(HALF: gl.constexpr, shape: gl.constexpr):
    return (64 * HALF) % shape[2]


@gluon.jit
def _fetch_residual(
    outs, extra, n0, m0, b0, h0, w0, PIECES: gl.constexpr, HALF: gl.constexpr, shape: gl.constexpr, flags: gl.constexpr
):
    """Every piece of the residual at once, when the last tile has left the buffers."""
    PIECE: gl.constexpr = flags[5]
    out, residual, y_bufs = outs
    tma.store_wait(0)
    gl.thread_barrier()
    ready = extra.index(HALF)
    mbarrier.expect(ready, 64 * PIECE * 2 * PIECES)
    for i in gl.static_range(PIECES):
        at = _position(residual, m0, b0, h0, w0, n0 + i * PIECE, 0, HALF, shape, flags)
        tma.async_copy_global_to_shared(residual, at, ready, y_bufs.index(HALF * flags[6] + i))


@gluon.jit
def _write(
    acc, piece: gl.constexpr, split, n0, m0, b0, h0, w0, outs, constants, sizes, BN: gl.constexpr, HALF: gl.constexpr,
    shape: gl.constexpr, flags: gl.constexpr,
):  # fmt: skip
    """Epilogue of [64, BN] sums, PIECE columns at a time."""
    PIECE: gl.constexpr = flags[5]
    if BN > PIECE:
        left, right = gl.split(gl.permute(gl.reshape(acc, (64, 2, BN // 2)), (0, 2, 1)))
        _write(left, piece, split, n0, m0, b0, h0, w0, outs, constants, sizes, BN // 2, HALF, shape, flags)
        _write(
            right, piece + BN // 2 // PIECE, split, n0 + BN // 2, m0, b0, h0, w0, outs, constants, sizes, BN // 2, HALF,
            shape, flags,
        )  # fmt: skip
    else:
        TH: gl.constexpr = shape[1]
        TW: gl.constexpr = shape[2]
        HAS_RESIDUAL: gl.constexpr = flags[2]
        KIND: gl.constexpr = flags[3]
        BUFFERS: gl.constexpr = flags[6]
        LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 32])
        WIDTH: gl.constexpr = BN // 2 if KIND == "geglu" else BN
        out, residual, y_bufs = outs
        correction, multiplier, bias, step, inverse, zero_point, largest = constants
        channels, outputs, height, width, blocks, tiles_h, tiles_w, tiles_m, tiles_n = sizes
        acc = gl.convert_layout(acc, LAYOUT)
        if shape[13] == 4:
            acc = acc >> 4
        buf = y_bufs.index(HALF * BUFFERS + piece % BUFFERS)._reinterpret(
            out.dtype, [64, WIDTH], gl.NVMMASharedLayout(_swizzle(WIDTH, out.dtype), out.dtype.primitive_bitwidth)
        )
        if KIND == "sums":
            y = acc
        else:
            n = n0 + gl.arange(0, BN, gl.SliceLayout(0, LAYOUT))
            acc = acc + gl.load(correction + n, mask=n < outputs, other=0)[None, :]
            if flags[0]:
                p = 64 * HALF + gl.arange(0, 64, gl.SliceLayout(1, LAYOUT))
                acc = _correct_cases(
                    acc, correction, n, outputs, h0 + p // TW % TH, w0 + p % TW, h0, height, width, shape[6], shape[7],
                    shape[8], shape[9], TH,
                )  # fmt: skip
            if out.dtype == gl.int32:
                y = acc
            else:
                y = _scaled(acc, n, multiplier, outputs)
                if HAS_RESIDUAL:
                    more = buf.load(LAYOUT)
                else:
                    more = y
                y = _finish(
                    y, more, n, bias, step, inverse, zero_point, largest, outputs, 64, BN, flags[1], HAS_RESIDUAL, KIND,
                    out.dtype,
                )  # fmt: skip
        if not HAS_RESIDUAL:
            tma.store_wait(BUFFERS - 1)
        gl.thread_barrier()
        buf.store(y)
        fence_async_shared()
        gl.thread_barrier()
        at = _position(out, m0, b0, h0, w0, n0 // 2 if KIND == "geglu" else n0, split, HALF, shape, flags)
        tma.async_copy_shared_to_global(out, at, y_bufs.index(HALF * BUFFERS + piece % BUFFERS))


@gluon.constexpr_function
def _swizzle(width, dtype):
    """Bytes of the swizzle of a buffer of rows of `width` elements."""
    return min(128, width * dtype.primitive_bitwidth // 8)
