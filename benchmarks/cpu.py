"""Milliseconds of one call of a denoiser on this CPU: float, quantized, and exported to other runtimes.

    python benchmarks/cpu.py --json cpu.json                        # everything below: two hours on two cores
    python benchmarks/cpu.py --json cpu.json --model ddim-cifar10   # one model
    python benchmarks/cpu.py --json image.json --image sd-text      # whole images, prompt to picture

Models: ddim-cifar10, ldm4-bedroom, ldm8-church, ldm4-imagenet and sd-v1 are the published architectures with random
weights; any other name is one of `mezzotint zoo list`. Variants:

    fp32-eager, fp32-channels-last, bf16-eager     torch
    bf16-compiled                                  torch.compile's default (minutes before it starts)
    w8a8, w4a8                                     integers, optimized (`mezzotint.optimize`)
    w4a8-packed                                    the same with the weights packed in memory, unpacked in every call
    ort-fp32, ort-w8a8, openvino-fp32, ...         the exported graph; skipped where the runtime is not installed

All variants of a model and batch take turns; the time is the median over the rounds after the warm-up. Grids come from
one call on noise, weights are rounded to nearest: the values decide the pictures, not the time.

`--memory` adds `resident_mb` to the rows of torch's variants: by how much the resident memory of a fresh process grows
from before the network is read to after its first call, in MB of 10**6 bytes. Rows of `--image` are for one picture
with text encoder, sampler and decoder; there `w8a8-all` has all three networks on integers, `w8a8` the denoiser alone.
SD v1 takes 15 GB with its five default variants.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import functools
import gc
import json
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mezzotint
import mezzotint.models.importing.configs as configs
from mezzotint.calibration.plan import plan_layers
from mezzotint.calibration.ranges import fit_ranges
from mezzotint.calibration.rows import CalibrationSet
from mezzotint.config import RangeConfig
from mezzotint.errors import MissingExtraError
from mezzotint.layers.swap import prepare, to_integer
from mezzotint.models.conditioning import condition_inputs, encode_conditions
from mezzotint.models.denoiser import example_inputs
from mezzotint.models.families import family_of
from mezzotint.models.load import load
from mezzotint.models.units import layers_by_role, split_shortcuts
from mezzotint.optimization import optimize_network_
from mezzotint.progress import NullProgress
from mezzotint.recipes.registry import make_config
from mezzotint.sampling.config import SamplerConfig
from mezzotint.sampling.defaults import default_sampler
from mezzotint.sampling.trajectory import sample
from mezzotint.speed import COMPILED, FLOATS, Call, float_calls, input_sets, machine, take_turns

PUBLISHED = Path(configs.__file__).with_name("published")
MODELS = (
    "ddim-cifar10",
    "ddim-emoji",
    "ldm4-uncond",
    "ldm8-uncond",
    "ldm4-class",
    "sd-text",
    "ldm4-bedroom",
    "ldm8-church",
    "ldm4-imagenet",
    "sd-v1",
)
LARGE = ("ldm4-bedroom", "ldm8-church", "ldm4-imagenet")  # seconds a call: batch 4 only, few rounds
INTEGERS = {"w8a8": ("w8a8", "unpacked"), "w4a8": ("w4a8", "unpacked"), "w4a8-packed": ("w4a8", "packed")}
EXPORTED = ("ort-fp32", "ort-w8a8", "openvino-fp32", "openvino-w8a8")
VARIANTS = (*FLOATS, COMPILED, *INTEGERS, *EXPORTED)
HUGE_VARIANTS = ("fp32-channels-last", "bf16-eager", COMPILED, "w8a8", "w4a8")  # of sd-v1, for the memory's sake
COARSE = RangeConfig(candidates=2)
IMAGE_VARIANTS = ("fp32-eager", "fp32-channels-last", "bf16-eager", "w8a8", "w4a8", "w8a8-all")


def usual(model: str) -> tuple[list[int], list[str], int]:
    """Batches, variants and rounds of `model` unless the command line says otherwise."""
    if model == "sd-v1":
        return [2], list(HUGE_VARIANTS), 3
    return ([4], list(VARIANTS), 5) if model in LARGE else ([1, 4], list(VARIANTS), 15)


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
    config = make_config("nearest", bits, forward_batch=2).model_copy(update={"ranges": COARSE})
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


def resident_bytes(network: nn.Module, variant: str, folder: Path) -> int:
    """By how much a fresh process grows when it reads `network` and calls it once as `variant`."""
    path = folder / f"{variant}.pt"
    torch.save(network, path)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        grown = pool.apply(_grow, (path, variant, torch.get_num_threads()))
    path.unlink()
    return grown


@torch.no_grad()
def _grow(path: Path, variant: str, threads: int) -> int:
    torch.set_num_threads(threads)
    before = _resident()
    network = torch.load(path, weights_only=False)
    if variant in INTEGERS:
        call: Call = optimize_network_(network, fuse=False, weights=INTEGERS[variant][1])
    else:
        call = float_calls(network, (variant,))[variant]
    call(*input_sets(network, 1)[0])
    del network
    return _resident() - before


def _resident() -> int:
    """Bytes of this process in memory, once what is free has been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(model: str, batches: list[int], variants: list[str], runs: int, memory: bool) -> list[dict[str, Any]]:
    """One row a variant and batch, printed as they come."""
    network, rows, grown = build(model), [], {}
    parameters = sum(p.numel() for p in network.parameters())
    print(f"{model}: {parameters / 1e6:.1f} M parameters", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for variant in (v for v in variants if memory and v in (*FLOATS, *INTEGERS)):
            own = quantize_nearest(network, INTEGERS[variant][0]) if variant in INTEGERS else network
            grown[variant] = resident_bytes(own, variant, Path(folder)) / 1e6
            print(f"  resident {variant:20} {grown[variant]:9.1f} MB", flush=True)
        calls = make_calls(network, variants, Path(folder))
        for batch in batches:
            seconds = take_turns(calls, input_sets(network, batch), warmup=min(3, runs), runs=runs)
            for row in described(model, batch, seconds):
                rows.append(row | ({"resident_mb": grown[row["variant"]]} if row["variant"] in grown else {}))
    return rows


def described(model: str, batch: int, seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """One row a variant, printed too."""
    rows, base = [], statistics.median(seconds.get("fp32-channels-last") or next(iter(seconds.values())))
    for variant, times in seconds.items():
        median = statistics.median(times)
        row = {"model": model, "variant": variant, "batch": batch, "ms_median": median * 1e3}
        rows.append({**row, "ms_min": min(times) * 1e3, "runs": len(times), **machine()})
        print(f"  batch {batch}  {variant:20} {median * 1e3:9.1f} ms  {base / median:5.2f}x", flush=True)
    return rows


def measure_image(model: str, variants: list[str], runs: int) -> list[dict[str, Any]]:
    """As `measure`, for one whole picture of a pipeline of the zoo with its usual sampler."""
    calls: dict[str, Call] = {}
    for variant in variants:
        pipeline = load(model)
        sampler = default_sampler(pipeline)
        if variant.startswith("w"):
            mezzotint.optimize(quickly_quantized(pipeline, variant))
        elif variant != "fp32-eager":
            dtype = torch.bfloat16 if variant.startswith("bf16") else torch.float32
            pipeline.unet.to(dtype, memory_format=torch.channels_last)
        calls[variant] = functools.partial(draw, pipeline, sampler)
    print(f"{model}: one image", flush=True)
    return described(f"{model} image", 1, take_turns(calls, [()], warmup=2, runs=runs))


def quickly_quantized(pipeline: Any, variant: str) -> Any:
    """`pipeline` on integers, rounded to nearest after four steps of calibration."""
    bits, _, parts = variant.partition("-")
    sampler, family = default_sampler(pipeline), family_of(pipeline)
    settings = {"kind": sampler.kind, "spacing": "uniform", "guidance_scale": sampler.guidance_scale, "steps": 4}
    more = {name: "w8a8" for name in ("vae_bits", "text_encoder_bits") if parts == "all"}
    config = make_config(
        "nearest", bits, family=family, calib_size=8, pilot_size=8, forward_batch=8, **settings, **more
    )
    config = config.model_copy(update={"ranges": COARSE, "drift_trajectories": 0})
    return mezzotint.quantize(pipeline, config=config)


def draw(pipeline: Any, sampler: SamplerConfig) -> None:
    """One picture, from its prompt on."""
    told = condition_inputs(pipeline, "evaluation", 1)
    sample(pipeline, [0], sampler=sampler, conditions=encode_conditions(pipeline, told))


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
    parser.add_argument("--image", action="append", help="zoo model to time whole images of; may be repeated")
    parser.add_argument("--variants", type=words((*VARIANTS, *IMAGE_VARIANTS)), help="comma-separated")
    parser.add_argument("--batch", type=int, action="append", help="may be repeated; default: 1 and 4, 4, sd-v1 2")
    parser.add_argument("--runs", type=int, help="rounds that count; default: 15, large networks 5, sd-v1 3")
    parser.add_argument("--memory", action="store_true", help="measure resident memory, too")
    parser.add_argument("--threads", type=int, help="default: torch's own")
    parser.add_argument("--json", type=Path, help="write the rows here, a JSON array")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(", ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    everything = options.model is None and options.image is None
    rows: list[dict[str, Any]] = []
    for model in MODELS if everything else options.model or ():
        batches, variants, runs = usual(model)
        chosen = (options.batch or batches, options.variants or variants, options.runs or runs)
        rows += measure(model, *chosen, options.memory)
        save(rows, options.json)
    for model in ("sd-text",) if everything else options.image or ():
        rows += measure_image(model, options.variants or list(IMAGE_VARIANTS), options.runs or 5)
        save(rows, options.json)


def save(rows: list[dict[str, Any]], path: Path | None) -> None:
    """Writes `rows`, if there is a place for them; after every model, so that a stopped run leaves something."""
    if path is not None:
        path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
