"""Milliseconds of a network on a GPU: calls in turns of fresh inputs, CUDA graphs, and time by kernel.

Device events stand around every call, and inputs rotate. Peak memory is that of one call outside a graph, weights
included.
"""

from __future__ import annotations

import copy
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from mezzotint.gpu.costs import Rates
from mezzotint.kernels.contract import Weighted
from mezzotint.kernels.triton import codes_s8, linear_operand, product

Call = Callable[..., Any]
Inputs = tuple[Tensor, ...]
FLOATS = ("fp32-eager", "bf16-eager", "bf16-graph")
_WARM_UP = 3
_SQUARE = 8192  # side of the matrices that rates are measured with


def float_call(network: nn.Module, variant: str) -> Call:
    """The float `network` (on the GPU) as one of FLOATS; bf16-graph is compiled, channels-last and captured."""
    own: Any = copy.deepcopy(network)
    if variant == "fp32-eager":
        return lambda *inputs: own(*inputs, return_dict=False)[0]
    own = nn.Module.to(own, torch.bfloat16).to(memory_format=torch.channels_last)

    def call(x_t: Tensor, t: Tensor, *others: Tensor) -> Tensor:
        floats = (other.to(torch.bfloat16) if other.is_floating_point() else other for other in others)
        picture = x_t.to(torch.bfloat16, memory_format=torch.channels_last)
        return own(picture, t, *floats, return_dict=False)[0].to(x_t.dtype)

    if variant == "bf16-eager":
        return call
    if variant != "bf16-graph":
        raise ValueError(f"no float variant {variant!r}; there are {', '.join(FLOATS)}")
    return Graphed(torch.compile(call, fullgraph=True, dynamic=False))


class Graphed:
    """A call as one CUDA graph, captured on the first use; inputs are copied in, the output is copied out.

    Attributes:
        call: what was captured.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self._graph: Any = None
        self._inputs: list[Tensor] = []
        self._output: Any = None

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        if self._graph is None:
            self._capture(inputs)
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return self._output.clone()

    def _capture(self, inputs: Sequence[Tensor]) -> None:
        self._inputs = [given.clone() for given in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self.call(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = self.call(*self._inputs)


@torch.no_grad()
def milliseconds(call: Call, inputs: Sequence[Inputs], *, seconds: float = 1.0, most: int = 200) -> list[float]:
    """Milliseconds of single calls, for about `seconds` and up to `most` of them, after some that warm up."""
    for given in (*inputs, *inputs)[: max(_WARM_UP, len(inputs))]:
        call(*given)
    torch.cuda.synchronize()
    start, marks = time.perf_counter(), []
    for index in range(most):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        call(*inputs[index % len(inputs)])
        after.record()
        marks.append((before, after))
        if index % 8 == 7:
            torch.cuda.synchronize()
            if time.perf_counter() - start > seconds:
                break
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in marks]


@torch.no_grad()
def peak_bytes(call: Call, inputs: Inputs) -> int:
    """Most memory in use during the first call, what was there before included: weights, and what a graph keeps."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call(*inputs)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


@torch.no_grad()
def kernel_times(call: Call, inputs: Sequence[Inputs], *, calls: int = 3) -> list[dict[str, Any]]:
    """Microseconds a call by kernel, most first: {"kernel", "us", "count"}."""
    for given in inputs:
        call(*given)
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for index in range(calls):
            call(*inputs[index % len(inputs)])
        torch.cuda.synchronize()
    sums: dict[str, list[float]] = {}
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            sums.setdefault(_short(event.name), []).append(event.device_time)
    rows = [{"kernel": name, "us": sum(t) / calls, "count": len(t) / calls} for name, t in sums.items()]
    return sorted(rows, key=lambda row: -float(row["us"]))


def product_times(module: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[tuple[str, ...], float]:
    """Microseconds of every product of a lowered `module`, by the names of its layers, each replayed alone."""
    times: dict[tuple[str, ...], float] = {}

    class Timing(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if "layers" not in n.meta:
                return super().run_node(n)
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            operator: Any = n.target
            times[n.meta["layers"]] = replayed_microseconds(lambda: operator(*args, **kwargs))
            return operator(*args, **kwargs)

    with torch.no_grad():
        Timing(module).run(*inputs)
    return times


@torch.no_grad()
def layer_times(network: nn.Module, inputs: Inputs) -> dict[str, float]:
    """Microseconds of every convolution and linear layer of a float network on the GPU, each replayed alone."""
    times: dict[str, float] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            times[name] = replayed_microseconds(lambda: layer.forward(*given))

        return hook

    layers = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_pre_hook(note(name)) for name, layer in layers]
    try:
        network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return times


def replayed_microseconds(call: Callable[[], Any], *, times: int = 20) -> float:
    """Microseconds of `call` in a CUDA graph that holds it `times` times."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            call()
    graph.replay()
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    graph.replay()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) * 1e3 / times


def _short(name: str) -> str:
    """A kernel's name without its template arguments and return type."""
    name = re.sub(r"^(void|at::native::|\s)+", "", name)
    depth, kept = 0, []
    for letter in name:
        depth += letter == "<"
        if depth == 0:
            kept.append(letter)
        depth -= letter == ">"
    return re.sub(r"\(.*", "", "".join(kept))[:90] or name[:90]


@torch.no_grad()
def measured_rates() -> Rates:
    """int8 rate of our products, bfloat16 rate of torch's, bandwidth of a copy; on random data, medians."""
    generator = torch.Generator("cuda").manual_seed(0)
    weight = torch.randint(-127, 128, (_SQUARE, _SQUARE), generator=generator, device="cuda", dtype=torch.int8)
    factors = torch.full((_SQUARE,), 1e-5, device="cuda")
    operand = linear_operand([Weighted(weight, factors, None, 128)])
    a = torch.randn(_SQUARE, _SQUARE, generator=generator, device="cuda", dtype=torch.bfloat16)
    x_q = codes_s8(a, 0.03, 128)
    operations = 2.0 * _SQUARE**3
    integer = _median(lambda: product(x_q, operand, dtype=torch.bfloat16))
    floating = _median(lambda: a @ a)
    copied = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    source = torch.zeros_like(copied)
    copying = _median(lambda: copied.copy_(source))
    return Rates(operations / integer, operations / floating, 2.0 * copied.numel() / copying)


def _median(call: Callable[[], Any]) -> float:
    """Seconds."""
    return statistics.median(milliseconds(lambda: call(), [()], seconds=0.3, most=24)) / 1e3
