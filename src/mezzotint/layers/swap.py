"""Exchange of leaf layers: float -> simulated -> integer, by name, from a plan.

A plan is `{module name: LayerSpec}`. Only leaves are exchanged, so no block of a model is ever copied. The products
of an attention layer have the names `<attention>.processor.qk` and `<attention>.processor.pv`; they appear when the
attention's processor is exchanged for one that holds them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

from diffusers.models.attention_processor import Attention
from torch import nn

from mezzotint.layers.attention import QuantizedAttnProcessor
from mezzotint.layers.integer import IntConv2d, IntLinear, IntMatMul
from mezzotint.layers.simulated import FakeQuantConv2d, FakeQuantLinear, FakeQuantMatMul, SimulatedLayer
from mezzotint.layers.spec import LayerSpec

Plan = Mapping[str, LayerSpec]
PRODUCTS = ("qk", "pv")


def product_names(attention: str) -> tuple[str, str]:
    """Names of the two products of the attention layer called `attention`."""
    return f"{attention}.processor.qk", f"{attention}.processor.pv"


def attentions(network: nn.Module) -> list[str]:
    """Names of the attention layers of `network`, in registration order."""
    return [name for name, module in network.named_modules() if isinstance(module, Attention)]


def attention_of(network: nn.Module, name: str) -> Attention:
    """The attention layer called `name`."""
    layer = network.get_submodule(name)
    if not isinstance(layer, Attention):
        raise TypeError(f"{name}: expected an attention layer, got {type(layer).__name__}")
    return layer


def set_module_(network: nn.Module, name: str, module: nn.Module) -> None:
    """Puts `module` in the place called `name`."""
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent) if parent else network, leaf, module)


def prepare(network: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the float `network` whose layers named in `plan` are simulated, with scales still to be fitted.

    The simulated layers share the memory of the float weights.
    """
    device = next(network.parameters()).device
    layers = [network.get_submodule(name) for name, spec in plan.items() if spec.kind != "matmul"]
    shared = {id(layer.weight): layer.weight for layer in layers}
    simulated = copy.deepcopy(network, memo=dict(shared))
    simulated = _exchange_(simulated, plan, FakeQuantConv2d, FakeQuantLinear, FakeQuantMatMul)
    return simulated.to(device).eval()


def empty_integer_network_(network: nn.Module, plan: Plan) -> nn.Module:
    """Exchanges the layers of a float `network` (on the meta device) for empty integer ones, ready to be filled.

    Modifies and returns `network`. Used to load an artifact without any float weights.
    """
    return _exchange_(network, plan, IntConv2d.like, IntLinear.like, IntMatMul).eval()


def _exchange_(
    network: nn.Module,
    plan: Plan,
    make_conv2d: Callable[[nn.Conv2d, LayerSpec], nn.Module],
    make_linear: Callable[[nn.Linear, LayerSpec], nn.Module],
    make_matmul: Callable[[LayerSpec], nn.Module],
) -> nn.Module:
    """Puts a new layer in the place of every float layer that `plan` names; modifies and returns `network`."""
    for name in attentions(network):
        qk, pv = product_names(name)
        if qk in plan:
            processor = QuantizedAttnProcessor(make_matmul(plan[qk]), make_matmul(plan[pv]))
            attention_of(network, name).set_processor(processor)
    for name, spec in plan.items():
        if spec.kind == "matmul":
            continue
        layer = network.get_submodule(name)
        if isinstance(layer, nn.Conv2d) and spec.kind == "conv2d":
            set_module_(network, name, make_conv2d(layer, spec))
        elif isinstance(layer, nn.Linear) and spec.kind == "linear":
            set_module_(network, name, make_linear(layer, spec))
        else:
            raise TypeError(f"{name}: the plan says {spec.kind}, the network has {type(layer).__name__}")
    return network


def to_integer(simulated: nn.Module) -> nn.Module:
    """A copy of the `simulated` network whose layers compute with integers; rounding and scales must be final."""
    network = _without_float_weights(simulated)
    for name, layer in list(simulated.named_modules()):
        if isinstance(layer, FakeQuantConv2d | FakeQuantLinear | FakeQuantMatMul):
            set_module_(network, name, integer_layer(layer))
    return network.eval()


def integer_layer(layer: nn.Module) -> nn.Module:
    """The integer twin of one simulated layer."""
    if isinstance(layer, FakeQuantMatMul):
        a, b = layer.input_quantizer, layer.other_quantizer
        return IntMatMul.from_parts(
            layer.spec, a_scale=a.scale, a_zero_point=a.zero_point, b_scale=b.scale, b_zero_point=b.zero_point
        )
    if not isinstance(layer, SimulatedLayer):
        raise TypeError(f"{type(layer).__name__} has no integer twin")
    quantizer = layer.input_quantizer
    parts = (
        layer.weight_codes,
        layer.weight_scale,
        layer.bias,
        None if quantizer is None else quantizer.scale,
        None if quantizer is None else quantizer.zero_point,
    )
    if isinstance(layer, FakeQuantConv2d):
        return IntConv2d.from_parts(
            layer.spec,
            *parts,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            conv_groups=layer.conv_groups,
        )
    return IntLinear.from_parts(layer.spec, *parts)


def _without_float_weights(simulated: nn.Module) -> nn.Module:
    """Copy of `simulated` in which the layers about to be exchanged are shared, not copied (their weights are big)."""
    shared = {id(layer): layer for layer in simulated.modules() if isinstance(layer, SimulatedLayer | FakeQuantMatMul)}
    return copy.deepcopy(simulated, memo=dict(shared))
