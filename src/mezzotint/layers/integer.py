"""Integer layers: what a quantized network computes with.

    y = float32(acc) * (input_scale * weight_scale[o]) + bias                                                 (1)

`acc` is the exact int32 product of codes, see `kernels.contract`; every kernel gives the same y. The simulated twin
sums the same terms in float32, so the two differ by the rounding of that sum only.

A split shortcut has a grid for each group of input channels: y = ((y_1 + y_2) + ...) + bias in float32, in the order
of the groups, each y_g = float32(acc_g) * multiplier_g. Without groups the bias is added inside the kernel, which is
the same.

Activations are quantized in float32 and outputs returned in the dtype of the input. No gradient flows. With
`spec.input` None (a32) the product is a float one, of x with the float weight that the codes stand for; the weight is
packed at rest only.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.errors import KernelError
from mezzotint.kernels.choose import AUTO, choose, prepare_conv2d, prepare_linear
from mezzotint.kernels.contract import Geometry, KernelReport, Pair, Weighted, conv2d_shape, linear_shape
from mezzotint.kernels.traced import trace
from mezzotint.layers.int_base import IntWeightedLayer, Part, as_float32
from mezzotint.layers.int_matmul import IntMatMul
from mezzotint.layers.spec import LayerSpec

__all__ = ["IntConv2d", "IntLinear", "IntMatMul"]

Size = int | str | tuple[int, ...]  # as nn.Conv2d holds them; a str is refused
FLOAT_PRODUCT = KernelReport("float32", "activations stay in float; float32 products with dequantized weights")


class IntConv2d(IntWeightedLayer):
    """Integer nn.Conv2d with zero padding; x [B, C, H, W] -> [B, O, H', W'], in the layout the kernel likes.

    Made empty, on any device; filled by `from_parts` or from a state dict.
    """

    def __init__(
        self,
        spec: LayerSpec,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        *,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        conv_groups: int = 1,
        bias: bool = True,
        kernel: str = AUTO,
        device: torch.device | str | None = None,
    ) -> None:
        shape = (out_channels, in_channels // conv_groups, *_pair("kernel_size", kernel_size))
        super().__init__(spec, shape, bias, kernel, device)
        self.geometry = Geometry(
            _pair("stride", stride), _pair("padding", padding), _pair("dilation", dilation), conv_groups
        )
        if self.groups and (conv_groups > 1 or sum(self.groups) != in_channels):
            raise KernelError(
                f"conv2d: groups {self.groups} must cover {in_channels} channels, and cannot go with "
                f"conv_groups={conv_groups}"
            )

    @classmethod
    def like(cls, conv: nn.Conv2d, spec: LayerSpec, *, kernel: str = AUTO) -> Self:
        """An empty integer layer in the shape of a float one, on its device."""
        if conv.padding_mode != "zeros":
            raise KernelError(f"conv2d: padding_mode must be 'zeros', got {conv.padding_mode!r}; leave it in float")
        return cls(
            spec,
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            conv_groups=conv.groups,
            bias=conv.bias is not None,
            kernel=kernel,
            device=conv.weight.device,
        )

    @classmethod
    def from_parts(
        cls,
        spec: LayerSpec,
        weight_codes: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None = None,
        input_scale: Tensor | None = None,
        input_zero_point: Tensor | None = None,
        *,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        conv_groups: int = 1,
        kernel: str = AUTO,
    ) -> Self:
        """A filled layer.

        Args:
            weight_codes: int8 [O, C/conv_groups, kh, kw].
            weight_scale: float32 [G, O].
            bias: float32 [O] or None.
            input_scale, input_zero_point: float32 [G], int32 [G]; None with float activations.
        """
        layer = cls(
            spec,
            weight_codes.shape[1] * conv_groups,
            weight_codes.shape[0],
            tuple(weight_codes.shape[2:]),
            stride=stride,
            padding=padding,
            dilation=dilation,
            conv_groups=conv_groups,
            bias=bias is not None,
            kernel=kernel,
            device=weight_codes.device,
        )
        return layer.fill_(weight_codes, weight_scale, bias, input_scale, input_zero_point)

    def kernel_report(self) -> KernelReport:
        if self.spec.input is None:
            return FLOAT_PRODUCT
        return choose(
            "conv2d",
            self.weight_packed.device,
            input_max=self.spec.input.quant_max,
            weight_max=-self.weight_grid.quant_min,
            kernel_size=(self.weight_shape[2], self.weight_shape[3]),
            geometry=self.geometry,
            kernel=self.kernel,
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h2 w2"]:
        if self.spec.input is None:
            g = self.geometry
            window = (g.stride, g.padding, g.dilation, g.conv_groups)
            return F.conv2d(x.float(), self._ready(), self.bias, *window).to(x.dtype)
        parts: list[Part] = self._ready()
        y = _sum_of_parts(parts, as_float32(x), self.spec.input.quant_max)
        if len(parts) > 1 and self.bias is not None:
            y = y + self.bias.view(-1, 1, 1)
        return y.to(x.dtype)

    def _make_operands(self) -> Any:
        if self.spec.input is None:
            return self.dequantized_weight()
        name, groups, input_max = self.kernel_report().name, self.group_constants(), self.spec.input.quant_max
        bias, geometry = (self.bias if len(groups) == 1 else None), self.geometry
        parts = []
        for channels, scale, zero_point, multiplier in groups:

            def constants(
                run: slice = slice(*channels), zero_point: int = zero_point, multiplier: Tensor = multiplier
            ) -> Weighted:
                def codes() -> Tensor:
                    return self.weight_codes()[:, run].contiguous()

                return Weighted(codes(), multiplier, bias, zero_point, input_max, geometry, codes)

            product = self.prepared(constants, partial(prepare_conv2d, name))
            traced = trace(product, partial(conv2d_shape, constants=constants().without_weights()))
            parts.append(Part(channels, scale, zero_point, product, traced))
        return parts

    def extra_repr(self) -> str:
        o, _, *kernel_size = self.weight_shape
        g = self.geometry
        channels = self.weight_shape[1] * g.conv_groups
        return f"{channels}, {o}, kernel_size={tuple(kernel_size)}, stride={g.stride}, {self.description()}"


class IntLinear(IntWeightedLayer):
    """Integer nn.Linear; x [..., K] -> [..., O]. Groups are for convolutions, whose channels are axis 1."""

    def __init__(
        self,
        spec: LayerSpec,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        kernel: str = AUTO,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(spec, (out_features, in_features), bias, kernel, device)
        if self.groups:
            raise KernelError(f"linear: groups of input channels are for conv2d, got {self.groups}")

    @classmethod
    def like(cls, linear: nn.Linear, spec: LayerSpec, *, kernel: str = AUTO) -> Self:
        """An empty integer layer in the shape of a float one, on its device."""
        bias, device = linear.bias is not None, linear.weight.device
        return cls(spec, linear.in_features, linear.out_features, bias=bias, kernel=kernel, device=device)

    @classmethod
    def from_parts(
        cls,
        spec: LayerSpec,
        weight_codes: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None = None,
        input_scale: Tensor | None = None,
        input_zero_point: Tensor | None = None,
        *,
        kernel: str = AUTO,
    ) -> Self:
        """A filled layer: int8 [O, K], float32 [1, O], float32 [O] or None, float32 [1], int32 [1] (None for a32)."""
        out_features, in_features = weight_codes.shape
        device, has_bias = weight_codes.device, bias is not None
        layer = cls(spec, in_features, out_features, bias=has_bias, kernel=kernel, device=device)
        return layer.fill_(weight_codes, weight_scale, bias, input_scale, input_zero_point)

    def kernel_report(self) -> KernelReport:
        if self.spec.input is None:
            return FLOAT_PRODUCT
        return choose(
            "linear",
            self.weight_packed.device,
            input_max=self.spec.input.quant_max,
            weight_max=-self.weight_grid.quant_min,
            kernel=self.kernel,
        )

    def forward(self, x: Float[Tensor, "... k"]) -> Float[Tensor, "... o"]:
        if self.spec.input is None:
            return F.linear(x.float(), self._ready(), self.bias).to(x.dtype)
        part: Part = self._ready()
        x_q = torch.ops.mezzotint.codes(as_float32(x), part.scale, part.zero_point, self.spec.input.quant_max)
        traced = torch.compiler.is_compiling()
        y = torch.ops.mezzotint.linear(x_q, part.traced.number) if traced else part.product(x_q)
        return y.to(x.dtype)

    def _make_operands(self) -> Any:
        if self.spec.input is None:
            return self.dequantized_weight()
        name, input_max, bias = self.kernel_report().name, self.spec.input.quant_max, self.bias
        [(channels, scale, zero_point, multiplier)] = self.group_constants()

        def constants() -> Weighted:
            return Weighted(self.weight_codes(), multiplier, bias, zero_point, input_max)

        product = self.prepared(constants, partial(prepare_linear, name))
        traced = trace(product, partial(linear_shape, constants=constants().without_weights()))
        return Part(channels, scale, zero_point, product, traced)

    def extra_repr(self) -> str:
        return f"{self.weight_shape[1]}, {self.weight_shape[0]}, {self.description()}"


def _sum_of_parts(parts: list[Part], x: Tensor, input_max: int) -> Tensor:
    """Products of the groups of channels of `x` [B, C, H, W], added in their order."""
    total: Tensor | None = None
    for part in parts:
        own = x if len(parts) == 1 else x[:, part.channels[0] : part.channels[1]]
        x_q = torch.ops.mezzotint.codes(own, part.scale, part.zero_point, input_max)
        traced = torch.compiler.is_compiling()
        y = torch.ops.mezzotint.conv2d(x_q, part.traced.number) if traced else part.product(x_q)
        total = y if total is None else total + y
    if total is None:
        raise KernelError("a layer without input channels has no product")
    return total


def _pair(name: str, value: Size) -> Pair:
    """(vertical, horizontal) of an option that may be one number."""
    if isinstance(value, int):
        return (value, value)
    if isinstance(value, str) or len(value) != 2:
        raise KernelError(f"conv2d: {name} must be a number or two, got {value!r}")
    return (value[0], value[1])
