"""What a model costs: bytes stored, arithmetic in bit operations, and time measured here and now.

    bytes    what the tensors of a network take in its file: parameters and buffers, codes packed
    BOPs     sum over products of MACs * weight bits * activation bits, for one image and one call          (1)
    latency  median time of one call after warm-up, float and quantized in turns, so that a busy machine hurts both

MACs are counted by forward hooks on the leaf layers of the *float* network (convolution, linear) and, for an
attention layer, from the shapes of its queries and keys: q k^T and softmax(.) v are N*M*C products each. Bits come
from the specs of the quantized layers of the same name; a product without a spec costs 32 x 32. Additions, norms and
activations are not counted. Bit operations compare models, they do not predict time: the latency is what was
measured, on the machine named beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mezzotint.layers.spec import LayerSpec
from mezzotint.layers.swap import empty_integer_network_
from mezzotint.models.denoiser import network_of

FLOAT_BITS, HALF_BITS = 32, 16


class Sizes(BaseModel):
    """Bytes of one thing (a network, a pipeline) as float32, as float16 and quantized."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fp32: int
    fp16: int
    quantized: int

    @property
    def ratio(self) -> float:
        """How many times smaller than float32."""
        return self.fp32 / self.quantized

    @property
    def half_ratio(self) -> float:
        """How many times smaller than float16 or bfloat16."""
        return self.fp16 / self.quantized


class Latency(BaseModel):
    """Median seconds of one call of the network with a batch, measured in the run that wrote this."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    float_seconds: float
    quantized_seconds: float
    batch: int
    runs: int
    device: str
    threads: int

    @property
    def speedup(self) -> float:
        """Float time divided by quantized time: above 1 the quantized network is faster."""
        return self.float_seconds / self.quantized_seconds


class FixedCost(BaseModel):
    """What a model costs whatever it runs on.

    Attributes:
        network, pipeline: bytes of the denoiser, and with what stands beside it (image decoder, text encoder).
        parameters: of the float denoiser.
        macs, float_bops, quantized_bops: of one call for one image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: Sizes
    pipeline: Sizes
    parameters: int
    macs: int
    float_bops: int
    quantized_bops: int

    @property
    def half_bops(self) -> int:
        """Bit operations in float16 or bfloat16."""
        return self.macs * HALF_BITS**2


class Cost(FixedCost):
    """Everything this module measures."""

    latency: Latency


def stored_bytes(module: nn.Module) -> int:
    """Bytes of all tensors in the state dict, each in its own dtype; tied tensors count once."""
    return sum(x.nbytes for x in _tensors(module))


def float_bytes(module: nn.Module, bytes_per_value: int) -> int:
    """Bytes of a float module if every floating tensor took this many bytes a value."""
    return sum(x.numel() * (bytes_per_value if x.is_floating_point() else x.element_size()) for x in _tensors(module))


def network_sizes(float_network: nn.Module, quantized_network: nn.Module) -> Sizes:
    """Bytes of the denoiser alone."""
    return Sizes(
        fp32=float_bytes(float_network, 4),
        fp16=float_bytes(float_network, 2),
        quantized=stored_bytes(quantized_network),
    )


def pipeline_sizes(float_pipeline: Any, quantized_pipeline: Any) -> Sizes:
    """Bytes of all networks of the pipelines: denoiser, image decoder, text encoder."""
    floats = _modules(float_pipeline)
    return Sizes(
        fp32=sum(float_bytes(module, 4) for module in floats),
        fp16=sum(float_bytes(module, 2) for module in floats),
        quantized=sum(stored_bytes(module) for module in _modules(quantized_pipeline)),
    )


def fixed_cost(
    float_pipeline: Any, quantized_pipeline: Any, plan: Mapping[str, LayerSpec], macs: Mapping[str, int]
) -> FixedCost:
    """What a pipeline will cost whose network still *simulates* the layers of `plan`.

    Args:
        quantized_pipeline: its other parts are what they will be.
        macs: of one call for one image, from `count_macs`.
    """
    network, simulated = network_of(float_pipeline), network_of(quantized_pipeline)
    others = [module for module in _modules(quantized_pipeline) if module is not simulated]
    floats = pipeline_sizes(float_pipeline, float_pipeline)
    size = integer_bytes(network, plan)
    return FixedCost(
        network=Sizes(fp32=float_bytes(network, 4), fp16=float_bytes(network, 2), quantized=size),
        pipeline=floats.model_copy(update={"quantized": size + sum(map(stored_bytes, others))}),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        macs=sum(macs.values()),
        float_bops=bit_operations(macs, {}),
        quantized_bops=bit_operations(macs, plan),
    )


def integer_bytes(network: Any, plan: Mapping[str, LayerSpec]) -> int:
    """Bytes of the float `network` once the layers of `plan` are integers; laid out without memory, not computed."""
    with torch.device("meta"):
        return stored_bytes(empty_integer_network_(type(network).from_config(network.config), plan))


@torch.no_grad()
def count_macs(network: nn.Module, *inputs: Any) -> dict[str, int]:
    """Multiply-accumulates of each product of one call, by name.

    The products of an attention layer have the names they have once quantized: `<name>.processor.qk` and `.pv`.
    """
    macs: dict[str, int] = {}
    projected: dict[str, Tensor] = {}

    def count(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(layer: nn.Module, _: Any, output: Tensor) -> None:
            weight = layer.get_parameter("weight")  # [O, ...]: one output value takes weight[0].numel() products
            macs[name] = macs.get(name, 0) + output.numel() * weight[0].numel()
            projected[name] = output

        return hook

    def count_attention(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(*_: Any) -> None:
            queries, keys = projected[f"{name}.to_q"], projected[f"{name}.to_k"]  # [B, N, C], [B, M, C]
            for product in ("qk", "pv"):
                key = f"{name}.processor.{product}"
                macs[key] = macs.get(key, 0) + queries.numel() * keys.shape[1]

        return hook

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            handles.append(module.register_forward_hook(count(name)))
        elif isinstance(module, Attention):
            handles.append(module.register_forward_hook(count_attention(name)))
    try:
        network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return macs


def bit_operations(macs: Mapping[str, int], layers: Mapping[str, LayerSpec]) -> int:
    """Equation (1); `layers` has the specs by name, empty for a float network."""
    total = 0
    for name, count in macs.items():
        left, right = FLOAT_BITS, FLOAT_BITS
        if (spec := layers.get(name)) is not None:
            first = spec.other if spec.kind == "matmul" else spec.weight
            left = first.bits if first else FLOAT_BITS
            right = spec.input.bits if spec.input else FLOAT_BITS
        total += count * left * right
    return total


@torch.no_grad()
def measure_latency(
    float_network: nn.Module, quantized_network: nn.Module, *inputs: Any, warmup: int = 2, runs: int = 7
) -> Latency:
    """Median seconds of one call of each network, in turns, after `warmup` calls that do not count."""
    device = inputs[0].device
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(warmup + runs):
        for index, network in enumerate((float_network, quantized_network)):
            _synchronize(device)
            start = time.perf_counter()
            network(*inputs)
            _synchronize(device)
            seconds[index].append(time.perf_counter() - start)
    return Latency(
        float_seconds=statistics.median(seconds[0][warmup:]),
        quantized_seconds=statistics.median(seconds[1][warmup:]),
        batch=len(inputs[0]),
        runs=runs,
        device=device_name(device),
        threads=torch.get_num_threads(),
    )


def device_name(device: torch.device) -> str:
    """Name of the device for a table: the model of a GPU, or what the processor says of its instruction set."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.backends.cpu.get_cpu_capability()})" if device.type == "cpu" else device.type


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _modules(pipeline: Any) -> list[nn.Module]:
    return [component for component in pipeline.components.values() if isinstance(component, nn.Module)]


def _tensors(module: nn.Module) -> list[Tensor]:
    """Tensors of the state dict; two names of one tensor count once."""
    unique = {(x.data_ptr() or id(x), x.dtype, x.shape): x for x in module.state_dict(keep_vars=True).values()}
    return list(unique.values())
