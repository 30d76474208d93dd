"""The integer operations: what each takes, what it must return, and what a kernel has to offer.

One operation, one contract. All take codes and give float32; the accumulator `acc` is an exact int32 and the epilogue
is float32 arithmetic that is *not* fused (a product, rounded, then a sum, rounded):

    y = float32(acc) * multiplier + bias                                                                      (1)

    conv2d   acc[b,o,i,j] = sum_{c,u,v} (x_q[b,c,...] - x_zero_point) * weight_q[o,c,u,v]
    linear   acc[...,o]   = sum_k (x_q[...,k] - x_zero_point) * weight_q[o,k]
    matmul   acc[...,m,n] = sum_k (a_q[...,m,k] - a_zero_point) * (b_q[...,k,n] - b_zero_point)

    name           dtype    shape                     meaning
    x_q, a_q, b_q  uint8    [B, C, H, W], [..., K],   codes of activations
                            [..., M, K], [..., K, N]
    x_zero_point   int      0..255                    code of 0.0; also what lies outside the picture
    weight_q       int8     [O, C/g, kh, kw], [O, K]  codes of weights, zero point 0
    multiplier     float32  [O] (a float for matmul)  input_scale * weight_scale[o]; a_scale * b_scale
    bias           float32  [O] or None

Two kernels agree when every output is the same number. The sign of a zero is not part of the promise.

acc fits int32 because a factor is at most 255 in size and a weight at most 128: n terms stay below 2**31 while
n <= 65793 (conv2d, linear), and two activations while n <= 33025 (matmul). More terms are refused.

A kernel is a module with the functions of `Kernel`. It is asked to *prepare* the constants of a layer once (unpack,
repack, transpose) and answers with a product, a function of the codes alone. The alternative, one function of
everything, would repack the weights in every call. A prepared product is a Python function, called as such in an
untraced network; `traced` gives it a number and an operator, for tracers, with `conv2d_shape` and its siblings as meta
functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from mezzotint.errors import KernelError

Operation = Literal["conv2d", "linear", "matmul"]
Pair = tuple[int, int]
Product = Callable[[Tensor], Tensor]
PairProduct = Callable[[Tensor, Tensor], Tensor]

CODE_MAX = 255  # largest activation code
WEIGHT_MAX = 128  # largest size of a weight code
INT32_MAX = 2**31 - 1


class KernelReport(NamedTuple):
    """Which kernel runs, and why that one."""

    name: str
    reason: str


@dataclass(frozen=True)
class Geometry:
    """How a kernel window moves over the picture: (vertical, horizontal) each; `conv_groups` splits the channels."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    conv_groups: int = 1


@dataclass(frozen=True)
class Request:
    """What decides whether a kernel can do a product: everything but the numbers.

    Attributes:
        input_max: largest activation code that occurs, 2**bits - 1.
        weight_max: largest size of a weight code, 2**(bits - 1); of the second input's codes for `matmul`.
        kernel_size: of a convolution, (1, 1) otherwise.
    """

    op: Operation
    device: torch.device
    input_max: int = CODE_MAX
    weight_max: int = WEIGHT_MAX
    kernel_size: Pair = (1, 1)
    geometry: Geometry = field(default_factory=Geometry)


@dataclass(frozen=True, eq=False)
class Weighted:
    """Constants of a conv2d or linear product; the names are those of the table above.

    Attributes:
        input_max: largest code that x_q will hold. Codes above it break the promise; they are not looked for.
        again: gives weight_q once more; a kernel that repacks its weights later need not keep them then.
    """

    weight_q: Tensor
    multiplier: Tensor
    bias: Tensor | None
    x_zero_point: int
    input_max: int = CODE_MAX
    geometry: Geometry = field(default_factory=Geometry)
    again: Callable[[], Tensor] | None = None

    def without_weights(self) -> Weighted:
        """The same with the shape of the weights only: what `conv2d_shape` and `linear_shape` need."""
        return replace(self, weight_q=self.weight_q.to("meta"), again=None)


@dataclass(frozen=True)
class Paired:
    """Constants of a matmul product; `multiplier` must be a float32 number."""

    a_zero_point: int
    b_zero_point: int
    multiplier: float
    a_max: int = CODE_MAX
    b_max: int = CODE_MAX


class Kernel(Protocol):
    """What a kernel module offers. `refuses` says why a request cannot be met, or None; `SUMMARY` what it does."""

    SUMMARY: str

    def refuses(self, request: Request) -> str | None: ...
    def prepare_conv2d(self, constants: Weighted) -> Product: ...
    def prepare_linear(self, constants: Weighted) -> Product: ...
    def prepare_matmul(self, constants: Paired) -> PairProduct: ...


def check_weighted(op: Operation, constants: Weighted) -> None:
    """Raises KernelError unless `constants` keep the contract of `op`."""
    weight, dims = constants.weight_q, 4 if op == "conv2d" else 2
    if weight.dtype != torch.int8 or weight.dim() != dims or weight.numel() == 0:
        raise KernelError(f"{op}: weight_q must be int8 with {dims} axes and not empty, got {_describe(weight)}")
    per_channel = {"multiplier": constants.multiplier, "bias": constants.bias}
    for name, value in per_channel.items():
        if value is not None and (value.dtype != torch.float32 or value.shape != weight.shape[:1]):
            raise KernelError(f"{op}: {name} must be float32 [{weight.shape[0]}], got {_describe(value)}")
    _check_code(op, "x_zero_point", constants.x_zero_point)
    _check_code(op, "input_max", constants.input_max)
    _check_terms(op, weight[0].numel(), CODE_MAX * WEIGHT_MAX)
    groups = constants.geometry.conv_groups
    if groups < 1 or weight.shape[0] % groups:
        raise KernelError(f"{op}: {weight.shape[0]} output channels cannot be split in {groups} conv_groups")


def check_paired(constants: Paired) -> None:
    """Raises KernelError unless `constants` keep the contract of matmul."""
    for name in ("a_zero_point", "b_zero_point", "a_max", "b_max"):
        _check_code("matmul", name, getattr(constants, name))


def conv2d_shape(x_shape: Sequence[int], constants: Weighted) -> tuple[int, ...]:
    """Shape [B, O, H', W'] of the product with codes [B, C, H, W]; KernelError if they do not fit together."""
    o, per_group, *kernel = constants.weight_q.shape
    geometry = constants.geometry
    channels = per_group * geometry.conv_groups
    if len(x_shape) != 4 or x_shape[1] != channels:
        raise KernelError(f"conv2d: x_q must be [B, {channels}, H, W], got {list(x_shape)}")
    out = [
        (size + 2 * pad - dilation * (k - 1) - 1) // stride + 1
        for size, k, stride, pad, dilation in zip(
            x_shape[2:], kernel, geometry.stride, geometry.padding, geometry.dilation, strict=True
        )
    ]
    if min(out) < 1:
        raise KernelError(f"conv2d: a picture of {list(x_shape[2:])} is smaller than the {kernel} kernel ({geometry})")
    return (x_shape[0], o, *out)


def linear_shape(x_shape: Sequence[int], constants: Weighted) -> tuple[int, ...]:
    """Shape [..., O] of the product with codes [..., K]; KernelError if they do not fit together."""
    o, k = constants.weight_q.shape
    if not x_shape or x_shape[-1] != k:
        raise KernelError(f"linear: x_q must be [..., {k}], got {list(x_shape)}")
    return (*x_shape[:-1], o)


def matmul_shape(a_shape: Sequence[int], b_shape: Sequence[int]) -> tuple[int, ...]:
    """Shape [..., M, N] of the product of codes [..., M, K] and [..., K, N], leading axes equal; else KernelError."""
    same = len(a_shape) == len(b_shape) >= 2 and list(a_shape[:-2]) == list(b_shape[:-2])
    if not same or a_shape[-1] != b_shape[-2]:
        raise KernelError(f"matmul: want a_q [..., M, K] and b_q [..., K, N], got {list(a_shape)} and {list(b_shape)}")
    _check_terms("matmul", a_shape[-1], CODE_MAX * CODE_MAX)
    return (*a_shape[:-1], b_shape[-1])


def check_codes(op: Operation, name: str, codes: Tensor) -> None:
    """Raises KernelError unless `codes` are uint8."""
    if codes.dtype != torch.uint8:
        raise KernelError(f"{op}: {name} must be uint8 codes, got {_describe(codes)}")


def _check_code(op: Operation, name: str, value: int) -> None:
    if not 0 <= value <= CODE_MAX:
        raise KernelError(f"{op}: {name} must lie in 0..{CODE_MAX}, got {value}")


def _check_terms(op: Operation, terms: int, largest: int) -> None:
    if terms * largest > INT32_MAX:
        raise KernelError(f"{op}: a sum of {terms} terms does not fit int32; at most {INT32_MAX // largest}")


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
