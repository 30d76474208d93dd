"""`mezzotint bench --device cuda`: float and integers as they run on a GPU, every product against its float twin."""

from __future__ import annotations

import statistics
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from mezzotint.cli.verdicts import verdict

if TYPE_CHECKING:
    from mezzotint.progress import Progress

BASE = "bf16-graph"
SECONDS = 0.1  # of calls for each of the rounds asked for


def measure_on_gpu(
    network: Any, batch: int, runs: int, device: str, *, compiled: bool, attention: str = "bf16", progress: Progress
) -> dict[str, Any]:
    """Variants, and for an artifact products and verdict, as plain data; as `cli.bench` has them for a CPU.

    Args:
        network: float or quantized, on the CPU; it is moved and, if quantized, lowered.
        runs: how many tenths of a second each variant is called.
        compiled: also bf16 through torch.compile and a CUDA graph.
        attention: of the quantized network, as `optimize` takes it.
        progress: is told what lowering does.
    """
    import torch

    from mezzotint import speed
    from mezzotint.evaluation.cost import float_bytes, stored_bytes
    from mezzotint.gpu import timing
    from mezzotint.gpu.network import LoweringConfig

    lowering = LoweringConfig(attention=attention)
    quantized = hasattr(network, "quantization")
    floating = (speed.float_twin(network) if quantized else network).to(device)
    given = [tuple(value.to(device) for value in values) for values in speed.input_sets(floating, batch)]
    variants = [name for name in timing.FLOATS if compiled or name != BASE]
    rows = [_row(name, partial(timing.float_call, floating, name), given, runs) for name in variants]
    result: dict[str, Any] = {"gpu": torch.cuda.get_device_name(device), "torch": str(torch.__version__), "runs": runs}
    result["bytes"] = {"fp32": float_bytes(floating, 4)}
    if quantized:
        bits = str(network.quantization.bits)
        result["bytes"]["quantized"], result["attention"] = stored_bytes(network), attention
        rows.append(_row(bits, partial(_lowered, network, device, lowering, progress), given, runs))
    base = BASE if compiled else "bf16-eager"
    seconds = {row["variant"]: row["ms_median"] / 1e3 for row in rows}
    for row in rows:
        row["speedup"] = seconds[base] / seconds[row["variant"]]
    result |= {"variants": rows, "base": base, "layers": []}
    if not quantized:
        how = "float only; make the quantized model with `mezzotint quantize` and bench that"
        return {**result, "verdict": how}
    result["layers"], result["kernels"] = _layers(floating, network, given), count_kernels(network)
    words = verdict(seconds, bits, result["layers"], twin="bfloat16", fast=("triton",))
    how = "" if compiled else f" {BASE}, the strongest float variant, was not run: add --compile."
    return {**result, "verdict": words + how}


def count_kernels(network: Any) -> list[dict[str, Any]]:
    """What runs the layers of a lowered `network`: kernel, reason, how many layers; the most first."""
    from mezzotint.gpu.network import lowered_report
    from mezzotint.layers.int_base import IntLayer

    names = [name for name, module in network.named_modules() if isinstance(module, IntLayer)]
    counts = Counter(lowered_report(network, name) or network.get_submodule(name).kernel_report() for name in names)
    return [{"kernel": k.name, "reason": k.reason, "layers": count} for k, count in counts.most_common()]


def _lowered(network: Any, device: str, lowering: Any, progress: Progress) -> Any:
    """A call of the network as `optimize` runs it, that gives eps."""
    from mezzotint.gpu.network import lower_network_

    lowered: Any = lower_network_(network.to(device), lowering, progress)
    return lambda *inputs: lowered(*inputs, return_dict=False)[0]


def _row(name: str, make: Any, given: list[Any], runs: int) -> dict[str, Any]:
    """Time and memory of the call that `make` gives; memory beyond what is there before."""
    import torch

    from mezzotint.gpu import timing

    before, call = torch.cuda.memory_allocated(), make()
    peak = timing.peak_bytes(call, given[0]) - before
    times = timing.milliseconds(call, given, seconds=runs * SECONDS)
    return {"variant": name, "ms_median": statistics.median(times), "peak_bytes": peak}


def _layers(floating: Any, network: Any, given: list[Any]) -> list[dict[str, Any]]:
    """Every product, slowest first; layers side by side in one product are one row, against the sum of their twins."""
    import torch

    from mezzotint.gpu import timing

    [lowered] = network._compiled_call_impl.lowered.values()
    half = torch.nn.Module.to(floating, torch.bfloat16).to(memory_format=torch.channels_last)
    floats = timing.layer_times(half, tuple(v.bfloat16() if v.is_floating_point() else v for v in given[0]))
    products = timing.product_times(lowered.module, list(lowered.inputs.values()))
    return [
        {
            "name": ", ".join(names),
            "ms": products[names] / 1e3,
            "float_ms": sum(floats[name] for name in names) / 1e3,
            "kernel": "triton",
            "reason": "one product of int8 codes",
        }
        for names in sorted(products, key=lambda names: -products[names])
    ]
