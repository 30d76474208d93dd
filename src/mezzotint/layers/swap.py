"""Exchange of leaf layers: float -> simulated -> integer, by name, from a plan.

A plan is `{module name: LayerSpec}`. Only leaves are exchanged, so no block of a model is ever copied. The products
of an attention layer have the names `<attention>.processor.qk` and `<attention>.processor.pv`; they appear when the
attention's processor is exchanged for one that holds them. Where layers have a grid for every time, the network's
`time_proj` is exchanged too, for one that says which time it is (`timed`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from diffusers.models.attention_processor import Attention
from torch import nn

from mezzotint.layers.attention import QuantizedAttnProcessor
from mezzotint.layers.int_timed import IntTimedLinear
from mezzotint.layers.integer import IntConv2d, IntLinear, IntMatMul
from mezzotint.layers.simulated import FakeQuantConv2d, FakeQuantLinear, FakeQuantMatMul, SimulatedLayer
from mezzotint.layers.spec import LayerSpec
from mezzotint.layers.timed import TIME_PROJ, FakeQuantTimedLinear, TaggedTimes, hands_time_on

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


def prepare(network: nn.Module, plan: Plan, *, times: Sequence[int] = ()) -> nn.Module:
    """A copy of the float `network` whose layers named in `plan` are simulated, with scales still to be fitted.

    The simulated layers share the memory of the float weights.

    Args:
        times: those for which layers with `LayerSpec.times` have grids.
    """
    device = next(network.parameters()).device
    layers = [network.get_submodule(name) for name, spec in plan.items() if spec.kind != "matmul"]
    shared = {id(layer.weight): layer.weight for layer in layers}
    simulated = copy.deepcopy(network, memo=dict(shared))
    simulated = _exchange_(simulated, plan, _SIMULATED)
    if timed_layers(plan):
        simulated.get_submodule(TIME_PROJ).fill_(times)  # type: ignore[operator]
    return simulated.to(device).eval()


def empty_integer_network_(network: nn.Module, plan: Plan) -> nn.Module:
    """Exchanges the layers of a float `network` (on the meta device) for empty integer ones, ready to be filled.

    Modifies and returns `network`. Used to load an artifact without any float weights.
    """
    return _exchange_(network, plan, _INTEGER).eval()


def timed_layers(plan: Plan) -> list[str]:
    """Names of the layers of `plan` that have a grid for every time."""
    return [name for name, spec in plan.items() if spec.times]


class _Kinds(NamedTuple):
    """What makes the layers of a network of one kind."""

    conv2d: Callable[[nn.Conv2d, LayerSpec], nn.Module]
    linear: Callable[[nn.Linear, LayerSpec], nn.Module]
    timed_linear: Callable[..., nn.Module]
    matmul: Callable[[LayerSpec], nn.Module]


_SIMULATED = _Kinds(FakeQuantConv2d, FakeQuantLinear, FakeQuantTimedLinear, FakeQuantMatMul)
_INTEGER = _Kinds(IntConv2d.like, IntLinear.like, IntTimedLinear.like, IntMatMul)


def _exchange_(network: nn.Module, plan: Plan, kinds: _Kinds) -> nn.Module:
    """Puts a new layer in the place of every float layer that `plan` names; modifies and returns `network`."""
    _tag_times_(network, plan)
    for name in attentions(network):
        qk, pv = product_names(name)
        if qk in plan:
            processor = QuantizedAttnProcessor(kinds.matmul(plan[qk]), kinds.matmul(plan[pv]))
            attention_of(network, name).set_processor(processor)
    for name, spec in plan.items():
        if spec.kind == "matmul":
            continue
        layer = network.get_submodule(name)
        if isinstance(layer, nn.Conv2d) and spec.kind == "conv2d":
            set_module_(network, name, kinds.conv2d(layer, spec))
        elif isinstance(layer, nn.Linear) and spec.kind == "linear" and spec.times:
            set_module_(network, name, kinds.timed_linear(layer, spec, hands_on=hands_time_on(name)))
        elif isinstance(layer, nn.Linear) and spec.kind == "linear":
            set_module_(network, name, kinds.linear(layer, spec))
        else:
            raise TypeError(f"{name}: the plan says {spec.kind}, the network has {type(layer).__name__}")
    return network


def _tag_times_(network: nn.Module, plan: Plan) -> None:
    """Where layers of `plan` have a grid for every time, lets `network` say which time it is."""
    names = timed_layers(plan)
    if names:
        device = network.get_parameter(f"{names[0]}.weight").device
        time_proj = network.get_submodule(TIME_PROJ)
        set_module_(network, TIME_PROJ, TaggedTimes(time_proj, plan[names[0]].times, device=device))


def to_integer(simulated: nn.Module) -> nn.Module:
    """A copy of the `simulated` network whose layers compute with integers; rounding and scales must be final."""
    network = _without_float_weights(simulated)
    for name, layer in list(simulated.named_modules()):
        if isinstance(layer, SimulatedLayer | FakeQuantMatMul):
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
    if isinstance(layer, FakeQuantTimedLinear):
        timed, codes = layer.timed_quantizer, layer.weight_codes
        grids = (timed.scale, timed.zero_point)
        return IntTimedLinear.from_parts(
            layer.spec, codes, layer.weight_scale, layer.bias, *grids, hands_on=layer.hands_on
        )
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
