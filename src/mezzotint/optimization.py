"""A quantized network as one graph, with the steps between integer products fused: what `optimize` turns it into.

torch.compile traces the network once (seconds, for each shape of the input); the graph is rewritten (`fusing`) and runs
as it is, operator by operator. Nothing else is compiled, except two files of C++ once per machine.

    removed      dropout, division by 1, casts to the dtype there is, detach, slices of everything
    merged       equal SiLU and quantization of one tensor (the time embedding; q, k, v with equal grids)
    moved        codes before nearest upsampling, padding, transposition, reshaping: the same codes from fewer floats
    fused        [+ time embedding] -> group norm [-> SiLU] [-> codes]
                 layer norm -> codes;  GEGLU -> codes
                 scores -> scaled -> softmax -> codes -> product with v, for all heads side by side

The first three are exact. The fused ones compute floats in their own fixed order, see `kernels.fused` and
`kernels.attention`, and their products exactly: eps differs from that of the plain integer network by what a few codes
out by one do to it, as it does between two processors of different vector width. Where the C++ cannot be built, torch's
own steps run in its place and every output is that of the plain network.
"""

from __future__ import annotations

import itertools
import types
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, fx, nn

from mezzotint.errors import ConfigError, ModelError
from mezzotint.fusing.backend import fusing_backend
from mezzotint.gpu.network import LoweringConfig, lower_network_
from mezzotint.layers.int_base import IntLayer, IntWeightedLayer
from mezzotint.progress import NullProgress, Progress, one_phase

WEIGHTS = ("unpacked", "packed")
ACTIVATIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def optimize(
    pipeline: Any,
    *,
    fuse: bool = True,
    weights: str = "unpacked",
    attention: str = "bf16",
    activations: str = "bf16",
    progress: Progress | None = None,
) -> Any:
    """`pipeline` with its quantized networks prepared for fast calls where it is; changes and returns it.

    On a CUDA device the denoiser runs as one CUDA graph with `activations` between products, see `gpu.network`.

    Args:
        fuse: trace the denoiser on its first call and fuse what lies between the products (seconds, once for each
            batch size). Without it the layers only choose and prepare their kernels now instead of in the first call.
        weights: "packed" keeps the codes of the weights packed in memory and unpacks them in every call: the same
            output, less memory, much slower. On a CUDA device 4-bit weights always stay packed.
        attention: how q k^T and softmax(.) v are computed on a CUDA device: "bf16" in floats, or "int8" on codes, as
            the model was calibrated. "bf16" is the default because it is faster: on an H200 a step of Stable Diffusion
            v1 took 23.5 ms with it and 28.6 with "int8" at batch 16, 4.8 and 5.6 at batch 2 (docs/LOG.md). On a CPU
            they are always of codes.
        activations: what lies between integer products on a CUDA device: "bf16", "fp16" (three more bits of mantissa,
            nothing beyond 65504) or "fp32" (twice the bytes; what a CPU always has).
        progress: is told of "prepare layers" now, and in the first call with inputs of a shape of what that call
            prepares: "trace network", and on a CUDA device "compile kernels" and "tune products" where there are any.
            These interrupt a phase that is open, such as the sampling, see `mezzotint.progress`. None tells nobody.

    Raises:
        ModelError: no part of the pipeline is quantized.
        ConfigError: `weights`, `attention` or `activations` is none of the above, or the pipeline is neither on the
            CPU nor on CUDA and `fuse` is on. On the first call, if `attention` is "int8" and no attention has grids.
    """
    networks = _quantized(pipeline)
    if not networks:
        raise ModelError(f"{type(pipeline).__name__} has no quantized part to optimize; quantize it first")
    for name, network in networks.items():
        optimize_network_(
            network,
            fuse=fuse and name == "unet",
            weights=weights,
            attention=attention,
            activations=activations,
            progress=progress,
        )
    return pipeline


def is_quantized(pipeline: Any) -> bool:
    """Whether `optimize` has something to do: some part of the pipeline runs on integers."""
    return bool(_quantized(pipeline))


def optimize_network_(
    network: nn.Module,
    *,
    fuse: bool = True,
    weights: str = "unpacked",
    attention: str = "bf16",
    activations: str = "bf16",
    progress: Progress | None = None,
) -> nn.Module:
    """As `optimize`, for one network; changes and returns it."""
    if weights not in WEIGHTS:
        raise ConfigError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    if activations not in ACTIVATIONS:
        raise ConfigError(f"activations must be one of {', '.join(ACTIVATIONS)}, got {activations!r}")
    told = progress or NullProgress()
    lowering = LoweringConfig(dtype=ACTIVATIONS[activations], attention=attention)
    layers = _layers(network)
    places = {buffer.device.type for layer in layers for buffer in layer.buffers()}
    if fuse and places == {"cuda"}:
        return lower_network_(network, lowering, told)
    if fuse and places != {"cpu"}:
        raise ConfigError("fusing is for a CPU or a CUDA device; move the model there, or call optimize(fuse=False)")
    with one_phase(told, "prepare layers", len(layers)):
        for layer in layers:
            if isinstance(layer, IntWeightedLayer):
                layer.keep_packed = weights == "packed"
            layer.prepare_kernel_()
            told.advance()
    if fuse:
        network.requires_grad_(False)
        # The tracer reads through diffusers' cached version checks, as it should, and warns of each.
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`", module="torch")
        # What Module.compile sets; copies and pickles go without it.
        network._compiled_call_impl = _Traced(network, told)
    return network


class _Traced:
    """Calls of a network, traced and fused once for each kind of input.

    Every kind gets a function with code of its own. The tracer keeps what it learned by code object: two networks of
    one class would share it, their differing scales would be taken for variables, and eight recompilations for a bug.
    """

    _names = itertools.count()

    def __init__(self, network: nn.Module, progress: Progress) -> None:
        self._network = network
        self._progress = progress
        self._layers = _layers(network)
        self._prepared = [layer.operands for layer in self._layers]
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        key = (*modes, *map(_kind, args), *((name, _kind(value)) for name, value in sorted(kwargs.items())))
        pairs = zip(self._layers, self._prepared, strict=True)
        if any(layer.operands is not prepared for layer, prepared in pairs):  # the state of a layer changed
            self._prepared = [layer.prepare_kernel_().operands for layer in self._layers]
            self._compiled.clear()
        if key not in self._compiled:
            return self._first_call(key, args, kwargs)
        return self._compiled[key](*args, **kwargs)

    def _first_call(self, key: Any, args: Any, kwargs: Any) -> Any:
        """Traces and runs; a phase of `progress`, which ends where the fused graph is there and its run begins."""
        with ExitStack() as tracing:

            def backend(graph: fx.GraphModule, example_inputs: Sequence[Tensor]) -> Callable[..., Any]:
                fused = fusing_backend(graph, example_inputs)
                tracing.close()
                return fused

            entry = _with_own_code(self._network.forward, next(self._names))
            options: Any = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}  # looked at above
            compiled = torch.compile(entry, backend=backend, fullgraph=True, dynamic=False, options=options)
            tracing.enter_context(one_phase(self._progress, "trace network"))
            result = compiled(*args, **kwargs)
        self._compiled[key] = compiled
        return result


def _kind(value: Any) -> Any:
    """What a traced graph depends on: of a tensor its layout, else the value."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return repr(value)


def _with_own_code(forward: Callable[..., Any], number: int) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    code = call.__code__.replace(co_name=f"call_{number}")
    return types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)


def _quantized(pipeline: Any) -> dict[str, nn.Module]:
    return {name: m for name, m in pipeline.components.items() if isinstance(m, nn.Module) and _layers(m)}


def _layers(network: nn.Module) -> list[IntLayer]:
    return [module for module in network.modules() if isinstance(module, IntLayer)]
