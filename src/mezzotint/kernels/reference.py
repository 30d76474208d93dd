"""The kernel that defines the result: exact on every device that has float64.

Codes and weights are carried as float64. A partial sum is an integer below 2**31 (see `contract`), far inside the 2**53
that float64 holds exactly, so the order of the sum does not matter. Rounding before the step to int32 removes what a
library that transforms a convolution (FFT) could leave behind; after a direct sum it changes nothing.

The alternative, int64 products, has no fast matrix routine on any device and no convolution on CUDA.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int32, UInt8
from torch import Tensor

from mezzotint.kernels.contract import Paired, PairProduct, Product, Request, Weighted

SUMMARY = "exact float64 products"


def refuses(request: Request) -> str | None:
    """Why `request` cannot be met, or None."""
    if request.device.type == "mps":
        return "device mps has no float64"
    return None


def prepare_conv2d(constants: Weighted) -> Product:
    weight, geometry = constants.weight_q.double(), constants.geometry
    per_channel = (-1, 1, 1)

    def product(x_q: UInt8[Tensor, "b c h w"]) -> Float32[Tensor, "b o h2 w2"]:
        acc = F.conv2d(
            x_q.double() - constants.x_zero_point,
            weight,
            None,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            geometry.conv_groups,
        )
        bias = None if constants.bias is None else constants.bias.view(per_channel)
        return epilogue(to_int32(acc), constants.multiplier.view(per_channel), bias)

    return product


def prepare_linear(constants: Weighted) -> Product:
    weight = constants.weight_q.double()

    def product(x_q: UInt8[Tensor, "... k"]) -> Float32[Tensor, "... o"]:
        acc = F.linear(x_q.double() - constants.x_zero_point, weight)
        return epilogue(to_int32(acc), constants.multiplier, constants.bias)

    return product


def prepare_matmul(constants: Paired) -> PairProduct:
    def product(a_q: UInt8[Tensor, "... m k"], b_q: UInt8[Tensor, "... k n"]) -> Float32[Tensor, "... m n"]:
        acc = torch.matmul(a_q.double() - constants.a_zero_point, b_q.double() - constants.b_zero_point)
        return epilogue(to_int32(acc), constants.multiplier, None)

    return product


def to_int32(acc: Tensor) -> Int32[Tensor, "..."]:
    """The int32 accumulator that a float64 sum of integers stands for."""
    return acc.round().to(torch.int32)


def epilogue(
    acc: Int32[Tensor, "..."], multiplier: Float32[Tensor, "..."] | float, bias: Float32[Tensor, "..."] | None
) -> Float32[Tensor, "..."]:
    """Equation (1) of `contract`: float32(acc) * multiplier + bias, two roundings."""
    y = acc.to(torch.float32) * multiplier
    return y if bias is None else y + bias
