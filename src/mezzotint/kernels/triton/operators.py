"""The operators: schema, checks and meta function in one place; `exact` computes them on CPUs, `launch` on CUDA.

    mezzotint::int8_product         equations (1) to (4) of the package
    mezzotint::int8_product_codes   (1) to (3), then (5) or (6)
    mezzotint::nhwc_codes           (5) of a float tensor
    mezzotint::nhwc_group_norm      GroupNorm (scale-shift, SiLU)
    mezzotint::nhwc_group_norm_codes   the same, then (5)
    mezzotint::nhwc_layer_norm_codes   LayerNorm, then (5)
    mezzotint::nhwc_geglu_codes     value * gelu(gate) of [values | gates], then (5)

An operator takes tensors and numbers, so a graph that holds one needs nothing else; an `Operand` is only their
bundle. Results are new contiguous tensors. float tensors may be float32, bfloat16 or float16; arithmetic is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor

from mezzotint.errors import KernelError
from mezzotint.kernels.triton import exact
from mezzotint.kernels.triton.operands import Operand

_OPERATORS = torch.library.Library("mezzotint", "FRAGMENT")
_WEIGHTS = "Tensor x_q, Tensor weight, Tensor multiplier, Tensor correction, Tensor? bias"
_WINDOW = "int channels, int bits, int[] kernel, int[] stride, int[] padding, int[] groups"
_GRID = "float scale, int zero_point, int largest"
_NORM = (
    "Tensor x, Tensor? second, Tensor? added, Tensor? weight, Tensor? bias, Tensor? factor, Tensor? shift, "
    "int groups, float eps, bool silu"
)
_SCHEMAS = {
    "int8_product": f"{_WEIGHTS}, Tensor? residual, {_WINDOW}, ScalarType dtype",
    "int8_product_codes": f"{_WEIGHTS}, Tensor? residual, {_WINDOW}, bool geglu, {_GRID}",
    "nhwc_codes": f"Tensor x, Tensor? second, {_GRID}",
    "nhwc_group_norm": _NORM,
    "nhwc_group_norm_codes": f"{_NORM}, {_GRID}",
    "nhwc_layer_norm_codes": f"Tensor x, Tensor? weight, Tensor? bias, float eps, {_GRID}",
    "nhwc_geglu_codes": f"Tensor x, {_GRID}",
}


def product(
    x_q: Int8[Tensor, "*rows c"], operand: Operand, *, residual: Tensor | None = None, dtype: torch.dtype
) -> Tensor:
    """Equations (1) to (4): [*rows, O]; of a picture [B, H, W, C], the convolution [B, H', W', O].

    Args:
        x_q: signed codes; the last axis is the input channels.
        residual: float, in the shape of the result; added in float32 before the rounding to `dtype`.
        dtype: float32, bfloat16, float16; or int32 for the bare accumulator (no groups, no residual).
    """
    operator = torch.ops.mezzotint.int8_product
    return operator(x_q, *_constants(operand), residual, *_window(operand), dtype)


def product_codes(
    x_q: Int8[Tensor, "*rows c"],
    operand: Operand,
    scale: float,
    zero_point: int,
    largest: int = 255,
    *,
    residual: Tensor | None = None,
) -> Int8[Tensor, "*rows o"]:
    """Equations (1) to (3) and (5): codes on the grid (scale, zero_point 0..255, largest) of the next product.

    A residual is added in float32 before.
    """
    operator = torch.ops.mezzotint.int8_product_codes
    return operator(x_q, *_constants(operand), residual, *_window(operand), False, scale, zero_point, largest)


def product_geglu_codes(
    x_q: Int8[Tensor, "*rows c"], operand: Operand, scale: float, zero_point: int, largest: int = 255
) -> Int8[Tensor, "*rows half"]:
    """Equations (1), (2) and (6); `operand` made with geglu=True. [*rows, O/2]."""
    operator = torch.ops.mezzotint.int8_product_codes
    return operator(x_q, *_constants(operand), None, *_window(operand), True, scale, zero_point, largest)


def codes_s8(
    x: Float[Tensor, "*rows c"], scale: float, zero_point: int, largest: int = 255, *, second: Tensor | None = None
) -> Int8[Tensor, "*rows all"]:
    """Equation (5) of `x`, or of [x | second] along the last axis without putting them together first."""
    return torch.ops.mezzotint.nhwc_codes(x, second, scale, zero_point, largest)


def group_norm_codes_s8(
    x: Float[Tensor, "b *pixels c"],
    weight: Float32[Tensor, " all"] | None,
    bias: Float32[Tensor, " all"] | None,
    *,
    groups: int,
    eps: float,
    silu: bool,
    scale: float,
    zero_point: int,
    largest: int = 255,
    second: Float[Tensor, "b *pixels c2"] | None = None,
    added: Float[Tensor, "b all"] | None = None,
    factor: Float[Tensor, "b all"] | None = None,
    shift: Float[Tensor, "b all"] | None = None,
) -> Int8[Tensor, "b *pixels all"]:
    """Codes of silu(group_norm([x | second] + added) * (1 + factor) + shift); what is None is left out.

    added, factor and shift are per sample and channel (the time embedding). Sums are float32, about a first value.
    """
    norm = (x, second, added, weight, bias, factor, shift, groups, eps, silu)
    return torch.ops.mezzotint.nhwc_group_norm_codes(*norm, scale, zero_point, largest)


def result_shape(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> tuple[int, ...]:
    """Shape of a product; KernelError if the codes do not fit the weights."""
    if not len(x_shape) or x_shape[-1] != channels:
        raise KernelError(f"product: x_q must be [..., {channels}], got {list(x_shape)}")
    if tuple(kernel) == (1, 1) and tuple(stride) == (1, 1):
        return (*x_shape[:-1], weight_shape[0])
    if len(x_shape) != 4:
        raise KernelError(f"product: a window of {list(kernel)} needs x_q [B, H, W, {channels}], got {list(x_shape)}")
    height = (x_shape[1] + padding[0] + padding[1] - kernel[0]) // stride[0] + 1
    width = (x_shape[2] + padding[2] + padding[3] - kernel[1]) // stride[1] + 1
    if min(height, width) < 1:
        raise KernelError(f"product: a picture of {list(x_shape[1:3])} is smaller than the window {list(kernel)}")
    return (x_shape[0], height, width, weight_shape[0])


def _constants(operand: Operand) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    return operand.weight, operand.multiplier, operand.correction, operand.bias


def _window(operand: Operand) -> tuple[int, int, list[int], list[int], list[int], list[int]]:
    return (
        operand.channels,
        operand.bits,
        list(operand.kernel),
        list(operand.stride),
        list(operand.padding),
        list(operand.groups),
    )


def _int8_product_meta(
    x_q: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    correction: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    channels: int,
    bits: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    groups: list[int],
    dtype: torch.dtype,
) -> Tensor:
    shape = result_shape(x_q.shape, weight.shape, channels, kernel, stride, padding)
    if residual is not None and tuple(residual.shape) != shape:
        raise KernelError(f"product: residual must be {list(shape)}, got {list(residual.shape)}")
    if dtype == torch.int32 and (groups or residual is not None):
        raise KernelError("product: the bare accumulator (int32) has no groups and no residual")
    return torch.empty(shape, dtype=dtype, device=x_q.device)


def _int8_product_codes_meta(
    x_q: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    correction: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    channels: int,
    bits: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    groups: list[int],
    geglu: bool,
    scale: float,
    zero_point: int,
    largest: int,
) -> Tensor:
    *rows, outputs = shape = result_shape(x_q.shape, weight.shape, channels, kernel, stride, padding)
    if residual is not None and tuple(residual.shape) != shape:
        raise KernelError(f"product: residual must be {list(shape)}, got {list(residual.shape)}")
    if geglu and (outputs % 2 or groups or residual is not None):
        raise KernelError(f"product: GEGLU takes an even number of outputs ({outputs}), no groups, no residual")
    return torch.empty((*rows, outputs // 2 if geglu else outputs), dtype=torch.int8, device=x_q.device)


def _joined(x: Tensor, second: Tensor | None, dtype: torch.dtype) -> Tensor:
    channels = x.shape[-1] + (0 if second is None else second.shape[-1])
    return torch.empty((*x.shape[:-1], channels), dtype=dtype, device=x.device)


_META: dict[str, Callable[..., Tensor]] = {
    "int8_product": _int8_product_meta,
    "int8_product_codes": _int8_product_codes_meta,
    "nhwc_codes": lambda x, second, *_: _joined(x, second, torch.int8),
    "nhwc_group_norm": lambda x, second, *_: _joined(x, second, x.dtype),
    "nhwc_group_norm_codes": lambda x, second, *_: _joined(x, second, torch.int8),
    "nhwc_layer_norm_codes": lambda x, *_: _joined(x, None, torch.int8),
    "nhwc_geglu_codes": lambda x, *_: x.new_empty((*x.shape[:-1], x.shape[-1] // 2), dtype=torch.int8),
}


def _on_gpu(name: str) -> Callable[..., Tensor]:
    """The operator on CUDA. Triton is imported on first use: it is an extra, and slow to import."""

    def call(*args: object) -> Tensor:
        from mezzotint.kernels.triton import launch, launch_norms

        return getattr(launch if name.startswith("int8") else launch_norms, name)(*args)

    return call


for _name, _schema in _SCHEMAS.items():
    _OPERATORS.define(f"{_name}({_schema}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
    _OPERATORS.impl(_name, _META[_name], "Meta")
    _OPERATORS.impl(_name, getattr(exact, _name), "CPU")
    _OPERATORS.impl(_name, _on_gpu(_name), "CUDA")
