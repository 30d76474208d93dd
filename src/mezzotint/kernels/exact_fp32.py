"""Exact products for processors without integer multiply-add: float32 arithmetic on integers.

A float32 holds every integer up to 2**24. With x' = x_q - x_zero_point and |x'| <= X, every partial sum of output o
over a set S of input channels is an integer of size at most

    X * sum_{c in S, u, v} |weight_q[o, c, u, v]|                                                            (1)

whatever the order of the sum. The input channels are cut into runs for which (1) is at most 2**24; the sum of each
run is exact, and the runs are added up in int32. The bound uses the weights there are, not the largest there could
be, so a typical layer is a single run.

It holds for direct sums only. A library that transforms a convolution (Winograd, FFT) or drops bits of the inputs
breaks it: CUDA is refused, and on the CPU the convolution is tried on numbers near the bound before it is trusted
(NNPACK, which torch takes when oneDNN is switched off, fails that).
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int8, UInt8
from torch import Tensor

from mezzotint.errors import KernelError
from mezzotint.kernels.contract import Paired, PairProduct, Product, Request, Weighted

SUMMARY = "exact float32 products of integers, every partial sum at most 2**24"
EXACT_MAX = 2**24  # all integers up to here are float32 numbers


def refuses(request: Request) -> str | None:
    """Why `request` cannot be met, or None."""
    if request.device.type != "cpu":
        return f"it runs on the CPU only (float32 products on {request.device.type} may use TF32 or Winograd)"
    kernel_height, kernel_width = request.kernel_size
    if request.input_max * request.weight_max * kernel_height * kernel_width > EXACT_MAX:
        return f"the {kernel_height}x{kernel_width} window of a single channel can exceed 2**24"
    if request.op == "conv2d" and not _convolution_is_exact(torch.backends.mkldnn.enabled):
        return "float32 convolutions of this build of torch are not exact on integers"
    return None


def prepare_conv2d(constants: Weighted) -> Product:
    geometry, groups = constants.geometry, constants.geometry.conv_groups
    window = (geometry.stride, geometry.padding, geometry.dilation, groups)
    weight = constants.weight_q.float().contiguous(memory_format=torch.channels_last)
    runs = channel_runs(constants.weight_q, _largest(constants.x_zero_point, constants.input_max))
    parts = [weight[:, run].contiguous(memory_format=torch.channels_last) for run in runs]
    multiplier = constants.multiplier.view(-1, 1, 1)
    bias = None if constants.bias is None else constants.bias.view(-1, 1, 1)

    def product(x_q: UInt8[Tensor, "b c h w"]) -> Float32[Tensor, "b o h2 w2"]:
        x = _centre(x_q, constants.x_zero_point)
        if x.shape[1] == 1:  # torch 2.13: wrong sums for one channel with the strides of channels_last, stride (1, 2)
            x = x.clone(memory_format=torch.contiguous_format)
        if len(runs) == 1:
            return _epilogue(F.conv2d(x, weight, None, *window), multiplier, bias)
        by_group = x.unflatten(1, (groups, -1))
        slices = (by_group[:, :, run].flatten(1, 2) for run in runs)
        sums = [F.conv2d(s, part, None, *window) for s, part in zip(slices, parts, strict=True)]
        return _epilogue(_add_exactly(sums), multiplier, bias)

    return product


def prepare_linear(constants: Weighted) -> Product:
    weight = constants.weight_q.float()
    runs = channel_runs(constants.weight_q, _largest(constants.x_zero_point, constants.input_max))

    def product(x_q: UInt8[Tensor, "... k"]) -> Float32[Tensor, "... o"]:
        x = _centre(x_q, constants.x_zero_point)
        if len(runs) == 1:
            return _epilogue(F.linear(x, weight), constants.multiplier, constants.bias)
        sums = [F.linear(x[..., run], weight[:, run]) for run in runs]
        return _epilogue(_add_exactly(sums), constants.multiplier, constants.bias)

    return product


def prepare_matmul(constants: Paired) -> PairProduct:
    largest = _largest(constants.a_zero_point, constants.a_max) * _largest(constants.b_zero_point, constants.b_max)
    length = EXACT_MAX // max(1, largest)

    def product(a_q: UInt8[Tensor, "... m k"], b_q: UInt8[Tensor, "... k n"]) -> Float32[Tensor, "... m n"]:
        a, b = _centre(a_q, constants.a_zero_point), _centre(b_q, constants.b_zero_point)
        if a.shape[-1] <= length:
            return _epilogue(torch.matmul(a, b), constants.multiplier, None)
        starts = range(0, a.shape[-1], length)
        sums = [torch.matmul(a[..., i : i + length], b[..., i : i + length, :]) for i in starts]
        return _epilogue(_add_exactly(sums), constants.multiplier, None)

    return product


def channel_runs(weight_q: Int8[Tensor, "o c *window"], largest_input: int) -> list[slice]:
    """Runs of input channels (axis 1) for which the bound (1) is at most 2**24; as few as a greedy cut gives.

    Raises:
        KernelError: the window of a single channel exceeds the bound.
    """
    sizes = weight_q.to(torch.int64).abs().flatten(2).sum(2) if weight_q.dim() > 2 else weight_q.to(torch.int64).abs()
    runs, start, channels = [], 0, weight_q.shape[1]
    while start < channels:
        bounds = sizes[:, start:].cumsum(1).amax(0) * largest_input
        length = int((bounds <= EXACT_MAX).sum())
        if length == 0:
            raise KernelError(f"exact-fp32: input channel {start} alone can exceed 2**24; choose kernel='reference'")
        runs.append(slice(start, start + length))
        start += length
    return runs


def _largest(zero_point: int, code_max: int) -> int:
    """Largest size of code - zero_point."""
    return max(zero_point, code_max - zero_point)


def _centre(codes: Tensor, zero_point: int) -> Tensor:
    return codes.to(torch.float32).sub_(zero_point)


def _add_exactly(sums: list[Tensor]) -> Tensor:
    """float32(sum of integer-valued float32 tensors), added up in int32."""
    acc = sums[0].to(torch.int32)
    for part in sums[1:]:
        acc += part.to(torch.int32)
    return acc.to(torch.float32)


def _epilogue(acc: Tensor, multiplier: Tensor | float, bias: Tensor | None) -> Tensor:
    """Equation (1) of `contract`, in place."""
    acc.mul_(multiplier)
    return acc if bias is None else acc.add_(bias)


@lru_cache(maxsize=2)
def _convolution_is_exact(mkldnn_enabled: bool) -> bool:
    """Whether F.conv2d is exact near 2**24. Sixteen pictures and a 3x3 window are what transforming libraries want.

    Args:
        mkldnn_enabled: the switch that decides which library runs; only here to be part of the cache's key.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-255, 256, (16, 48, 8, 8), generator=generator).float()
    weight = torch.randint(-128, 128, (16, 48, 3, 3), generator=generator).float()
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    return torch.equal(F.conv2d(x, weight, padding=1).double(), exact)
