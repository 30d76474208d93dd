"""From an int32 accumulator to the result: device functions that every product kernel shares.

Products and sums are rounded one by one (kernels are launched with enable_fp_fusion=False), so a float32 result is
bit for bit `kernels.reference.epilogue`. Division by the scale is exact as well: with v = 1/s rounded,

    q = y*v;   r = fma(-q, s, y);   y/s = fma(r, v, q)           correctly rounded (Markstein 1990, theorem 1)    (1)

at three instructions; a division operator takes about eight and a branch. Rounding to integers adds 1.5 * 2**23, as
`kernels.codes`.
"""

from __future__ import annotations

import triton
import triton.language as tl

_MAGIC = tl.constexpr(12582912.0)  # 1.5 * 2**23


@triton.jit
def quantized(y, step, inverse, zero_point, largest):
    """Signed codes clamp(round(y / step) + zero_point, 0, largest) - 128 of float32 `y`."""
    q = y * inverse
    q = tl.fma(tl.fma(-q, step, y), inverse, q)
    q = tl.minimum(tl.maximum(q, -1048576.0), 1048576.0)  # keeps the sum below where float32 has spacing 1
    rounded = ((q + _MAGIC) - _MAGIC).to(tl.int32) + zero_point
    return (tl.minimum(tl.maximum(rounded, 0), largest) - 128).to(tl.int8)


@triton.jit
def gelu(x):
    """x * Phi(x), the exact one."""
    return 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))


@triton.jit
def correct_cases(
    acc, correction, n, outputs, h, w, h0, height, width, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    PAD_TOP: tl.constexpr, PAD_LEFT: tl.constexpr, TH: tl.constexpr,
):  # fmt: skip
    """Adds to `acc` (which has case 0 in it) what positions at the edge of the picture differ by.

    Pictures have at least two rows and columns, so at most one row and one column of taps is missing. Tiles (rows
    h0 .. h0+TH) that touch neither the first nor the last row, most of them, need two of the eight cases.
    """
    top = h * STRIDE - PAD_TOP < 0
    bottom = h * STRIDE - PAD_TOP + KERNEL > height
    left = w * STRIDE - PAD_LEFT < 0
    right = w * STRIDE - PAD_LEFT + KERNEL > width
    case = top.to(tl.int32) + 2 * bottom.to(tl.int32) + 4 * left.to(tl.int32) + 8 * right.to(tl.int32)
    base = tl.load(correction + n, mask=n < outputs, other=0)
    for i in tl.static_range(2):
        acc = _add_case(acc, correction, n, outputs, base, case, 4 << i)
    if (h0 * STRIDE < PAD_TOP) | ((h0 + TH - 1) * STRIDE - PAD_TOP + KERNEL > height):
        for v in tl.static_range(1, 3):
            for i in tl.static_range(3):
                acc = _add_case(acc, correction, n, outputs, base, case, v + 4 * i)
    return acc


@triton.jit
def _add_case(acc, correction, n, outputs, base, case, CASE: tl.constexpr):
    more = tl.load(correction + CASE * outputs + n, mask=n < outputs, other=0) - base
    return acc + tl.where((case == CASE)[:, None], more[None, :], 0)


@triton.jit
def scaled(acc, n, multiplier, outputs):
    """float32(acc) * multiplier for columns `n`: the product of equation (2) of the package."""
    return acc.to(tl.float32) * tl.load(multiplier + n, mask=n < outputs, other=0.0)[None, :]


@triton.jit
def finish(
    y, extra, n, bias, step, inverse, zero_point, largest, outputs, BM: tl.constexpr, BN: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, KIND: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The rest of equations (2) to (6) of the package for [BM, BN] of scaled sums."""
    if HAS_BIAS:
        y = y + tl.load(bias + n, mask=n < outputs, other=0.0)[None, :]
    if KIND == "geglu":
        value, gate = tl.split(tl.reshape(y, (BM, BN // 2, 2)))
        y = value * gelu(gate)
    if HAS_RESIDUAL:
        y = y + extra.to(tl.float32)
    if KIND == "float":
        return y.to(DTYPE)
    else:
        return quantized(y, step, inverse, zero_point, largest)


@triton.jit
def nibbles(packed, BN: tl.constexpr, BK: tl.constexpr):
    """int8 [BN, BK] from bytes [BN, BK/2], as `operands.pack_nibbles` stores them."""
    signed = packed.to(tl.int8, bitcast=True)
    both = tl.join((signed << 4) >> 4, signed >> 4)  # [BN, BK/2, 2]
    return tl.reshape(tl.permute(tl.reshape(both, (BN, BK // 32, 16, 2)), (0, 1, 3, 2)), (BN, BK))
