"""int8 products of oneDNN, through the operators that torch's own x86 quantization backend compiles to.

Called with an input scale of 1 and the multiplier as weight scale they compute equation (1) of `contract` bit for
bit. (With the input scale passed apart they do not: the two scales are then applied one after the other.) Padding is
exact for every zero point. The output has the channels_last layout; an input in that layout spares a copy.

Three detours, each with the same integers, because the direct road is slow (two cores with VNNI, microseconds):

* A convolution with a zero point sums its weights anew in every call: 256 -> 256, 3x3, 4 pictures of 8 x 8 takes 470,
  of which 290 are that sum. So the zero point is *carried* by a few more input channels with constant codes (see
  `carried_zero_point`): 195. Rejected: adding -zero_point * sum(w) to the bias, which rounds.
* A 1x1 convolution is a linear layer over the pixels, whose zero point costs nothing: 36 instead of 115.
* Two activations: with b shifted to int8 and the four terms of (a - za)(b - zb) taken apart, the large one is
  torch._int_mm, an exact int32 product: a quarter of float32's time. It takes one pair of matrices a call, so many
  small ones go through `exact_fp32`, all at once: the same bits.

What was measured, on AVX2, AVX-512 and VNNI code paths, over some ten thousand random shapes:

* Without VNNI two products u8 * s8 are first added in saturating int16. That loses nothing while
  2 * input_max * weight_max < 2**15, as for weights of at most 7 bits; with 8 bits nearly every output is wrong.
* With conv_groups > 1 and one input channel a group, results are wrong. Grouped convolutions are refused.
* With one input channel and stride (1, 2), results are wrong (torch 2.13). Unequal strides are refused.
* A window that lies wholly in the padding reads memory it does not own (and may crash). Windows always touch the
  picture when the padding is at most "same" padding, dilation * ((kernel - 1) // 2); more is refused.

Packed weights have a layout that oneDNN chooses for the size of the picture; called with another it would reorder them
in every call: 96 -> 96, 3x3, 8 x 8: 3950 us for 60; 384 -> 384, 8 x 8: 265 ms for 0.2. So the weights of a convolution
are packed for the shape that comes, and anew when that changes.

The processor is not asked what it has: an environment variable (ONEDNN_MAX_CPU_ISA) can take it away. Instead,
products that saturate if anything does are computed once and compared with the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from mezzotint.kernels import exact_fp32, reference
from mezzotint.kernels.contract import (
    CODE_MAX,
    WEIGHT_MAX,
    Geometry,
    Paired,
    PairProduct,
    Product,
    Request,
    Weighted,
)

SUMMARY = "oneDNN int8 products, equal to the reference on this processor"
INT16_MAX = 2**15 - 1
_SIGN_BIT = 128  # uint8 ^ 128, read as int8, is the same number less 128
_SMALL_PRODUCT = 2**18  # multiply-adds of one pair of matrices below which one batched float32 product is faster
_CHANNEL_BLOCK = 4  # VNNI adds up four products at a time


def refuses(request: Request) -> str | None:
    """Why `request` cannot be met, or None."""
    geometry = request.geometry
    if request.device.type != "cpu":
        return f"it runs on the CPU, not on {request.device.type}"
    if request.op == "matmul":
        return probe_matmul()
    if geometry.conv_groups > 1:
        return f"its grouped convolutions are not exact (conv_groups={geometry.conv_groups})"
    if geometry.stride[0] != geometry.stride[1]:
        return f"its convolutions with unequal strides are not exact (stride={geometry.stride})"
    same = tuple(d * ((k - 1) // 2) for d, k in zip(geometry.dilation, request.kernel_size, strict=True))
    if any(pad > most for pad, most in zip(geometry.padding, same, strict=True)):
        return f"padding {geometry.padding} is more than 'same' padding {same}"
    if 2 * request.input_max * request.weight_max <= INT16_MAX:
        return probe(CODE_MAX, WEIGHT_MAX // 2)
    return probe(CODE_MAX, WEIGHT_MAX)


def prepare_conv2d(constants: Weighted) -> Product:
    geometry = constants.geometry
    if constants.weight_q.shape[2:] == (1, 1) and geometry == Geometry():
        return _pointwise_conv2d(constants)
    carried = carried_zero_point(constants)
    return _direct_conv2d(constants) if carried is None else _carrying_conv2d(constants, *carried)


def _direct_conv2d(constants: Weighted) -> Product:
    geometry, multiplier, zero_point = constants.geometry, constants.multiplier, constants.x_zero_point
    stride, padding, dilation = list(geometry.stride), list(geometry.padding), list(geometry.dilation)
    groups, bias, weight_zero = geometry.conv_groups, constants.bias, _zeros(constants)
    run, pack, codes = torch.ops.onednn.qconv_pointwise.default, torch.ops.onednn.qconv_prepack, _codes_of(constants)
    window = (stride, padding, dilation, groups)
    kept: dict[tuple[int, ...], Tensor] = {}

    def product(x_q: UInt8[Tensor, "b c h w"]) -> Float32[Tensor, "b o h2 w2"]:
        shape = tuple(x_q.shape)
        if shape not in kept:
            kept.clear()
            kept[shape] = pack(codes().contiguous(), multiplier, 1.0, zero_point, *window, list(shape))
        return run(x_q, 1.0, zero_point, kept[shape], multiplier, weight_zero, bias, *window, *_FLOAT_OUTPUT)

    return product


def _codes_of(constants: Weighted) -> Callable[[], Tensor]:
    """What gives the weights whenever they are packed, without keeping them if they can be had again."""
    if constants.again is not None:
        return constants.again
    weight_q = constants.weight_q
    return lambda: weight_q


def _carrying_conv2d(constants: Weighted, weight_q: Tensor, codes: Tensor) -> Product:
    """A convolution without a zero point, over the channels of the input and those of `carried_zero_point`."""
    channels, width = constants.weight_q.shape[1], weight_q.shape[1]
    own, carriers = _codes_of(constants), weight_q[:, channels:].clone()
    codes = codes.view(1, -1, 1, 1)

    def again() -> Tensor:
        return torch.cat([own(), carriers], dim=1)

    inner = _direct_conv2d(replace(constants, weight_q=weight_q, x_zero_point=0, again=again))

    def product(x_q: UInt8[Tensor, "b c h w"]) -> Float32[Tensor, "b o h2 w2"]:
        batch, _, *size = x_q.shape
        wide = torch.empty((batch, width, *size), dtype=torch.uint8, memory_format=torch.channels_last)
        wide[:, :channels] = x_q
        wide[:, channels:] = codes
        return inner(wide)

    return product


def carried_zero_point(constants: Weighted) -> tuple[Tensor, Tensor] | None:
    """Weights [O, C + E, kh, kw] and codes [E] of a convolution with zero point 0 that has the same sums, or None.

        sum_c (x[c] - z) w[c] = sum_c x[c] w[c] + sum_e codes[e] w[C + e],  sum_e codes[e] w[C + e] = -z sum_c w[c]

    holds for each position of the window, so borders are right: there all of it is zero. Codes are 255 for the bulk
    and 1 for what remains. The int32 sum of both may wrap around and back; the result is that of the contract.
    None where there is no zero point, where weights are so one-sided that E exceeds a quarter of C, and where
    products of such weights saturate.
    """
    weight, channels = constants.weight_q, constants.weight_q.shape[1]
    if constants.x_zero_point == 0 or constants.geometry.conv_groups > 1 or saturates():
        return None
    target = -constants.x_zero_point * weight.sum(1, dtype=torch.int32)  # [O, kh, kw]
    bulk = (target / CODE_MAX).round().to(torch.int32)
    parts = [target - CODE_MAX * bulk]  # at most 127 in size, for the code 1
    while bool(bulk.any()) and 4 * len(parts) <= channels:
        parts.append(bulk.clamp(-WEIGHT_MAX, WEIGHT_MAX - 1))
        bulk = bulk - parts[-1]
    extra = -(-len(parts) // _CHANNEL_BLOCK) * _CHANNEL_BLOCK
    if bool(bulk.any()) or 4 * extra > channels:
        return None
    parts += [torch.zeros_like(target)] * (extra - len(parts))
    codes = torch.full((extra,), CODE_MAX, dtype=torch.uint8)
    codes[0] = 1
    return torch.cat([weight, torch.stack(parts, dim=1).to(torch.int8)], dim=1), codes


def _pointwise_conv2d(constants: Weighted) -> Product:
    """A 1x1 convolution as a linear layer over the pixels."""
    linear = prepare_linear(replace(constants, weight_q=constants.weight_q.flatten(1)))

    def product(x_q: UInt8[Tensor, "b c h w"]) -> Float32[Tensor, "b o h w"]:
        return linear(x_q.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)

    return product


def prepare_linear(constants: Weighted) -> Product:
    multiplier, zero_point, bias = constants.multiplier, constants.x_zero_point, constants.bias
    weight = torch.ops.onednn.qlinear_prepack(constants.weight_q.contiguous(), None)
    weight_zero = _zeros(constants)
    run = torch.ops.onednn.qlinear_pointwise.default

    def product(x_q: UInt8[Tensor, "... k"]) -> Float32[Tensor, "... o"]:
        return run(x_q, 1.0, zero_point, weight, multiplier, weight_zero, bias, *_FLOAT_OUTPUT)

    return product


def prepare_matmul(constants: Paired) -> PairProduct:
    large, small = _integer_matmul(constants), exact_fp32.prepare_matmul(constants)

    def product(a_q: UInt8[Tensor, "... m k"], b_q: UInt8[Tensor, "... k n"]) -> Float32[Tensor, "... m n"]:
        return (small if a_q.shape[-2] * b_q.shape[-2] * b_q.shape[-1] < _SMALL_PRODUCT else large)(a_q, b_q)

    return product


def _integer_matmul(constants: Paired) -> PairProduct:
    a_zero, shift = constants.a_zero_point, _SIGN_BIT - constants.b_zero_point  # b' = b - 128, so b - zb = b' + shift

    def product(a_q: UInt8[Tensor, "... m k"], b_q: UInt8[Tensor, "... k n"]) -> Float32[Tensor, "... m n"]:
        a = a_q.flatten(0, -3) if a_q.dim() > 2 else a_q.unsqueeze(0)
        b = (b_q.bitwise_xor(_SIGN_BIT)).view(torch.int8).reshape(len(a), *b_q.shape[-2:])
        acc = torch.empty((*a.shape[:-1], b.shape[-1]), dtype=torch.int32)
        for one_a, one_b, out in zip(a, b, acc, strict=True):
            torch._int_mm(one_a, one_b, out=out)
        if a_zero:
            acc -= a_zero * b.sum(-2, keepdim=True, dtype=torch.int32)
        if shift:
            acc += shift * (a.sum(-1, keepdim=True, dtype=torch.int32) - a_zero * a.shape[-1])
        y = acc.to(torch.float32).mul_(constants.multiplier)
        return y.view(*a_q.shape[:-1], b_q.shape[-1])

    return product


@lru_cache(maxsize=2)
def probe(input_max: int, weight_max: int) -> str | None:
    """Why products of codes up to these sizes are not those of the reference on this processor, or None.

    Takes a few milliseconds, once. Saturation shows in all-extreme codes, a different epilogue in random ones.
    """
    for op, x_q, constants in _probes(input_max, weight_max):
        ours, exact = (_direct_conv2d, reference.prepare_conv2d), (prepare_linear, reference.prepare_linear)
        prepare, prepare_exact = ours if op == "conv2d" else exact
        try:
            y = prepare(constants)(x_q)
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            return f"{op} is missing in this build of torch ({str(error).splitlines()[0][:80]})"
        if not torch.equal(y, prepare_exact(constants)(x_q)):
            cause = "int16 saturation, no VNNI" if 2 * input_max * weight_max > INT16_MAX else "unknown cause"
            return f"its {op} products of weights up to {weight_max} are wrong on this processor ({cause})"
    return None


def saturates() -> bool:
    """Whether products of the largest codes and weights are wrong on this processor."""
    return probe(CODE_MAX, WEIGHT_MAX) is not None


@lru_cache(maxsize=1)
def probe_matmul() -> str | None:
    """Why products of two activations are not those of the reference on this processor, or None."""
    generator = torch.Generator().manual_seed(0)
    for rows, inner, columns in ((33, 70, 17), (64, 64, 64), (5, 3, 7)):
        constants = Paired(3, 77, 1.0)
        random = [torch.randint(0, 256, s, generator=generator) for s in ((rows, inner), (inner, columns))]
        for a, b in (random, [torch.full_like(x, CODE_MAX) for x in random]):
            codes = a.to(torch.uint8), b.to(torch.uint8)
            try:
                y = _integer_matmul(constants)(*codes)
            except (RuntimeError, AttributeError, NotImplementedError) as error:
                return f"torch._int_mm is missing in this build of torch ({str(error).splitlines()[0][:80]})"
            if not torch.equal(y, reference.prepare_matmul(constants)(*codes)):
                return "products of two activations are wrong on this processor (int16 saturation, no VNNI)"
    return None


def _probes(input_max: int, weight_max: int) -> Iterator[tuple[str, Tensor, Weighted]]:
    """(operation, codes, constants) of small products that have nothing in common but being hard."""
    generator = torch.Generator().manual_seed(0)

    def codes(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator)

    for op, x_shape, w_shape in _PROBE_SHAPES:
        padding = (w_shape[-1] // 2,) * 2 if op == "conv2d" else (0, 0)
        for zero_point in (0, input_max // 2):
            multiplier = torch.rand(w_shape[0], generator=generator) * 1e-3
            bias = torch.randn(w_shape[0], generator=generator)
            for w_low, w_high in ((-weight_max, weight_max - 1), (weight_max - 1,) * 2, (-weight_max,) * 2):
                x_low = 0 if w_low < w_high else input_max
                weight = codes(w_low, w_high, *w_shape).to(torch.int8)
                geometry = Geometry(padding=padding)
                constants = Weighted(weight, multiplier, bias, zero_point, input_max, geometry)
                yield op, codes(x_low, input_max, *x_shape).to(torch.uint8), constants


_PROBE_SHAPES: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = (
    ("conv2d", (2, 33, 5, 7), (17, 33, 3, 3)),
    ("conv2d", (2, 64, 4, 4), (32, 64, 1, 1)),
    ("conv2d", (1, 3, 6, 6), (16, 3, 3, 3)),
    ("linear", (5, 67), (19, 67)),
    ("linear", (1, 128), (32, 128)),
)

# output_scale, output_zero_point, output_dtype, post operation, its scalars, its algorithm
_FLOAT_OUTPUT: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")


def _zeros(constants: Weighted) -> Tensor:
    """Zero points of the weights: none."""
    return torch.zeros(constants.weight_q.shape[0], dtype=torch.int64)
