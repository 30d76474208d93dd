"""A quantized network on a GPU: lowered once for each shape of its inputs, then replayed as a CUDA graph.

    trace -> to_rows -> fuse_ -> emit          a module of integer products and fused steps (`Lowered.module`)
    prepare_kernels                            all it will launch, side by side; products of unknown shapes tuned
    warm up, capture                           one CUDA graph: a call is a copy of the inputs and one launch

x_t and the conditions go in as float32 where only codes are made of them; eps comes out in float32, rounded to the
dtype of x_t. In between activations are bfloat16 (`dtype`), the time embedding float32 (`vectors`). Inside another
capture (a sampler's graph of a whole step) the module runs kernel by kernel and becomes part of that graph.

The packed weights of the layers move to the host: the device holds the weights once, in the order of the kernels.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, fx, nn

from mezzotint.errors import ConfigError, ModelError
from mezzotint.gpu.constants import Constants
from mezzotint.gpu.costs import StepCost, step_costs
from mezzotint.gpu.emission import emit
from mezzotint.gpu.fusion import fuse_
from mezzotint.gpu.int_attention import absorb_codes_, quantize_attention_
from mezzotint.gpu.report import attention_reports, layer_report
from mezzotint.gpu.rows import to_rows
from mezzotint.gpu.single_key import fold_single_keys_
from mezzotint.gpu.tracing import trace
from mezzotint.gpu.vectors import widen_vectors_
from mezzotint.gpu.vocabulary import CODES, Node
from mezzotint.kernels.contract import KernelReport
from mezzotint.layers.float_attention import OutputShift, output_shift_of
from mezzotint.layers.int_base import IntLayer, IntWeightedLayer
from mezzotint.layers.integer import IntConv2d, IntLinear
from mezzotint.progress import NullProgress, Progress, one_phase

logger = logging.getLogger("mezzotint")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ATTENTION = ("bf16", "int8")
WARM_UP = 3  # calls before the capture: kernels are compiled, workspaces made
_CONDITIONS = ("encoder_hidden_states", "class_labels")


@dataclass(frozen=True)
class LoweringConfig:
    """How a network runs on a GPU.

    Attributes:
        dtype: of the activations between integer products, but for vectors of a whole sample.
        graph: capture a CUDA graph for every shape of the inputs.
        attention: "bf16", products of q, k, probabilities and v in `dtype`, and the network's output shift, where it
            has one, taken off (`layers.float_attention`); or "int8", of their codes, as the integer model has them.
    """

    dtype: torch.dtype = torch.bfloat16
    graph: bool = True
    attention: str = "bf16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {self.dtype}")
        if self.attention not in ATTENTION:
            raise ConfigError(f"attention must be one of {', '.join(ATTENTION)}, got {self.attention!r}")


@dataclass(eq=False)
class Lowered:
    """One shape of inputs: the module that computes, its graph, what a step costs at least, how attention runs."""

    module: fx.GraphModule
    inputs: dict[str, Tensor]
    output: Tensor | None = None
    graph: Any = None
    costs: list[StepCost] = field(default_factory=list)
    attention: dict[str, KernelReport] = field(default_factory=dict)


def lower_network_(
    network: nn.Module, config: LoweringConfig | None = None, progress: Progress | None = None
) -> nn.Module:
    """`network`, whose calls now run lowered; changes and returns it.

    Lowering happens in the first call of a shape, which tells `progress` about it, as `mezzotint.optimize` says.
    """
    network.requires_grad_(False)
    # What Module.compile sets.
    network._compiled_call_impl = LoweredCalls(network, config or LoweringConfig(), progress or NullProgress())
    return network


def lowered_report(network: nn.Module, name: str) -> KernelReport | None:
    """What runs the layer called `name` in calls of a lowered `network`; None if it is not lowered.

    Before the first call, what can be known without the shapes of its inputs.
    """
    calls = network._compiled_call_impl
    if not isinstance(calls, LoweredCalls):
        return None
    config, seen = calls.config, [lowered.attention for lowered in calls.lowered.values()]
    return layer_report(network, name, config.dtype, config.attention == "int8", seen)


class LoweredCalls:
    """Calls of a quantized network, lowered once for each shape of its inputs.

    Attributes:
        constants: the weights on the device, shared by all shapes.
        lowered: what was made so far, by shapes.
    """

    def __init__(self, network: nn.Module, config: LoweringConfig, progress: Progress) -> None:
        self.config = config
        self._progress = progress
        self.lowered: dict[Any, Lowered] = {}
        self._network = network
        self._layers = {name: module for name, module in network.named_modules() if isinstance(module, IntLayer)}
        self.constants = Constants(self._layers, self._shift())
        self._state = self._state_now()
        self._signature = inspect.signature(network.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        x_t, t, cond, return_dict = self._bound(args, kwargs)
        if self._state_now() != self._state:  # a layer was moved or loaded
            self.lowered.clear()
            self.constants = Constants(self._layers, self._shift())
            self._state = self._state_now()
        key = (tuple(x_t.shape), x_t.device, *((name, tuple(rows.shape)) for name, rows in sorted(cond.items())))
        if key not in self.lowered:
            self.lowered[key] = self._lower(x_t, t, cond)
        eps = self._run(self.lowered[key], {"x_t": x_t, "t": t, **cond}).to(x_t.dtype)
        if not return_dict:
            return (eps,)
        plain = isinstance(self._network, UNet2DModel)
        return UNet2DOutput(sample=eps) if plain else UNet2DConditionOutput(sample=eps)

    @torch.no_grad()
    def _run(self, lowered: Lowered, given: dict[str, Tensor]) -> Tensor:
        capturing = given["x_t"].is_cuda and torch.cuda.is_current_stream_capturing()
        if not self.config.graph or not given["x_t"].is_cuda or capturing:
            inputs = [given[name].to(kept.dtype) for name, kept in lowered.inputs.items()]
            return lowered.module(*inputs)[0]
        for name, kept in lowered.inputs.items():
            kept.copy_(given[name])
        if lowered.graph is None:
            _capture_(lowered)
        lowered.graph.replay()
        assert lowered.output is not None
        return lowered.output.clone()

    @torch.no_grad()
    def _lower(self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Lowered:
        with one_phase(self._progress, "trace network"):
            lowered = self._written(x_t, t, cond)
        if x_t.is_cuda and not torch.cuda.is_current_stream_capturing():
            from mezzotint.gpu.compiling import prepare_kernels  # Triton is an extra, and slow to import

            prepare_kernels(lambda: lowered.module(*lowered.inputs.values()), self._progress)
        return lowered

    def _written(self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Lowered:
        """The module for inputs of these shapes, and its operands on the device; nothing has run."""
        traced, layers = trace(self._network, x_t, t, cond, self.config.dtype, self._shift())
        graph = to_rows(traced, layers)
        if self.config.attention == "int8":
            quantize_attention_(graph, layers)
        folded = fold_single_keys_(graph)
        fuse_(graph, layers)
        absorb_codes_(graph)
        widen_vectors_(graph, self.config.dtype)
        inputs = {}
        given = {"x_t": x_t, "t": t, **cond}
        for node in graph.nodes:
            if node.op == "placeholder":
                value = given[str(node.target)]
                kept = value.dtype if not value.is_floating_point() else _input_dtype(node, self.config.dtype)
                inputs[str(node.target)] = torch.empty_like(value, dtype=kept).copy_(value)
        module = emit(graph, traced, self._network, self.constants, self.config.dtype)
        self._to_host_()
        costs = step_costs(graph, self._layers, self.config.dtype)
        return Lowered(module, inputs, costs=costs, attention=attention_reports(graph, folded, self.config.dtype))

    def _shift(self) -> OutputShift | None:
        """What comes off the output, None where attention is on codes."""
        return None if self.config.attention == "int8" else output_shift_of(self._network)

    def _to_host_(self) -> None:
        """Moves the packed weights of lowered layers off the device."""
        for layer in self._layers.values():
            if isinstance(layer, IntConv2d | IntLinear) and layer.weight_packed.is_cuda:
                layer.weight_packed = layer.weight_packed.cpu()
        self._state = self._state_now()

    def _state_now(self) -> list[Any]:
        weighted = (layer for layer in self._layers.values() if isinstance(layer, IntWeightedLayer))
        return [
            (id(tensor), tensor._version) for layer in weighted for tensor in (layer.weight_packed, layer.weight_scale)
        ]

    def _bound(self, args: Any, kwargs: Any) -> tuple[Tensor, Tensor, dict[str, Tensor], bool]:
        """x_t, t [B], conditions and return_dict of a call."""
        given = self._signature.bind(*args, **kwargs).arguments
        x_t, t = given.pop("sample"), given.pop("timestep")
        return_dict = given.pop("return_dict", True)
        cond = {name: given.pop(name) for name in _CONDITIONS if given.get(name) is not None}
        others = [name for name, value in given.items() if value is not None]
        if others:
            raise ModelError(
                f"the network was optimized for calls without {', '.join(others)}; load it without optimize"
            )
        t = torch.as_tensor(t, device=x_t.device).expand(len(x_t))
        return x_t, t, cond, return_dict


def _capture_(lowered: Lowered) -> None:
    """Runs the module a few times on a stream of its own and captures it."""
    inputs, stream = list(lowered.inputs.values()), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            lowered.module(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lowered.output = lowered.module(*inputs)[0]
    lowered.graph = graph


def _input_dtype(placeholder: Node, dtype: torch.dtype) -> torch.dtype:
    """float32 where nothing but codes is made of an input, else `dtype`."""
    moving = (torch.ops.aten.permute.default, torch.ops.aten.reshape.default)
    ahead: list[Node] = list(placeholder.users)
    while ahead:
        node = ahead.pop()
        if node.target in moving:
            ahead += node.users
        elif node.target is not CODES:
            return dtype
    return torch.float32
