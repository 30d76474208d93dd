"""Milliseconds of one call of a denoiser on this CPU: float, quantized, and exported to other runtimes.

    python benchmarks/cpu.py --json cpu.json                        # all models below, batches 1 and 4
    python benchmarks/cpu.py --json cpu.json --model ddim-cifar10   # one of them

Models: ddim-cifar10, ldm4-bedroom, ldm8-church, ldm4-imagenet and sd-v1 are the published architectures with random
weights; any other name is one of `mezzotint zoo list`. Variants:

    fp32-eager, fp32-channels-last, bf16-eager     torch
    bf16-compiled                                  torch.compile's default (a minute or two before it starts)
    w8a8, w4a8                                     integers, optimized (`mezzotint.optimize`)
    w4a8-packed                                    the same with the weights packed in memory, unpacked in every call
    ort-fp32, ort-w8a8, openvino-fp32, ...         the exported graph; skipped where the runtime is not installed

All variants of a model and batch take turns; the time is the median over the rounds after the warm-up. Grids come from
one call on noise, weights are rounded to nearest: the values decide the pictures, not the time.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mezzotint.models.importing.configs as configs
from mezzotint.calibration.plan import plan_layers
from mezzotint.calibration.ranges import fit_ranges
from mezzotint.calibration.rows import CalibrationSet
from mezzotint.config import RangeConfig
from mezzotint.errors import MissingExtraError
from mezzotint.layers.swap import prepare, to_integer
from mezzotint.models.denoiser import example_inputs
from mezzotint.models.load import load
from mezzotint.models.units import layers_by_role, split_shortcuts
from mezzotint.optimization import optimize_network_
from mezzotint.progress import NullProgress
from mezzotint.recipes.registry import make_config
from mezzotint.speed import COMPILED, FLOATS, Call, float_calls, input_sets, machine, take_turns

PUBLISHED = Path(configs.__file__).with_name("published")
MODELS = ("ddim-cifar10", "ddim-emoji", "ldm4-uncond", "sd-text", "ldm4-bedroom", "sd-v1")
BATCHES = {"sd-v1": (2,), "sd-text": (2, 4), "ldm4-bedroom": (4,)}
INTEGERS = {"w8a8": ("w8a8", "unpacked"), "w4a8": ("w4a8", "unpacked"), "w4a8-packed": ("w4a8", "packed")}
EXPORTED = ("ort-fp32", "ort-w8a8", "openvino-fp32", "openvino-w8a8")
VARIANTS = (*FLOATS, COMPILED, *INTEGERS, *EXPORTED)


def build(model: str) -> nn.Module:
    """The denoiser called `model`: of a published architecture with random weights, or of the zoo."""
    path = PUBLISHED / f"{model}.yaml"
    if path.is_file():
        described = configs.unet_part(configs.read_config(path)).network
        torch.manual_seed(0)
        network = type(described).from_config(described.config)
    else:
        network = load(model).unet
    return network.eval().requires_grad_(False)


@torch.no_grad()
def quantize_nearest(network: nn.Module, bits: str) -> nn.Module:
    """`network` on integers: nearest rounding, grids for one batch of noise. Says nothing about quality."""
    config = make_config("nearest", bits, forward_batch=2).model_copy(update={"ranges": RangeConfig(candidates=2)})
    example = example_inputs(network, batch=2)
    plan = plan_layers(network, config, splits=split_shortcuts(network, *example), edges=layers_by_role(network))
    simulated = prepare(network, plan)
    x_t, t, *others = example
    cond = dict(zip(("encoder_hidden_states",), others, strict=False))
    fit_ranges(simulated, CalibrationSet(x_t, t, cond), config, torch.device("cpu"), NullProgress())
    return to_integer(simulated)


def exported(network: nn.Module, variant: str, folder: Path) -> Call:
    """`network`, float or quantized, in the runtime that `variant` begins with."""
    from mezzotint.export.graphs import denoiser_graph
    from mezzotint.export.onnx_graph import write_onnx
    from mezzotint.export.runtimes import check_runtime, open_graph

    runtime, _, bits = variant.partition("-")
    path = folder / f"{bits}.onnx"
    if not path.is_file():
        write_onnx(denoiser_graph(network), path)
    return open_graph(path, check_runtime(runtime), quantized=bits != "fp32")


def make_calls(network: nn.Module, variants: list[str], folder: Path) -> dict[str, Call]:
    """A call for each of `variants`; those whose runtime is missing are left out with a line that says so."""
    calls: dict[str, Call] = float_calls(network, tuple(v for v in variants if v in (*FLOATS, COMPILED)))
    integers: dict[str, nn.Module] = {}

    def integer(bits: str) -> nn.Module:
        if bits not in integers:
            integers[bits] = quantize_nearest(network, bits)
        return integers[bits]

    for variant in variants:
        if variant in INTEGERS:
            bits, weights = INTEGERS[variant]
            calls[variant] = optimize_network_(copy.deepcopy(integer(bits)), weights=weights)
        elif variant in EXPORTED:
            try:
                source = network if variant.endswith("fp32") else integer("w8a8")
                calls[variant] = exported(source, variant, folder)
            except (MissingExtraError, ModuleNotFoundError) as error:
                print(f"{variant:20} skipped: {error}", flush=True)
    return {variant: calls[variant] for variant in variants if variant in calls}


def measure(model: str, batches: list[int], variants: list[str], runs: int) -> list[dict[str, Any]]:
    """One row a variant and batch, printed as they come."""
    network, rows = build(model), []
    parameters = sum(p.numel() for p in network.parameters())
    print(f"{model}: {parameters / 1e6:.1f} M parameters", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        calls = make_calls(network, variants, Path(folder))
        for batch in batches:
            seconds = take_turns(calls, input_sets(network, batch), warmup=3, runs=runs)
            base = statistics.median(seconds.get("fp32-channels-last") or next(iter(seconds.values())))
            for variant, times in seconds.items():
                median = statistics.median(times)
                row = {"model": model, "variant": variant, "batch": batch, "ms_median": median * 1e3}
                rows.append({**row, "ms_min": min(times) * 1e3, "runs": len(times), **machine()})
                print(f"  batch {batch}  {variant:20} {median * 1e3:9.1f} ms  {base / median:5.2f}x", flush=True)
    return rows


def words(allowed: tuple[str, ...]) -> Callable[[str], list[str]]:
    """A reader of comma-separated words."""

    def read(text: str) -> list[str]:
        found = [word.strip() for word in text.split(",")]
        if unknown := [word for word in found if word not in allowed]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(allowed)}")
        return found

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="may be repeated; default: " + ", ".join(MODELS))
    parser.add_argument("--variants", type=words(VARIANTS), default=list(VARIANTS), help="comma-separated")
    parser.add_argument("--batch", type=int, action="append", help="may be repeated; default: 1 and 4, sd-v1 2")
    parser.add_argument("--runs", type=int, default=15, help="rounds that count")
    parser.add_argument("--threads", type=int, help="default: torch's own")
    parser.add_argument("--json", type=Path, help="write the rows here, a JSON array")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(", ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    rows: list[dict[str, Any]] = []
    for model in options.model or MODELS:
        batches = options.batch or list(BATCHES.get(model, (1, 4)))
        rows += measure(model, batches, options.variants, options.runs)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
