"""Simulated quantized layers: float arithmetic on values that lie on the grids.

    y = op(fake_quantize(x), codes * weight_scale) + bias                                                  (1)

They calibrate and learn; `to_integer` turns each into its twin of `integer`, which computes the same numbers from
integers. A layer keeps the float weight while it can still be learned (`weight`), and the codes it would be deployed
with.

    name          dtype    shape          meaning
    weight        float32  as the layer   the float model's weight
    weight_codes  int8     as the layer   what (1) uses
    weight_scale  float32  [G, O]         G groups of input channels (split shortcuts), O output channels
    bias          float32  [O] or None    the float model's, until `reconstruction` corrects it
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.grid.affine import dequantize, quantize
from mezzotint.layers.activation import ActivationQuantizer
from mezzotint.layers.spec import LayerSpec


class SimulatedLayer(nn.Module):
    """What the convolution and the linear layer share: weight grid, codes, and the quantizer of the input.

    Attributes:
        rounding: while reconstruction learns the rounding, the module that gives the (soft) weight.
        float_weights: True computes with the float weight (used while ranges are fitted).
    """

    weight_codes: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, spec: LayerSpec) -> None:
        super().__init__()
        if spec.weight is None:
            raise ValueError(f"a {spec.kind} layer needs a weight grid")
        self.spec = spec
        self.weight_spec = spec.weight
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)  # the float model's own memory: never written
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.register_buffer("weight_codes", torch.zeros_like(self.weight, dtype=spec.weight.dtype))
        self.register_buffer("weight_scale", weight.new_ones(spec.weight.n_groups, weight.shape[0]))
        self.input_quantizer = None if spec.input is None else ActivationQuantizer(spec.input)
        self.rounding: nn.Module | None = None
        self.float_weights = False

    def round_to_nearest_(self) -> None:
        """Sets the codes to the nearest ones for the current scale."""
        zero = torch.zeros_like(self.weight_scale, dtype=torch.int32)
        self.weight_codes.copy_(quantize(self.weight, self.weight_scale, zero, self.weight_spec))

    def effective_weight(self) -> Tensor:
        """Float weight the layer computes with: learned and soft, or the grid points of the codes."""
        if self.rounding is not None:
            return self.rounding()
        if self.float_weights:
            return self.weight
        zero = torch.zeros_like(self.weight_scale, dtype=torch.int32)
        return dequantize(self.weight_codes, self.weight_scale, zero, self.weight_spec)

    def quantize_input(self, x: Tensor) -> Tensor:
        return x if self.input_quantizer is None else self.input_quantizer(x)

    def extra_repr(self) -> str:
        activation = self.spec.input.bits if self.spec.input else 32
        return f"{tuple(self.weight.shape)}, w{self.weight_spec.bits}a{activation}, groups={self.weight_spec.groups}"


class FakeQuantConv2d(SimulatedLayer):
    """Simulated nn.Conv2d; x [B, C, H, W] -> [B, O, H', W']."""

    def __init__(self, conv: nn.Conv2d, spec: LayerSpec) -> None:
        super().__init__(conv.weight, conv.bias, spec)
        self.stride, self.padding, self.dilation, self.conv_groups = (
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(
            self.quantize_input(x),
            self.effective_weight(),
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.conv_groups,
        )


class FakeQuantLinear(SimulatedLayer):
    """Simulated nn.Linear; x [..., K] -> [..., O]."""

    def __init__(self, linear: nn.Linear, spec: LayerSpec) -> None:
        super().__init__(linear.weight, linear.bias, spec)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.quantize_input(x), self.effective_weight(), self.bias)


class FakeQuantMatMul(nn.Module):
    """Simulated product of two activations, a [..., M, K] @ b [..., K, N]."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        if spec.input is None or spec.other is None:
            raise ValueError("a matmul needs a grid for each input")
        self.spec = spec
        self.input_quantizer = ActivationQuantizer(spec.input)
        self.other_quantizer = ActivationQuantizer(spec.other)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.matmul(self.input_quantizer(a), self.other_quantizer(b))
