"""How fast a denoiser is on this machine: float and quantized in turns, and layer by layer.

    take_turns     every variant once, then every variant again: what else runs on the machine hurts all alike
    float_calls    fp32, fp32 channels-last, bf16, bf16 compiled
    layer_seconds  time in each convolution, linear layer and attention product of one call

Times do not depend on the values of weights, so the float twin of an artifact is its architecture with random weights.
"""

from __future__ import annotations

import copy
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.layers.int_base import IntLayer
from mezzotint.models.denoiser import example_inputs

Call = Callable[..., Any]
Inputs = tuple[Tensor, ...]
FLOATS = ("fp32-eager", "fp32-channels-last", "bf16-eager")
COMPILED = "bf16-compiled"
INPUT_SETS = 3  # inputs rotate, so that no call finds its own in the cache


def float_twin(network: Any) -> nn.Module:
    """A float network of the class and config of `network`, with random weights, from diffusers' initialisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return type(network).from_config(network.config).eval().requires_grad_(False)


def input_sets(network: nn.Module, batch: int) -> list[Inputs]:
    """INPUT_SETS random inputs of `network`, channels-last, each at its own time."""
    generator = torch.Generator().manual_seed(0)
    sets = []
    for index in range(INPUT_SETS):
        x_t, _, *others = example_inputs(network, batch)
        x_t = torch.randn(x_t.shape, generator=generator).contiguous(memory_format=torch.channels_last)
        sets.append((x_t, torch.full((batch,), 900 - 300 * index), *others))
    return sets


def float_calls(network: nn.Module, variants: tuple[str, ...] = FLOATS) -> dict[str, Call]:
    """The float `network` as each of `variants`, a call each; "bf16-compiled" is torch.compile's default.

    The variants share what memory they can: SD v1's weights take 3.4 GB.
    """
    own: dict[str, Any] = {"fp32-eager": _shared_copy(network)}
    own["fp32-channels-last"] = _shared_copy(network).to(memory_format=torch.channels_last)
    own["bf16-eager"] = own["fp32-channels-last"]
    if any(name.startswith("bf16") for name in variants):
        own["bf16-eager"] = _shared_copy(own["bf16-eager"]).to(torch.bfloat16)
    calls: dict[str, Call] = {}
    for name in variants:
        if name.startswith("bf16"):
            half = own["bf16-eager"]
            calls[name] = _bf16(torch.compile(_shared_copy(half)) if name == COMPILED else half)
        else:
            calls[name] = own[name] if name != "fp32-eager" else _contiguous(own[name])
    return calls


def _shared_copy(network: nn.Module) -> Any:
    """A copy of `network` whose tensors are the same memory, to be cast or laid out anew as its own."""
    tensors: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()}
    tensors |= {id(b): b.detach() for b in network.buffers()}
    return copy.deepcopy(network, tensors)


def _bf16(network: Call) -> Call:
    def call(x_t: Tensor, t: Tensor, *others: Tensor) -> Any:
        floats = (other.to(torch.bfloat16) if other.is_floating_point() else other for other in others)
        return network(x_t.to(torch.bfloat16), t, *floats)

    return call


def _contiguous(network: Call) -> Call:
    return lambda x_t, *others: network(x_t.contiguous(), *others)


@torch.no_grad()
def take_turns(
    calls: Mapping[str, Call], inputs: list[Inputs], *, warmup: int = 2, runs: int = 7
) -> dict[str, list[float]]:
    """Seconds of every counted call, by name; in each of the `runs` rounds every variant is called once."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(warmup + runs):
        for name, call in calls.items():
            start = time.perf_counter()
            call(*inputs[index % len(inputs)])
            if index >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


@torch.no_grad()
def layer_seconds(network: nn.Module, inputs: list[Inputs], *, runs: int = 5) -> dict[str, float]:
    """Median seconds in each convolution, linear layer and attention product of a call, after one that warms up."""
    begun: dict[str, float] = {}
    seconds: dict[str, list[float]] = {}

    def start(name: str) -> Callable[..., None]:
        return lambda *_: begun.__setitem__(name, time.perf_counter())

    def stop(name: str) -> Callable[..., None]:
        return lambda *_: seconds.setdefault(name, []).append(time.perf_counter() - begun[name])

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | IntLayer):
            handles += [module.register_forward_pre_hook(start(name)), module.register_forward_hook(stop(name))]
    try:
        for index in range(runs + 1):
            if index == 1:
                seconds.clear()
            network(*inputs[index % len(inputs)])
    finally:
        for handle in handles:
            handle.remove()
    return {name: statistics.median(times) for name, times in seconds.items()}


def machine() -> dict[str, Any]:
    """{"cpu": its name, "isa": what of it counts here, "threads": threads torch uses, "torch": version}."""
    units = {
        "avx512_vnni": torch.cpu._is_vnni_supported(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
    }
    isa = " ".join([torch.backends.cpu.get_cpu_capability().lower(), *(name for name, there in units.items() if there)])
    return {"cpu": _cpu_name(), "isa": isa, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
