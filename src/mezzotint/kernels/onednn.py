"""int8 products of oneDNN, through the operators that torch's own x86 quantization backend compiles to.

Called with an input scale of 1 and the multiplier as weight scale they compute equation (1) of `contract` bit for
bit. (With the input scale passed apart they do not: the two scales are then applied one after the other.) Padding is
exact for every zero point. The output has the channels_last layout; an input in that layout spares a copy.

What was measured, on AVX2, AVX-512 and VNNI code paths, over some ten thousand random shapes:

* Without VNNI two products u8 * s8 are first added in saturating int16. That loses nothing while
  2 * input_max * weight_max < 2**15, as for weights of at most 7 bits; with 8 bits nearly every output is wrong.
* With conv_groups > 1 and one input channel a group, results are wrong. Grouped convolutions are refused.
* With one input channel and stride (1, 2), results are wrong (torch 2.13). Unequal strides are refused.
* A window that lies wholly in the padding reads memory it does not own (and may crash). Windows always touch the
  picture when the padding is at most "same" padding, dilation * ((kernel - 1) // 2); more is refused.

The processor is not asked what it has: an environment variable (ONEDNN_MAX_CPU_ISA) can take it away. Instead,
products that saturate if anything does are computed once and compared with the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from mezzotint.errors import KernelError
from mezzotint.kernels import reference
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
_NO_MATMUL = "oneDNN has no product of two uint8 activations in this build of torch"


def refuses(request: Request) -> str | None:
    """Why `request` cannot be met, or None."""
    geometry = request.geometry
    if request.device.type != "cpu":
        return f"it runs on the CPU, not on {request.device.type}"
    if request.op == "matmul":
        return _NO_MATMUL
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
    geometry, multiplier, zero_point = constants.geometry, constants.multiplier, constants.x_zero_point
    stride, padding, dilation = list(geometry.stride), list(geometry.padding), list(geometry.dilation)
    groups, bias, weight_zero = geometry.conv_groups, constants.bias, _zeros(constants)
    weight = torch.ops.onednn.qconv_prepack(
        constants.weight_q.contiguous(), multiplier, 1.0, zero_point, stride, padding, dilation, groups, None
    )
    run = torch.ops.onednn.qconv_pointwise.default

    def product(x_q: UInt8[Tensor, "b c h w"]) -> Float32[Tensor, "b o h2 w2"]:
        window = (stride, padding, dilation, groups)
        return run(x_q, 1.0, zero_point, weight, multiplier, weight_zero, bias, *window, *_FLOAT_OUTPUT)

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
    raise KernelError(f"matmul: {_NO_MATMUL}; choose kernel='exact-fp32'")


@lru_cache(maxsize=2)
def probe(input_max: int, weight_max: int) -> str | None:
    """Why products of codes up to these sizes are not those of the reference on this processor, or None.

    Takes a few milliseconds, once. Saturation shows in all-extreme codes, a different epilogue in random ones.
    """
    for op, x_q, constants in _probes(input_max, weight_max):
        ours, exact = (prepare_conv2d, reference.prepare_conv2d), (prepare_linear, reference.prepare_linear)
        prepare, prepare_exact = ours if op == "conv2d" else exact
        try:
            y = prepare(constants)(x_q)
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            return f"{op} is missing in this build of torch ({str(error).splitlines()[0][:80]})"
        if not torch.equal(y, prepare_exact(constants)(x_q)):
            cause = "int16 saturation, no VNNI" if 2 * input_max * weight_max > INT16_MAX else "unknown cause"
            return f"its {op} products of weights up to {weight_max} are wrong on this processor ({cause})"
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
