"""A quantized network as one flat graph in which every integer layer is a single node that names it.

torch.export runs the network once on shapes. For that, a copy is made whose integer layers are exchanged for stand-ins:
a stand-in has the name of its layer and the shape of its result, and computes nothing, so no weight is unpacked and
nothing but the norms is copied. The lowering (`rows`, `fusion`, `emission`) puts products in their place.

    standing_in::conv2d(x, name, shape) -> y        [B, C, H, W] -> [B, O, H', W'], channels-last
    standing_in::linear(x, name, outputs) -> y      [..., K] -> [..., O]
    standing_in::attention(q, k, v, name, heads, scale) -> y    [B, N, C], [B, M, C], [B, M, C] -> [B, N, C]

Everything else in the graph is ATen, in the dtype that activations have between products. Layers whose inputs stay in
float (`a32`, or one layer of it) become float layers with the weights that their codes stand for; layers with a grid
for every time are traced as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, fx, nn

from mezzotint.errors import ModelError
from mezzotint.kernels.contract import Weighted, conv2d_shape
from mezzotint.layers.attention import ProjectedAttention, QuantizedAttnProcessor
from mezzotint.layers.float_attention import OutputShift
from mezzotint.layers.int_base import IntLayer
from mezzotint.layers.int_timed import IntTimedLinear
from mezzotint.layers.integer import IntConv2d, IntLinear
from mezzotint.layers.swap import set_module_

_OPERATORS = torch.library.Library("standing_in", "DEF")
_OPERATORS.define("conv2d(Tensor x, str name, int[] shape) -> Tensor")
_OPERATORS.define("linear(Tensor x, str name, int outputs) -> Tensor")
_OPERATORS.define("attention(Tensor q, Tensor k, Tensor v, str name, int heads, float scale) -> Tensor")

_OPERATORS.impl(
    "conv2d",
    lambda x, name, shape: torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last),
    "Meta",
)
_OPERATORS.impl("linear", lambda x, name, outputs: x.new_empty((*x.shape[:-1], outputs)), "Meta")
_OPERATORS.impl("attention", lambda q, k, v, name, heads, scale: torch.empty_like(q), "Meta")

CONV2D = torch.ops.standing_in.conv2d.default
LINEAR = torch.ops.standing_in.linear.default
ATTENTION = torch.ops.standing_in.attention.default


class _Conv2d(nn.Module):
    def __init__(self, layer: IntConv2d, name: str) -> None:
        super().__init__()
        weight = torch.empty(layer.weight_shape, dtype=torch.int8, device="meta")
        shape = (weight.shape[0], weight.shape[1], *weight.shape[2:])
        self._shapes = Weighted(torch.empty(shape, device="meta"), weight, None, 0, geometry=layer.geometry)
        self._name = name

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.standing_in.conv2d(x, self._name, conv2d_shape(x.shape, self._shapes))


class _Linear(nn.Module):
    def __init__(self, layer: IntLinear, name: str) -> None:
        super().__init__()
        self._outputs, self._name = layer.weight_shape[0], name

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.standing_in.linear(x, self._name, self._outputs)


class _Processor(ProjectedAttention):
    """Attention between the projections as one node."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def mix(self, attn: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            raise ModelError(f"{self._name}: attention with a mask has no fused form on a GPU")
        return torch.ops.standing_in.attention(q, k, v, self._name, attn.heads, float(attn.scale))


class _Eps(nn.Module):
    """The network's output alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.network(x_t, t, **cond, return_dict=False)[0]


def trace(
    network: nn.Module,
    x_t: Tensor,
    t: Tensor,
    cond: dict[str, Tensor],
    dtype: torch.dtype,
    shift: OutputShift | None = None,
) -> tuple[fx.GraphModule, dict[str, IntLayer]]:
    """The graph of eps(x_t, t, **cond), for inputs of these shapes, and the integer layers by the names in it.

    Args:
        dtype: of the activations between the products.
        shift: comes off the bias of the layer that it names, where that is a float layer in the graph.

    Raises:
        ModelError: the network holds an integer layer that has no stand-in.
    """
    layers = {name: module for name, module in network.named_modules() if isinstance(module, IntLayer)}
    plain = _with_stand_ins(network, layers, dtype, shift)
    x_t, cond = _as(dtype, x_t), {name: _as(dtype, rows) for name, rows in cond.items()}
    with torch.no_grad():
        program = torch.export.export(_Eps(plain), (x_t, t), cond, strict=False)
    graph = program.module()
    _remove_checks(graph)
    return graph, layers


def _as(dtype: torch.dtype, value: Tensor) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def _with_stand_ins(
    network: nn.Module, layers: dict[str, IntLayer], dtype: torch.dtype, shift: OutputShift | None
) -> nn.Module:
    """A copy of `network` in `dtype` that shares nothing it changes and holds no integer layer."""
    plain = copy.deepcopy(network, memo={id(layer): layer for layer in layers.values()})
    plain._compiled_call_impl = None
    for name, module in list(plain.named_modules()):
        if isinstance(module, Attention) and isinstance(module.processor, QuantizedAttnProcessor):
            if module.spatial_norm is not None:
                raise ModelError(f"{name}: attention with a spatial norm has no fused form on a GPU")
            module.set_processor(_Processor(name))
    for name, layer in layers.items():
        if name.rpartition(".")[0].endswith(".processor"):
            continue  # a product of attention; gone with its processor
        set_module_(plain, name, _stand_in(layer, name))
    last: Any = None if shift is None else plain.get_submodule(shift.layer)
    if shift is not None and isinstance(last, nn.Conv2d) and last.bias is not None:
        last.bias.sub_(shift.tensor(last.bias))
    nn.Module.to(plain, dtype).eval().requires_grad_(False)  # of nn.Module: diffusers warns of casts
    for layer in layers.values():
        if isinstance(layer, IntTimedLinear):
            layer.prepare_kernel_()
    return plain


def _stand_in(layer: IntLayer, name: str) -> nn.Module:
    if isinstance(layer, IntTimedLinear):
        return layer
    if isinstance(layer, IntConv2d):
        return _float_conv2d(layer) if layer.spec.input is None else _Conv2d(layer, name)
    if isinstance(layer, IntLinear):
        return _float_linear(layer) if layer.spec.input is None else _Linear(layer, name)
    raise ModelError(f"{name}: {type(layer).__name__} has no form on a GPU; call the network without optimize")


def _float_conv2d(layer: IntConv2d) -> nn.Conv2d:
    geometry, weight = layer.geometry, layer.dequantized_weight()
    o, c, *window = weight.shape
    size: Any = tuple(window)
    conv = nn.Conv2d(
        c * geometry.conv_groups, o, size, geometry.stride, geometry.padding, geometry.dilation, geometry.conv_groups,
        bias=layer.bias is not None, device="meta",
    )  # fmt: skip
    return _filled(conv, weight, layer.bias)


def _float_linear(layer: IntLinear) -> nn.Linear:
    weight = layer.dequantized_weight()
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None, device="meta")
    return _filled(linear, weight, layer.bias)


def _filled(layer: Any, weight: Tensor, bias: Tensor | None) -> Any:
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)
    return layer


def _remove_checks(module: fx.GraphModule) -> None:
    """Takes out what export put in to check its inputs."""
    graph, checks = module.graph, (torch.ops.aten._assert_tensor_metadata.default,)
    for node in list(graph.nodes):
        if node.target in checks or node.op == "call_module":
            graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()


def shape_of(node: fx.Node) -> Sequence[int]:
    """Shape of what the tracer saw at `node`."""
    return node.meta["val"].shape
