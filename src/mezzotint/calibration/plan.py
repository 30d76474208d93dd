"""Which grid every layer gets: the plan `{layer name: LayerSpec}` of a network at a bit setting.

    layer                                weights            input
    conv_in, conv_out (by name)          8                  8, or float (`edge_layers`)
    any other Conv2d, Linear             bits.weight        bits.activation
    shortcut of an up block              as above, split into the groups (h, skip) unless switched off
    attention q k^T                      -                  bits.activation, both
    attention softmax(.) v               -                  softmax bits (unsigned), bits.activation
    time layers, where learned apart     as above           bits.activation, a grid for every time

With `a32` there are no activation grids, and attention products stay float; so do those of attention layers that are
not plain (`has_plain_products`), and one log line names them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import nn

from mezzotint.config import QuantizeConfig
from mezzotint.grid.spec import activation_spec, weight_spec
from mezzotint.layers.attention import has_plain_products
from mezzotint.layers.spec import LayerSpec
from mezzotint.layers.swap import attention_of, attentions, product_names
from mezzotint.models.time_block import time_layers

logger = logging.getLogger("mezzotint")

EDGE_BITS = 8


def plan_layers(
    network: nn.Module,
    config: QuantizeConfig,
    *,
    splits: Mapping[str, tuple[int, ...]],
    edges: Mapping[str, str],
    times: int = 0,
) -> dict[str, LayerSpec]:
    """The plan of `network`.

    Args:
        splits: channel counts (h, skip) of each split shortcut, by layer name.
        edges: {"conv_in": name, "conv_out": name}.
        times: distinct times of the sampler, for which the time layers have grids if the config wants them apart.
    """
    bits = config.parsed_bits
    plan: dict[str, LayerSpec] = {}
    for name, layer in network.named_modules():
        kind = "conv2d" if isinstance(layer, nn.Conv2d) else "linear" if isinstance(layer, nn.Linear) else None
        if kind is None:
            continue
        groups = splits.get(name, ()) if config.split_shortcuts else ()
        activation = None if bits.activation is None else activation_spec(bits.activation, groups)
        plan[name] = LayerSpec(kind=kind, weight=weight_spec(bits.weight, groups), input=activation)
    for name in attentions(network):
        if bits.activation is None:
            break
        if not has_plain_products(attention_of(network, name)):
            logger.warning("%s: its products are not those of plain attention and stay in float", name)
            continue
        qk, pv = product_names(name)
        activation = activation_spec(bits.activation)
        plan[qk] = LayerSpec(kind="matmul", input=activation, other=activation)
        plan[pv] = LayerSpec(kind="matmul", input=activation_spec(config.softmax_bits), other=activation)
    if config.edge_layers in ("by-name", "float-inputs"):
        coded = config.edge_layers == "by-name" and bits.activation is not None
        plan.update(_edges_by_name(plan, edges, activations=coded))
    else:
        plan.update(_edges_as_released(plan, edges, latent=config.edge_layers == "released-latent"))
    if config.time_layers == "apart" and bits.activation is not None:
        plan.update({name: plan[name].model_copy(update={"times": times}) for name in time_layers(network)})
    return plan


def _edges_by_name(
    plan: Mapping[str, LayerSpec], edges: Mapping[str, str], *, activations: bool
) -> dict[str, LayerSpec]:
    grid = activation_spec(EDGE_BITS) if activations else None
    return {name: LayerSpec(kind=plan[name].kind, weight=weight_spec(EDGE_BITS), input=grid) for name in edges.values()}


def _edges_as_released(
    plan: Mapping[str, LayerSpec], edges: Mapping[str, str], *, latent: bool
) -> dict[str, LayerSpec]:
    """8-bit weights for the first registered *time-embedding* layer and conv_out; conv_out's input stays float.

    The released networks register the time embedding before conv_in, so their "first layer" is its first Linear. The
    input that they register before conv_out's gets 8 bits too.
    """
    first = next(name for name in plan if name.startswith("time_embedding"))
    last, late = edges["conv_out"], _late_layer(plan, latent)
    edge_plan = {
        first: plan[first].model_copy(update={"weight": weight_spec(EDGE_BITS)}),
        last: LayerSpec(kind=plan[last].kind, weight=weight_spec(EDGE_BITS), input=None),
    }
    grid = None if late is None else plan[late].input
    if late is not None and grid is not None:
        edge_plan[late] = plan[late].model_copy(update={"input": activation_spec(EDGE_BITS, grid.groups)})
    return edge_plan


def _late_layer(plan: Mapping[str, LayerSpec], latent: bool) -> str | None:
    """The layer that the released networks register second last, None if there is none.

    The DDIM code puts the up levels in backwards, so there it is the upsampler of the lowest resolution; in the latent
    networks it is the last layer of the last block before the output.
    """
    if not latent:
        return next((name for name in plan if name.startswith("up_blocks.0.upsamplers.")), None)
    last = max((int(name.split(".")[1]) for name in plan if name.startswith("up_blocks.")), default=None)
    for ending in (".proj_out", ".to_out.0", ".conv_shortcut"):
        found = [name for name in plan if name.startswith(f"up_blocks.{last}.") and name.endswith(ending)]
        if found:
            return found[-1]
    return None


def float_parts(network: nn.Module, plan: Mapping[str, LayerSpec]) -> list[str]:
    """What stays float: modules with parameters of their own that the plan does not name, and attention products."""
    parts = []
    for name, module in network.named_modules():
        own = sum(p.numel() for p in module.parameters(recurse=False))
        if own and name not in plan:
            parts.append(f"{name or 'network'} ({type(module).__name__}, {own} parameters)")
    for name in attentions(network):
        if product_names(name)[0] not in plan:
            parts.append(f"{name} (attention products)")
    parts += [f"input of {name}" for name, spec in plan.items() if spec.input is None]
    return parts
