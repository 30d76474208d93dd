"""From an int32 accumulator to the result: device functions that every product kernel shares.

Products and sums are rounded one by one (kernels are launched with enable_fp_fusion=False), so a float32 result is
bit for bit `kernels.reference.epilogue`. Division by the scale is exact as well: with v = 1/s rounded,

    q = y*v;   r = fma(-q, s, y);   y/s = fma(r, v, q)           correctly rounded (Markstein 1990, theorem 1)    (1)

at three instructions; a division operator takes about eight and a branch. Rounding to integers adds 1.5 * 2**23, as
`kernels.codes`, and reads the bits: a conversion to int32 runs at an eighth of the rate of other instructions.

Constants are literals or defaults of arguments. A global `tl.constexpr` is part of the name that Triton keeps a
compiled kernel by, or is not, as the kernels of a process happen to be asked for in one order or another
(triton-lang/triton#10494, mended after 3.6): then what another process compiled is compiled again.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

_INTERPRETED = knobs.runtime.interpret


@triton.jit
def quantized(y, step, inverse, zero_point, largest):
    """Signed codes clamp(round(y / step) + zero_point, 0, largest) - 128 of float32 `y`."""
    q = y * inverse
    q = tl.fma(tl.fma(-q, step, y), inverse, q)
    low = tl.cast(-zero_point, tl.float32)  # bounds are integers: clamping first gives the same code
    q = tl.minimum(tl.maximum(q, low), tl.cast(largest - zero_point, tl.float32))
    # 1.5 * 2**23 and its bits: of a sum near it, their difference is the rounded number
    return ((q + 12582912.0).to(tl.int32, bitcast=True) + (zero_point - 128 - 0x4B400000)).to(tl.int8)


@triton.jit
def gelu(x):
    """x * Phi(x) = max(x, 0) - |x| erfc(|x|/sqrt 2) / 2, with erfc to 1.5e-7 (Abramowitz and Stegun, 7.1.26).

    A step of codes is 1e-2 or more. The library's erf takes three times as many instructions, and what limits GEGLU's
    product is this epilogue.
    """
    size = tl.abs(x)
    t = inverse_of(tl.fma(size, 0.231641888, 1.0))  # 0.3275911 / sqrt(2); the coefficients below are halved
    p = tl.fma(t, 0.5307027145, -0.7265760135)
    p = tl.fma(t, p, 0.710706871)
    p = tl.fma(t, p, -0.142248368)
    p = tl.fma(t, p, 0.127414796)
    half_erfc = p * t * power_of_2(x * x * -0.7213475204)  # exp(-x**2 / 2)
    return tl.maximum(x, 0.0) - size * half_erfc


@triton.jit
def silu(x):
    """x / (1 + exp(-x)), in six instructions."""
    return x * inverse_of(1.0 + power_of_2(x * -1.4426950408889634))


@triton.jit
def power_of_2(x, INTERPRETED: tl.constexpr = _INTERPRETED):
    """2**x to 2 units in the last place, 0 where that is subnormal."""
    if INTERPRETED:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def inverse_of(x, INTERPRETED: tl.constexpr = _INTERPRETED):
    """1 / x to 1 unit in the last place, 0 of infinity."""
    if INTERPRETED:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def along(outputs, TURNED: tl.constexpr):
    """What belongs to outputs, for a tile [positions, outputs], or the other way round (TURNED)."""
    return outputs[:, None] if TURNED else outputs[None, :]


@triton.jit
def correct_cases(
    acc, correction, n, outputs, h, w, h0, height, width, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    PAD_TOP: tl.constexpr, PAD_LEFT: tl.constexpr, TH: tl.constexpr, TURNED: tl.constexpr,
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
        acc = _add_case(acc, correction, n, outputs, base, case, 4 << i, TURNED)
    if (h0 * STRIDE < PAD_TOP) | ((h0 + TH - 1) * STRIDE - PAD_TOP + KERNEL > height):
        for v in tl.static_range(1, 3):
            for i in tl.static_range(3):
                acc = _add_case(acc, correction, n, outputs, base, case, v + 4 * i, TURNED)
    return acc


@triton.jit
def _add_case(acc, correction, n, outputs, base, case, CASE: tl.constexpr, TURNED: tl.constexpr):
    more = tl.load(correction + CASE * outputs + n, mask=n < outputs, other=0) - base
    here = (case == CASE)[None, :] if TURNED else (case == CASE)[:, None]
    return acc + tl.where(here, along(more, TURNED), 0)


@triton.jit
def scaled(acc, n, multiplier, outputs, TURNED: tl.constexpr = False):
    """float32(acc) * multiplier for outputs `n`: the product of equation (2) of the package."""
    return acc.to(tl.float32) * along(tl.load(multiplier + n, mask=n < outputs, other=0.0), TURNED)


@triton.jit
def finish(
    y, extra, n, bias, step, inverse, zero_point, largest, outputs, BM: tl.constexpr, BN: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, KIND: tl.constexpr, DTYPE: tl.constexpr,
    TURNED: tl.constexpr = False,
):  # fmt: skip
    """The rest of equations (2) to (6) of the package for [BM, BN] of scaled sums (TURNED: [BN, BM])."""
    if HAS_BIAS:
        y = y + along(tl.load(bias + n, mask=n < outputs, other=0.0), TURNED)
    if KIND == "geglu":  # a thread of a Hopper has output j and j + 8 in either layout: nothing moves
        if TURNED:
            value, gate = tl.split(tl.permute(tl.reshape(y, (BN // 16, 2, 8, BM)), (0, 2, 3, 1)))
            y = tl.reshape(value * gelu(gate), (BN // 2, BM))
        else:
            value, gate = tl.split(tl.permute(tl.reshape(y, (BM, BN // 16, 2, 8)), (0, 1, 3, 2)))
            y = tl.reshape(value * gelu(gate), (BM, BN // 2))
    if HAS_RESIDUAL:
        y = y + extra.to(tl.float32)
    if KIND == "float":
        return y.to(DTYPE)
    else:
        return quantized(y, step, inverse, zero_point, largest)


@triton.jit
def nibbles(packed, BN: tl.constexpr, BK: tl.constexpr, INTERPRETED: tl.constexpr = _INTERPRETED):
    """int8 [BN, BK] from bytes [BN, BK/2], as `operands.pack_nibbles` stores them: 16 times the codes.

    A code in the upper half of its byte takes one or two instructions for four of them; sums are divided by 16 at
    their end, exactly. |16 w| <= 128, so the bound of the sums is that of 8 bits.
    """
    signed = packed.to(tl.int8, bitcast=True)
    if INTERPRETED:
        low, high = signed << 4, (signed >> 4) << 4
    else:
        low, high = tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 4; and.b32 $0, $0, 0xf0f0f0f0; and.b32 $1, $2, 0xf0f0f0f0;",
            "=&r,=&r,r",
            [signed],
            dtype=(tl.int8, tl.int8),
            is_pure=True,
            pack=4,
        )
    both = tl.join(low, high)  # [BN, BK/2, 2]
    return tl.reshape(tl.permute(tl.reshape(both, (BN, BK // 32, 16, 2)), (0, 1, 3, 2)), (BN, BK))
