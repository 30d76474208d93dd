"""Milliseconds of one call of a denoiser on this GPU: float, compiled, and on integers.

    python benchmarks/gpu.py --json gpu.json                                  # all models below
    python benchmarks/gpu.py --json gpu.json --run sd-v1:16 --run sd-v1:2     # model:batch, may be repeated

Models: ddim-cifar10, ldm4-bedroom, ldm8-church, ldm4-imagenet and sd-v1 are the published architectures with random
weights; times do not depend on the values. Integer networks get random codes and grids that fit unit variance.

    fp32-eager, bf16-eager     torch
    bf16-graph                 bf16, channels-last, torch.compile(fullgraph), one CUDA graph a call
    w8a8, w4a8                 integers as `mezzotint.optimize` runs them on a GPU, one CUDA graph a call
    w8a8-steps, w4a8-steps     the same with a grid for every layer, as learned steps have it: q, k and v share no codes
    w8a8-int-attention, w4a8-int-attention    with both products of attention on codes, instead of in bf16
    w8a8-float-edges, w4a8-float-edges        with inputs of conv_in and conv_out as they are (edge_layers=float-inputs)

Rows: model, variant, batch, ms_median, peak_mb and what they were taken with, kernels with their times, and for
integers the floor (see `mezzotint.gpu.costs`) by rates measured in this run.

Every row is taken in a process of its own. Up to `--at-once` of them prepare side by side (building, tracing,
compiling), then they are timed one after another. With `--seconds`, those that are not ready after 0.75 of that time
are ended, and so is all at its end. `--check` compares every step of the integer networks with exact arithmetic on the
same inputs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mezzotint.models.importing.configs as configs
from mezzotint.calibration.plan import plan_layers
from mezzotint.gpu.comparing import compare_steps
from mezzotint.gpu.costs import Rates, totals
from mezzotint.gpu.network import Lowered, LoweringConfig, lower_network_
from mezzotint.gpu.timing import float_call, kernel_times, measured_rates, milliseconds, peak_bytes
from mezzotint.grid.packing import pack
from mezzotint.layers.attention import QuantizedAttnProcessor
from mezzotint.layers.int_base import IntWeightedLayer
from mezzotint.layers.int_matmul import IntMatMul
from mezzotint.layers.swap import empty_integer_network_
from mezzotint.models.denoiser import example_inputs
from mezzotint.models.units import layers_by_role, split_shortcuts
from mezzotint.recipes.registry import make_config

PUBLISHED = Path(configs.__file__).with_name("published")
RUNS = [
    "sd-v1:16",
    "sd-v1:2",
    "ddim-cifar10:256",
    "ddim-cifar10:1",
    "ldm4-bedroom:16",
    "ldm8-church:16",
    "ldm4-imagenet:16",
]
SPECIALS = ("", "-steps", "-int-attention", "-float-edges")
INTEGERS = tuple(bits + special for special in SPECIALS for bits in ("w8a8", "w4a8"))
VARIANTS = ("bf16-graph", "w8a8", "w4a8", "w8a8-steps", "bf16-eager", "fp32-eager")
TOKENS = {"sd-v1": 77, "ldm4-imagenet": 1}
INPUT_SETS = 3
STEP = 6 / 255  # of activations of unit variance
P_STEP = 0.1 / 255  # of probabilities
CODE_SPREAD = {8: 32.0, 4: 2.3}  # standard deviation of weight codes
POLL = 0.05  # seconds


def described(model: str) -> Any:
    """The denoiser of a published architecture, on the meta device."""
    with torch.device("meta"):
        network = configs.unet_part(configs.read_config(PUBLISHED / f"{model}.yaml")).network
        return type(network).from_config(network.config).eval()


def float_network(model: str, device: str = "cuda") -> nn.Module:
    """The same with the library's initialisation."""
    empty = described(model)
    torch.manual_seed(0)
    with torch.device(device):
        return type(empty).from_config(empty.config).eval().requires_grad_(False)


def integer_network(
    model: str, bits: str, *, own_steps: bool = False, float_edges: bool = False, device: str = "cuda"
) -> nn.Module:
    """The same on integers, with random codes."""
    network = described(model)
    inputs = tuple(value.to("meta") for value in example_inputs(network, 1))
    config = make_config("nearest", bits)
    if float_edges:
        config = config.model_copy(update={"edge_layers": "float-inputs"})
    plan = plan_layers(network, config, splits=split_shortcuts(network, *inputs), edges=layers_by_role(network))
    with torch.device("meta"):
        network = empty_integer_network_(network, plan)
    network = network.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for index, module in enumerate(network.modules()):
        fill_(module, generator, STEP * (1 + 1e-4 * index * own_steps))
    for processor in [module for module in network.modules() if isinstance(module, QuantizedAttnProcessor)]:
        processor.pv.a_scale.fill_(P_STEP)
        processor.pv.a_zero_point.zero_()
    return network.eval().requires_grad_(False)


@torch.no_grad()
def fill_(module: nn.Module, generator: torch.Generator, step: float) -> None:
    """Random codes and grids for activations of unit variance; norms that scale and shift by nothing."""
    if isinstance(module, IntWeightedLayer):
        bits = module.weight_grid.bits
        spread, low = CODE_SPREAD[bits], module.weight_grid.quant_min
        noise = torch.randn(module.weight_shape, generator=generator, device=generator.device)
        codes = (noise * spread).round_().clamp_(low, -low - 1).to(torch.int8)
        module.weight_packed.copy_(pack(codes, bits))
        module.weight_scale.fill_(1 / (spread * math.sqrt(codes[0].numel())))
        if module.bias is not None:
            module.bias.zero_()
        if module.input_scale is not None and module.input_zero_point is not None:
            module.input_scale.fill_(step)
            module.input_zero_point.fill_(128)
    elif isinstance(module, IntMatMul):
        for scale, zero_point in ((module.a_scale, module.a_zero_point), (module.b_scale, module.b_zero_point)):
            scale.fill_(step)
            zero_point.fill_(128)
    elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
        module.weight.fill_(1.0)
        module.bias.zero_()


def inputs_of(model: str, batch: int, device: str = "cuda") -> list[tuple[Tensor, ...]]:
    """INPUT_SETS random inputs (x_t, t, ...), each at its own time."""
    config = described(model).config
    shapes = [(batch, config.in_channels, config.sample_size, config.sample_size)]
    if getattr(config, "cross_attention_dim", None):
        shapes.append((batch, TOKENS[model], config.cross_attention_dim))
    generator, sets = torch.Generator().manual_seed(0), []
    for index in range(INPUT_SETS):
        x_t, *others = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
        sets.append((x_t, torch.full((batch,), 900 - 300 * index, device=device), *others))
    return sets


class Candidate:
    """One variant, ready to be timed: `call` as a graph, `plain` the same kernel by kernel, with its own inputs."""

    def __init__(self, model: str, batch: int, variant: str) -> None:
        self.inputs = inputs_of(model, batch)
        self.lowered: Lowered | None = None
        bits, _, special = variant.partition("-")
        if variant in INTEGERS:
            config = LoweringConfig(attention="int8" if special == "int-attention" else "bf16")
            own_steps, float_edges = special == "steps", special == "float-edges"
            network: Any = integer_network(model, bits, own_steps=own_steps, float_edges=float_edges)
            network = lower_network_(network, config)
            self.call = lambda *inputs: network(*inputs, return_dict=False)[0]
            self.call(*self.inputs[0])
            self.constants = network._compiled_call_impl.constants
            [self.lowered] = network._compiled_call_impl.lowered.values()
            self.plain, self.plain_inputs = self.lowered.module, list(self.lowered.inputs.values())
        else:
            self.call = float_call(float_network(model), variant)
            self.call(*self.inputs[0])
            self.plain, self.plain_inputs = getattr(self.call, "call", self.call), list(self.inputs[0])

    def row(self, options: argparse.Namespace, rates: Rates) -> dict[str, Any]:
        """Everything that is measured."""
        times = milliseconds(self.call, self.inputs, seconds=options.each)
        row: dict[str, Any] = {"ms_median": statistics.median(times), "ms_min": min(times), "calls": len(times)}
        row["finite"] = bool(torch.isfinite(self.call(*self.inputs[0])).all())
        row["kernels"] = kernel_times(self.call, self.inputs)
        torch.cuda.empty_cache()
        row["peak_mb"] = peak_bytes(self.plain, tuple(self.plain_inputs)) / 1e6
        if self.lowered is not None:
            row["floor"] = totals(self.lowered.costs, rates)
            row["weight_mb"] = self.constants.nbytes() / 1e6
            if options.check:
                row["check"] = compare_steps(self.lowered.module, self.plain_inputs)
        return row


def child(options: argparse.Namespace) -> None:
    """Prepares one row, says so, waits for its turn, writes it."""
    model, batch, variant, folder = options.child[0], int(options.child[1]), options.child[2], Path(options.child[3])
    began = time.perf_counter()
    with torch.no_grad():
        candidate = Candidate(model, batch, variant)
        kernel_times(lambda: torch.cuda.synchronize(), [()])  # the profiler takes seconds to start
        torch.cuda.synchronize()
        ready = time.perf_counter() - began
        (folder / "ready").touch()
        while not (folder / "go").exists():
            time.sleep(POLL)
        rates = Rates(**json.loads((folder / "go").read_text()))
        row = {"model": model, "variant": variant, "batch": batch, **candidate.row(options, rates)}
    machine = {"device": torch.cuda.get_device_name(), "torch": str(torch.__version__)}
    row |= {"seconds_to_prepare": ready, "rates": rates._asdict(), **machine}
    (folder / "row.json").write_text(json.dumps(row))
    sys.stdout.flush()
    os._exit(0)  # taking down compiler pools and CUDA takes seconds, and the next row waits for it


@dataclass
class Job:
    """A child process and the folder by which it speaks."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def ready(self) -> bool:
        return (self.folder / "ready").exists()

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    def told(self, count: int = 900) -> str:
        """The end of what it printed."""
        return (self.folder / "log").read_text(errors="replace")[-count:]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def begin(model: str, batch: int, variant: str, options: argparse.Namespace) -> Job:
    """Starts a child."""
    folder = Path(tempfile.mkdtemp(prefix="mezzotint-"))
    command = [
        sys.executable,
        __file__,
        "--child",
        model,
        str(batch),
        variant,
        str(folder),
        "--each",
        str(options.each),
    ]
    command += ["--check"] * options.check
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    return Job(f"{model}:{batch} {variant}", folder, process)


def rows_of(jobs: list[Job], options: argparse.Namespace, began: float) -> list[dict[str, Any]]:
    """Waits until all are ready, then lets them measure one after another."""
    waiting = list(jobs)
    while waiting and time.perf_counter() - began < 0.75 * options.seconds:
        for job in [job for job in waiting if job.ready or job.over]:
            print(
                f"{job.name} {'ready' if job.ready else 'FAILED'} after {time.perf_counter() - began:.0f} s", flush=True
            )
            if not job.ready:  # why, in case what follows fails too
                print(job.told(), flush=True)
            waiting.remove(job)
        time.sleep(POLL)
    for job in waiting:
        print(f"{job.name} not ready after {time.perf_counter() - began:.0f} s\n{job.told(300)}", flush=True)
        job.stop()
    rates = measured_rates()
    print(", ".join(f"{name} {rate / 1e12:.4g} T/s" for name, rate in rates._asdict().items()), flush=True)
    rows: list[dict[str, Any]] = []
    for job in jobs:
        if job not in waiting and job.ready:
            (job.folder / "go.tmp").write_text(json.dumps(rates._asdict()))
            (job.folder / "go.tmp").rename(job.folder / "go")
            try:
                job.process.wait(max(options.seconds - (time.perf_counter() - began), 1))
            except subprocess.TimeoutExpired:
                print(f"{job.name} took too long", flush=True)
                job.stop()
        if (job.folder / "row.json").exists():
            rows.append(json.loads((job.folder / "row.json").read_text()))
            show(rows[-1], rows, options.kernels)
        elif job not in waiting:
            print(f"{job.name} FAILED\n{job.told()}", flush=True)
    return rows


def show(row: dict[str, Any], rows: list[dict[str, Any]], kernels: int) -> None:
    """A line for the row, then its kernels, floor and check."""
    where = (row["model"], row["batch"])
    base = [r["ms_median"] for r in rows if (r["model"], r["batch"], r["variant"]) == (*where, "bf16-graph")]
    ratio = f"  {base[0] / row['ms_median']:.2f}x bf16-graph" if base else ""
    time_ = f"{row['ms_median']:9.3f} ms (min {row['ms_min']:.3f})"
    rest = f"peak {row['peak_mb']:.0f} MB  ready in {row['seconds_to_prepare']:.0f} s"
    print(f"== {row['model']}:{row['batch']} {row['variant']:11} {time_}{ratio}  {rest}")
    print("" if row["finite"] else "   NOT FINITE", end="")
    launches = sum(kernel["count"] for kernel in row["kernels"])
    print(f"   {sum(kernel['us'] for kernel in row['kernels']) / 1e3:.3f} ms in {launches:.0f} kernels")
    for kernel in row["kernels"][:kernels]:
        print(f"   {kernel['us']:9.1f} us {kernel['count']:6.1f}  {kernel['kernel'][:70]}")
    if "floor" in row:
        floor = sum(part["floor_ms"] for part in row["floor"].values())
        print(f"   floor {floor:.3f} ms, weights {row['weight_mb']:.0f} MB")
        for kind, part in row["floor"].items():
            work = f"{part['tera_operations']:8.3f} T {part['gigabytes']:8.3f} GB {part['floor_ms']:8.3f} ms"
            print(f"   {kind:12} {part['steps']:4.0f} steps {work}")
    for name, found in row.get("check", {}).items():
        print(f"   check {name}: {found}")
    sys.stdout.flush()


def words(text: str) -> list[str]:
    """Comma-separated variants."""
    found = [word.strip() for word in text.split(",")]
    if unknown := [word for word in found if word not in (*VARIANTS, *INTEGERS)]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(VARIANTS)}")
    return found


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", help="model:batch, may be repeated; default: " + ", ".join(RUNS))
    parser.add_argument("--variants", type=words, default=list(VARIANTS), help="comma-separated, in this order")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of a group; see above")
    parser.add_argument("--at-once", type=int, default=6, help="rows that prepare side by side")
    parser.add_argument("--each", type=float, default=1.0, help="seconds of calls a row")
    parser.add_argument("--kernels", type=int, default=14, help="kernels in the printed table")
    parser.add_argument("--check", action="store_true", help="compare every step with exact arithmetic")
    parser.add_argument("--json", type=Path, help="write the rows here, a JSON array")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options, rows = parsed(), []
    if options.child:
        child(options)
        return
    runs = [name.rpartition(":") for name in options.run or RUNS]
    wanted = [(model, int(batch), variant) for model, _, batch in runs for variant in options.variants]
    for start in range(0, len(wanted), options.at_once):
        began = time.perf_counter()
        jobs = [begin(*row, options) for row in wanted[start : start + options.at_once]]
        try:
            rows += rows_of(jobs, options, began)
        finally:
            for job in jobs:
                job.stop()
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
