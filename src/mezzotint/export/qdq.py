"""The integer layers as an ONNX exporter should see them: quantize, dequantize, an ordinary product between.

    y = conv(dequantize(quantize(x)), dequantize(codes)) + bias                                               (1)

QuantizeLinear and DequantizeLinear with our scales and zero points are exactly the grids of `grid.spec` (round half to
even, then saturate), and the weight is the integer initializer itself. A runtime that recognises the pattern multiplies
integers; one that does not computes (1) in float32 from the same numbers, as the simulated network does.

    name          dtype    shape              meaning
    codes         int8     [O, C_g, kh, kw]   weight codes of one group of input channels of a convolution
                           [K, O]             the same of a linear layer, transposed: ONNX's MatMul takes it so
    scale         float32  [O]                grid step of every output channel
    x_scale       float32  []                 grid step of an activation
    x_zero_point  uint8    []                 its code of 0.0

Split shortcuts are one product for each group of channels, added in order. Activations of fewer than 8 bits are clipped
before QuantizeLinear, which saturates at 8 bits only. The modules here never compute: their two operations exist while
a graph is traced.

Rejected: torch.ops.quantized_decomposed (deprecated, and what it becomes in a graph depends on the exporter's version),
and weights as dequantized float constants (four times the file).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.grid.spec import GridSpec, activation_spec
from mezzotint.layers.int_base import IntWeightedLayer
from mezzotint.layers.int_timed import IntTimedLinear
from mezzotint.layers.integer import IntConv2d, IntLinear, IntMatMul
from mezzotint.layers.swap import set_module_
from mezzotint.layers.timed import codes_by_row, split_tag

CODES = "codes"  # last part of the names of the weights' initializers
SMALL_BITS = 4  # weights of so many bits or fewer become 4-bit tensors
_FULL_BITS = 8


class QdqActivation(nn.Module):
    """x -> the nearest point of an activation's grid, as a QuantizeLinear and a DequantizeLinear."""

    x_scale: Tensor
    x_zero_point: Tensor

    def __init__(self, scale: float, zero_point: int, grid: GridSpec) -> None:
        super().__init__()
        self.range = (-zero_point * scale, (grid.quant_max - zero_point) * scale) if grid.bits < _FULL_BITS else None
        self.register_buffer("x_scale", torch.tensor(scale))
        self.register_buffer("x_zero_point", torch.tensor(zero_point, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        if self.range is not None:
            x = x.clamp(*self.range)
        grid = (self.x_scale, self.x_zero_point)
        codes = torch.onnx.ops.symbolic("QuantizeLinear", (x, *grid), dtype=torch.uint8, shape=x.shape)
        return torch.onnx.ops.symbolic("DequantizeLinear", (codes, *grid), dtype=torch.float32, shape=x.shape)


class QdqWeight(nn.Module):
    """The float weight that codes stand for, as a DequantizeLinear along `axis`, that of the output channels."""

    codes: Tensor
    scale: Tensor

    def __init__(self, codes: Tensor, scale: Tensor, axis: int, bits: int) -> None:
        super().__init__()
        self.axis, self.bits = axis, bits
        self.register_buffer(CODES, codes.contiguous().clone())
        self.register_buffer("scale", scale.clone())

    def forward(self) -> Tensor:
        inputs, shape = (self.codes, self.scale), self.codes.shape
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", inputs, {"axis": self.axis}, dtype=torch.float32, shape=shape
        )


class QdqConv2d(nn.Module):
    """Equation (1) of a convolution; x [B, C, H, W] -> [B, O, H', W']."""

    bias: Tensor | None

    def __init__(self, layer: IntConv2d) -> None:
        super().__init__()
        self.geometry, codes, bits = layer.geometry, layer.weight_codes(), layer.weight_grid.bits
        grids = _activation_grids(layer, layer.weight_shape[1] * layer.geometry.conv_groups)
        self.channels = [channels for channels, _ in grids]
        self.inputs = nn.ModuleList(grid for _, grid in grids)
        scales = layer.weight_scale.expand(len(grids), -1)
        self.weights = nn.ModuleList(
            QdqWeight(codes[:, channels], scale, 0, bits) for channels, scale in zip(self.channels, scales, strict=True)
        )
        self.register_buffer("bias", layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        g = self.geometry
        window = (g.stride, g.padding, g.dilation, g.conv_groups)
        groups = list(zip(self.channels, self.inputs, self.weights, strict=True))
        if len(groups) == 1:
            [(_, quantize, weight)] = groups
            return F.conv2d(quantize(x), weight(), self.bias, *window)
        parts = [F.conv2d(quantize(x[:, own]), weight(), None, *window) for own, quantize, weight in groups]
        total = functools.reduce(torch.add, parts)
        return total if self.bias is None else total + self.bias.view(-1, 1, 1)


class QdqLinear(nn.Module):
    """Equation (1) of a linear layer; x [..., K] -> [..., O]."""

    bias: Tensor | None

    def __init__(self, layer: IntLinear) -> None:
        super().__init__()
        [(_, self.input)] = _activation_grids(layer, layer.weight_shape[1])
        self.weight = QdqWeight(layer.weight_codes().t(), layer.weight_scale[0], 1, layer.weight_grid.bits)
        self.register_buffer("bias", layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.matmul(self.input(x), self.weight())
        return y if self.bias is None else y + self.bias


class QdqTimedLinear(nn.Module):
    """A time layer; x [B, K + 1] -> [B, O], or [B, O + 1] where it hands the time on.

    Its grid is another one in every row of the batch, which no QuantizeLinear can say: it is written out in floats, and
    a runtime computes the product in float32 from the same numbers.
    """

    scale: Tensor
    zero_point: Tensor
    bias: Tensor | None

    def __init__(self, layer: IntTimedLinear) -> None:
        super().__init__()
        self.grid, self.hands_on = layer.grid, layer.hands_on
        self.weight = QdqWeight(layer.weight_codes().t(), layer.weight_scale[0], 1, layer.weight_grid.bits)
        for name, values in (
            ("scale", layer.input_scale),
            ("zero_point", layer.input_zero_point),
            ("bias", layer.bias),
        ):
            self.register_buffer(name, values)

    def forward(self, x: Tensor) -> Tensor:
        values, rows = split_tag(x)
        scale, zero_point = self.scale[rows], self.zero_point[rows]
        codes = codes_by_row(values, scale, zero_point, self.grid)
        y = torch.matmul((codes - zero_point[:, None]) * scale[:, None], self.weight())
        y = y if self.bias is None else y + self.bias
        return torch.cat([y, x[:, -1:]], dim=1) if self.hands_on else y


class QdqMatMul(nn.Module):
    """A product of two quantized activations; a [..., M, K], b [..., K, N] -> [..., M, N]."""

    def __init__(self, layer: IntMatMul) -> None:
        super().__init__()
        self.a = QdqActivation(float(layer.a_scale), int(layer.a_zero_point), layer.a_grid)
        self.b = QdqActivation(float(layer.b_scale), int(layer.b_zero_point), layer.b_grid)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.matmul(self.a(a), self.b(b))


def exportable(network: nn.Module) -> nn.Module:
    """A copy of `network` whose integer layers are of the classes above; the copy can be traced but not run.

    Float layers stay as they are: of a float network this is a plain copy.
    """
    kinds: dict[type[nn.Module], Callable[..., nn.Module]] = {
        IntConv2d: QdqConv2d,
        IntLinear: QdqLinear,
        IntTimedLinear: QdqTimedLinear,
        IntMatMul: QdqMatMul,
    }
    copied = copy.deepcopy(network).cpu()
    for name, layer in list(copied.named_modules()):
        if type(layer) in kinds:
            set_module_(copied, name, kinds[type(layer)](layer))
    return copied.eval()


def small_weights(network: nn.Module) -> set[str]:
    """Names of the codes of an `exportable` network that fit in 4-bit tensors."""
    grids = ((name, layer) for name, layer in network.named_modules() if isinstance(layer, QdqWeight))
    return {f"{name}.{CODES}" for name, layer in grids if layer.bits <= SMALL_BITS}


def _activation_grids(layer: IntWeightedLayer, channels: int) -> list[tuple[slice, nn.Module]]:
    """(channels, grid) of each group of the input channels; nn.Identity where activations stay in float."""
    slices = activation_spec(_FULL_BITS, layer.groups).group_slices(channels)
    grid = layer.spec.input
    if grid is None or layer.input_scale is None or layer.input_zero_point is None:
        return [(group, nn.Identity()) for group in slices]
    scales, zero_points = layer.input_scale.expand(len(slices)), layer.input_zero_point.expand(len(slices))
    constants = zip(slices, scales.tolist(), zero_points.tolist(), strict=True)
    return [(group, QdqActivation(scale, zero_point, grid)) for group, scale, zero_point in constants]
