"""Microseconds of launches: CUDA graphs of them on operands that rotate."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from kernel_shapes import Shape, described, operands

CACHE = 128 * 2**20  # bytes of operands that one round of launches goes through
FINAL = 3  # configurations of a shape that are measured with care


@cache
def side_stream() -> torch.cuda.Stream:
    """The stream of captures: one, since libraries keep a workspace for each."""
    return torch.cuda.Stream()


def graph_of(launches: list[Callable[[], Any]], rounds: int) -> torch.cuda.CUDAGraph:
    """All of `launches`, `rounds` times over; without the emptying of caches that torch.cuda.graph begins with."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.stream(side_stream()):
        for one in launches:
            one()
        torch.cuda.synchronize()
        graph.capture_begin()
        for _ in range(rounds):
            for one in launches:
                one()
        graph.capture_end()
    return graph


def median_us(launches: list[Callable[[], Any]], count: int = 24, replays: int = 7) -> float:
    """Microseconds of one launch: the median of `replays` of a graph of about `count` launches, after one more."""
    rounds = max(1, count // len(launches))
    graph, marks = graph_of(launches, rounds), []
    for _ in range(replays + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        marks.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in marks[1:]) * 1000 / (rounds * len(launches))


def copies_of(size: int) -> int:
    """How many sets of operands it takes to go through the cache."""
    return max(2, min(16, CACHE // max(1, size) + 1))


def time_float(shape: Shape) -> float:
    """Microseconds of the bfloat16 product (of GEGLU without what follows it)."""
    linear = shape.kernel == 1 and shape.stride == 1
    size = 2 * (shape.rows * (shape.channels + shape.outputs) + shape.outputs * shape.channels * shape.kernel**2)
    launches = []
    for _ in range(copies_of(size)):
        if linear:
            x = torch.randn(shape.rows, shape.channels, device="cuda", dtype=torch.bfloat16)
            w = torch.randn(shape.outputs, shape.channels, device="cuda", dtype=torch.bfloat16)
            b = torch.randn(shape.outputs, device="cuda", dtype=torch.bfloat16)
            launches.append(lambda x=x, w=w, b=b: torch.nn.functional.linear(x, w, b))
        else:
            last = {"memory_format": torch.channels_last}
            x = torch.randn(shape.batch, shape.channels, shape.size, shape.size, device="cuda", dtype=torch.bfloat16)
            w = torch.randn(shape.outputs, shape.channels, shape.kernel, shape.kernel, device="cuda").bfloat16()
            b = torch.randn(shape.outputs, device="cuda", dtype=torch.bfloat16)
            x, w = x.contiguous(**last), w.contiguous(**last)
            launches.append(
                lambda x=x, w=w, b=b: torch.nn.functional.conv2d(x, w, b, shape.stride, padding=shape.kernel // 2)
            )
    return median_us(launches)


def time_int(shape: Shape, bits: int, configs: list[Any]) -> dict[Any, float]:
    """Microseconds of each configuration, the fastest first: all of them roughly, the best FINAL then again."""
    from mezzotint.kernels.triton import launch

    generator = torch.Generator("cuda").manual_seed(2)
    first = operands(shape, bits, generator)
    size = sum(t.numel() * t.element_size() for t in first.values() if isinstance(t, torch.Tensor))
    size += shape.rows * shape.outputs * (2 if shape.kind == "float" else 1)
    calls = [described(shape, first if i == 0 else operands(shape, bits, generator)) for i in range(copies_of(size))]
    launches = {config: [partial(launch.run, call, config) for call in calls] for config in configs}
    roughly = {config: median_us(launches[config], 8, 3) for config in configs}
    ranked = sorted(roughly, key=roughly.__getitem__)
    with_care = {config: median_us(launches[config]) for config in ranked[:FINAL]}
    best = sorted(with_care, key=with_care.__getitem__)
    return {config: with_care[config] for config in best} | {config: roughly[config] for config in ranked[FINAL:]}


def ceilings() -> dict[str, float]:
    """What the chip reaches: bytes copied (read and written) a second, and bf16 operations of a large product."""
    a, b = (torch.randint(0, 99, (2**30,), device="cuda", dtype=torch.uint8) for _ in range(2))
    m = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    copy, product = median_us([lambda: a.copy_(b)]), median_us([lambda: m @ m])
    return {"copy_GBps": 2 * 2**30 / copy / 1e3, "bf16_TFLOPs": 2 * 8192**3 / product / 1e6}
