"""The units of a network: what is reconstructed together, in the order in which it runs.

A *unit* is a block whose output error is minimised at once (fine-grained block reconstruction of EDA-DM): a residual
block, an attention layer, a transformer block, or, outside of those, a single layer. Which layers make up a block is
declared below, not read off the order of registration: that order puts a block's shortcut last, and the feed-forward of
a transformer block before its second attention, so that "all but the last registered layer" drops the wrong one.

    unit         part of its loss (inner)                    makes its output (output)
    resnet       conv1, time_emb_proj                        conv2, conv_shortcut
    attention    to_q, to_k, to_v                            to_out.0
    transformer  attn1 and attn2: to_q, to_k, to_v, to_out.0;  ff.net.0.proj    ff.net.2
    layer        -                                           the layer itself, named ""

The order is traced, not assumed: the network runs once with hooks. A block of a type that is not declared, or that
holds layers its declaration does not name, falls to single layers, and one log line says so.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import Transformer2DModel, UNet2DConditionModel, UNet2DModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mezzotint.errors import ModelError

logger = logging.getLogger("mezzotint")


@dataclass(frozen=True)
class UnitType:
    """Declaration of a block type: names of its layers, relative to the block; absent ones (None) are left out."""

    kind: str
    inner: tuple[str, ...]
    output: tuple[str, ...]


@dataclass(frozen=True)
class Unit:
    """One unit of a network.

    Attributes:
        name: of the module, in the network.
        kind: "resnet", "attention", "transformer" or "layer".
        inner: names, relative to the unit, of the layers whose outputs enter the loss on their own.
        output: names of the layers whose outputs make the unit's output; "" is the unit itself.
    """

    name: str
    kind: str
    inner: tuple[str, ...]
    output: tuple[str, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names, in the network, of all layers of the unit."""
        return tuple(f"{self.name}.{layer}" if layer else self.name for layer in (*self.inner, *self.output))


_PROJECTIONS = ("to_q", "to_k", "to_v")

UNIT_TYPES: dict[type[nn.Module], UnitType] = {
    ResnetBlock2D: UnitType("resnet", inner=("conv1", "time_emb_proj"), output=("conv2", "conv_shortcut")),
    Attention: UnitType("attention", inner=_PROJECTIONS, output=("to_out.0",)),
    BasicTransformerBlock: UnitType(
        "transformer",
        inner=(
            *(f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in (*_PROJECTIONS, "to_out.0")),
            "ff.net.0.proj",
        ),
        output=("ff.net.2",),
    ),
}

LAYER_TYPES: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)

# Modules whose layers stand alone on purpose; any other owner of a single layer is logged.
_LAYER_OWNERS = (UNet2DModel, UNet2DConditionModel, TimestepEmbedding, Downsample2D, Upsample2D, Transformer2DModel)


def list_units(network: nn.Module, *inputs: Tensor) -> list[Unit]:
    """The units of a float `network` in execution order; `inputs` are positional inputs to run it with.

    Raises:
        ModelError: a layer did not run with these inputs, so that its place in the order is not known.
    """
    blocks = _declared_blocks(network)
    layers = [name for name, module in network.named_modules() if isinstance(module, LAYER_TYPES)]
    single = [name for name in layers if not any(name.startswith(f"{block}.") for block in blocks)]
    _log_undeclared(network, single)
    order = _execution_order(network, [*blocks, *single], inputs)
    units = [blocks.get(name, Unit(name, "layer", (), ("",))) for name in order]
    _check_coverage(layers, units)
    return units


def split_shortcuts(network: nn.Module, *inputs: Tensor) -> dict[str, tuple[int, ...]]:
    """{name: channel counts} of the convolutions of a float `network` that read a concatenation along the channels.

    In a U-Net those are the shortcut convolutions of the up path, whose input is [h, skip]; the counts are those of h
    and skip. Found by watching `torch.cat` and the inputs of the convolutions during one run.
    """
    found: dict[str, tuple[int, ...]] = {}
    with _Concatenations() as concatenations:

        def note(name: str) -> Callable[[nn.Module, Any], None]:
            def hook(_: nn.Module, args: Any) -> None:
                sizes = concatenations.channels(args[0])
                if sizes is not None:
                    found[name] = sizes

            return hook

        names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
        _run_with_hooks(network, names, note, inputs)
    return found


def layers_by_role(network: nn.Module) -> dict[str, str]:
    """Names of the first and the last convolution, {"conv_in": ..., "conv_out": ...}: by name, not by registration."""
    for name in ("conv_in", "conv_out"):
        if not isinstance(getattr(network, name, None), nn.Conv2d):
            raise ModelError(f"{type(network).__name__} has no convolution called {name}")
    return {"conv_in": "conv_in", "conv_out": "conv_out"}


class _Concatenations(TorchFunctionMode):
    """Remembers the results of `torch.cat` along axis 1 of [B, C, H, W] tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[tuple[Tensor, tuple[int, ...]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.cat, torch.concat, torch.concatenate):
            parts, *rest = args if args else (kwargs["tensors"],)
            dim = rest[0] if rest else (kwargs or {}).get("dim", 0)
            if result.ndim == 4 and dim in (1, -3):
                self._seen.append((result, tuple(part.shape[1] for part in parts)))
        return result

    def channels(self, x: Tensor) -> tuple[int, ...] | None:
        """Channel counts of the parts of `x`, or None if it is no concatenation."""
        return next((sizes for tensor, sizes in self._seen if tensor is x), None)


def _declared_blocks(network: nn.Module) -> dict[str, Unit]:
    """The outermost blocks of declared types whose declaration names every layer they hold."""
    blocks: dict[str, Unit] = {}
    for name, module in network.named_modules():
        declared = UNIT_TYPES.get(type(module))
        if declared is None or any(name.startswith(f"{block}.") for block in blocks):
            continue
        held = {inner for inner, layer in module.named_modules() if isinstance(layer, LAYER_TYPES)}
        inner, output = (tuple(layer for layer in part if layer in held) for part in (declared.inner, declared.output))
        unnamed = held - {*inner, *output}
        if unnamed:
            logger.warning("%s: its declaration lacks %s; its layers are units of their own", name, sorted(unnamed))
            continue
        blocks[name] = Unit(name, declared.kind, inner, output)
    return blocks


def _log_undeclared(network: nn.Module, single: list[str]) -> None:
    """One log line for all single layers that belong to a block of an undeclared type."""
    owners = Counter(
        type(owner).__name__
        for owner in (_owner(network, name) for name in single)
        if not isinstance(owner, (*_LAYER_OWNERS, *UNIT_TYPES))
    )
    if owners:
        listed = ", ".join(f"{name} ({count} layers)" for name, count in sorted(owners.items()))
        logger.warning("undeclared block types, whose layers are units of their own: %s", listed)


def _owner(network: nn.Module, name: str) -> nn.Module:
    """The nearest module around the layer `name` that is no mere container."""
    while True:
        name = name.rpartition(".")[0]
        owner = network.get_submodule(name)
        if not isinstance(owner, nn.ModuleList | nn.Sequential) or not name:
            return owner


def _execution_order(network: nn.Module, names: list[str], inputs: tuple[Tensor, ...]) -> list[str]:
    """Those of `names` that run, by their first call."""
    order: dict[str, None] = {}
    _run_with_hooks(network, names, lambda name: lambda *_: order.setdefault(name), inputs)
    return list(order)


@torch.no_grad()
def _run_with_hooks(
    network: nn.Module, names: list[str], hook_of: Callable[[str], Callable[..., None]], inputs: tuple[Tensor, ...]
) -> None:
    """Runs `network` once with a pre-hook on each of the modules called `names`; leaves none behind."""
    with _removed_after([network.get_submodule(name).register_forward_pre_hook(hook_of(name)) for name in names]):
        network(*inputs)


@contextmanager
def _removed_after(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_coverage(layers: list[str], units: list[Unit]) -> None:
    covered = Counter(layer for unit in units for layer in unit.layers)
    missing = [name for name in layers if name not in covered]
    twice = [name for name, count in covered.items() if count > 1]
    if missing:
        raise ModelError(f"{', '.join(missing)}: did not run with these inputs, so the units do not cover the network")
    if twice:
        raise ModelError(f"{', '.join(twice)}: in more than one unit")
