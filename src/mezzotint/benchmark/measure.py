"""One cell: calibrate, draw the images of the float model's seeds, compare.

Every cell of a table draws the images n = 0 ... samples - 1 from the seeds n with the prompts or classes n of the
evaluation split. Its arithmetic says what draws them:

    simulated    float arithmetic on grid values: what the integer network computes, up to the last bits of a float32
                 sum, on any device
    integer      the integer network as it is defined: int8 products, those of attention too, and float32 between them;
                 what the simulation computes, but for codes that another order of sums tips over, and faster
    deployed     the integer network as `optimize` makes it: on a GPU with bfloat16 between products and in attention,
                 which shifts the mean of eps a little (docs/LOG.md); on a CPU the same as "integer"

A network that cannot be prepared is simulated instead; the log and the row say so.

SQNR is that of the simulated network in every case, so that it means the same everywhere. Bytes and bit operations are
those of the integer network that the cell's plan of layers makes; how fast that is, `mezzotint bench` says.
"""

from __future__ import annotations

import copy
import gc
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from mezzotint.benchmark.bench import Bench, digest, slug
from mezzotint.benchmark.plan import Arithmetic, Cell
from mezzotint.benchmark.row import Row, Sheets
from mezzotint.benchmark.rows import IMAGES
from mezzotint.calibration.parts import quantize_parts
from mezzotint.errors import KernelError, ModelError
from mezzotint.evaluation.cost import device_name, fixed_cost
from mezzotint.evaluation.evaluate import compare_pairs, compare_sets
from mezzotint.evaluation.features import basis_for, train_statistics
from mezzotint.evaluation.layers import LAYER_STEPS, LAYER_TRAJECTORIES, LayerSqnr, layer_sqnr
from mezzotint.evaluation.pictures import contact_sheet, write_png
from mezzotint.evaluation.result import Versions
from mezzotint.evaluation.steps import StepSqnr, eps_sqnr, mean_sampler_sqnr, mean_sqnr, measured_steps
from mezzotint.layers.float_attention import has_quantized_products
from mezzotint.layers.swap import to_integer
from mezzotint.models.conditions import Conditions
from mezzotint.models.denoiser import device_of, network_of, sample_shape
from mezzotint.models.families import model_folder
from mezzotint.optimization import optimize
from mezzotint.pipeline import Simulation, simulate, with_network
from mezzotint.progress import Closing, NullProgress, Progress, one_phase
from mezzotint.sampling.config import SamplerConfig
from mezzotint.sampling.guidance import is_guided
from mezzotint.sampling.schedulers import make_scheduler

SQNR_TRAJECTORIES = 64

logger = logging.getLogger("mezzotint")


def measure(bench: Bench, cell: Cell, progress: Progress, resume_dir: Path | None) -> Row:
    """The finished row of a cell; checkpoints of its calibration are kept in `resume_dir`."""
    clock, sampler = Clock(), cell.config.sampler
    with clock("float images"):
        reference = bench.reference(sampler, progress)
    with clock("calibrate"):
        running: dict[str, Any] = {"device": bench.device, "progress": progress, "resume_dir": resume_dir}
        simulation = simulate(bench.pipeline, cell.config, calibration=bench.calibration, **running)
        parts = quantize_parts(bench.pipeline, cell.config, torch.device(bench.device), progress)
    others = {name: part.network.to(bench.device) for name, part in parts.items()}
    quantized = with_network(bench.pipeline, simulation.network, **others)
    with clock("sample"):
        images, drawn = draw(bench, cell, quantized, progress)
    with clock("sqnr"), one_phase(progress, "measure: SQNR"):
        steps, layers = step_errors(bench, simulation.network, sampler)
    with clock("compare"):
        figures = compared(bench, reference, images)
    with clock("score"):
        figures |= bench.scorer.score(images, reference, sampler.model_dump_json())
    units = simulation.results["units"]
    clock.add_shared(simulation.shared_seconds)
    return Row(
        **{**cell.key, **drawn},
        kind=cell.kind,
        note=cell.note,
        sqnr_db=mean_sqnr(steps),
        sampler_sqnr_db=mean_sampler_sqnr(steps),
        sqnr_steps_db=[row.sqnr_db for row in steps],
        steps=steps,
        **figures,
        **calibration_facts(simulation, cell),
        units=finite(units),
        layers=layers,
        seconds={**simulation.results["seconds"], **clock.seconds},
        sheets=save_sheets(bench, cell, reference, images),
        cost=fixed_cost(bench.pipeline, quantized, simulation.plan, bench.macs),
        calls=calls_of_an_image(sampler, bench.conditions),
        parts={name: {"bits": part.bits, **finite(part.results)} for name, part in parts.items()},
        device=device_name(torch.device(bench.device)),
        config=cell.config.model_dump(mode="json"),
        base=bench.base,
        image_seeds=(0, bench.samples - 1),
        told=bench.told,
        versions=Versions.here(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def draw(
    bench: Bench, cell: Cell, quantized: DiffusionPipeline, progress: Progress | None = None
) -> tuple[Tensor, dict[str, str]]:
    """The images [N, C, H, W] of a cell, and the fields of its row that say what drew them.

    Args:
        quantized: its denoiser simulates, its other parts are on integers where the cell quantizes them.
        progress: is told of drawing and, for integers, of what `optimize` prepares.
    """
    sampler, refused = cell.config.sampler, ""
    if cell.arithmetic != "simulated":
        simulated = network_of(quantized)
        coded = has_quantized_products(simulated)
        how, told = _how(cell.arithmetic, bench.device, coded), Closing(progress or NullProgress())
        try:
            images = bench.images(_on_integers(quantized, how | {"progress": told}), sampler, told)
        except (ModelError, KernelError) as error:
            refused = str(error)
            told.close()
            logger.warning("%s: drawn by the simulated network: %s", cell.label, refused)
        gc.collect()  # an optimized network and what calls it hold each other
        torch.cuda.empty_cache()
        if not refused:
            attention = how["attention"] if how["attention"] == "int8" else how["activations"]
            return images, {"arithmetic": cell.arithmetic, "attention": attention}
    return bench.images(quantized, sampler, progress), {"arithmetic": "simulated", "refused": refused}


def _how(arithmetic: Arithmetic, device: str, coded: bool) -> dict[str, Any]:
    """What `optimize` is told; `coded`: whether products of attention have grids. A CPU knows the exact way only."""
    exact = arithmetic == "integer" or torch.device(device).type == "cpu"
    return {"attention": "int8" if exact and coded else "bf16", "activations": "fp32" if exact else "bf16"}


def _on_integers(quantized: DiffusionPipeline, how: dict[str, Any]) -> DiffusionPipeline:
    """A pipeline whose denoiser, too, computes with integers, prepared as for users; `quantized` still simulates."""
    simulated = network_of(quantized)
    integer = to_integer(copy.deepcopy(simulated).cpu()).to(device_of(simulated))  # packed where artifacts are
    pipeline = with_network(quantized, integer)
    optimized: DiffusionPipeline = optimize(pipeline, **how)
    return optimized


def step_errors(bench: Bench, network: nn.Module, sampler: SamplerConfig) -> tuple[list[StepSqnr], list[LayerSqnr]]:
    """SQNR of eps over time, and of every layer at its first, middle and last step."""
    floating, scheduler = network_of(bench.pipeline), make_scheduler(bench.pipeline, sampler)

    def first(count: int) -> dict[str, Any]:
        count = min(count, bench.samples)
        told = None if bench.conditions is None else bench.conditions.rows(slice(0, count))
        return {"seeds": range(count), "conditions": told, "guidance_scale": sampler.guidance_scale}

    shape = sample_shape(bench.pipeline)
    steps = eps_sqnr(
        floating,
        network,
        scheduler,
        **first(SQNR_TRAJECTORIES),
        shape=shape,
        steps=measured_steps(sampler.steps),
        batch_size=min(SQNR_TRAJECTORIES, bench.batch_size),
    )
    places = measured_steps(sampler.steps, LAYER_STEPS)
    count = min(LAYER_TRAJECTORIES, bench.batch_size)
    return steps, layer_sqnr(floating, network, scheduler, **first(count), shape=shape, steps=places)


def compared(bench: Bench, reference: Tensor, images: Tensor) -> dict[str, Any]:
    """The figures of a row that come from the images alone."""
    pairs = compare_pairs(reference.to(bench.device), images.to(bench.device))
    folder = model_folder(bench.pipeline)
    distance = compare_sets(reference, images, basis_for(folder, reference), train=train_statistics(folder))
    estimates = {"psnr_pooled_db": pairs.psnr_pooled, "ssim": pairs.ssim, "lpips": pairs.lpips}
    intervals = {name: (found.low, found.high) for name, found in estimates.items() if found is not None}
    if distance.train is not None and distance.train.quantized_interval is not None:
        intervals["fd_train"] = distance.train.quantized_interval
    return {
        "psnr_pooled_db": pairs.psnr_pooled.value,
        "psnr_mean_db": pairs.psnr_mean.value,
        "psnr_interval_db": (pairs.psnr_mean.low, pairs.psnr_mean.high),
        "ssim": None if pairs.ssim is None else pairs.ssim.value,
        "lpips": None if pairs.lpips is None else pairs.lpips.value,
        "intervals": intervals,
        "fd": distance.fd.value,
        "fd_interval": (distance.fd.low, distance.fd.high),
        "fd_train": None if distance.train is None else distance.train.quantized_fd,
        "fd_train_float": None if distance.train is None else distance.train.float_fd,
        "features": distance.features,
        "warnings": [] if distance.warning is None else [distance.warning],
    }


def calibration_facts(simulation: Simulation, cell: Cell) -> dict[str, Any]:
    """What a row says about the calibration."""
    units, selection = simulation.results["units"], simulation.results["selection"]
    learning = sum(unit["seconds"] for unit in units)
    options = cell.config.reconstruction
    return {
        "counts": selection["counts"],
        "selection": finite(selection),
        "undecided": sum(unit["undecided"] for unit in units) / len(units) if units else None,
        "ms_per_iteration": 1e3 * learning / (len(units) * options.iters) if units and options else None,
    }


def save_sheets(bench: Bench, cell: Cell, reference: Tensor, images: Tensor) -> Sheets:
    """Writes the first images of both models for the report, and says where."""
    folder = bench.folder / IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    shown = "" if bench.told is None else bench.told.sha256
    drawn = digest(cell.config.sampler.model_dump_json() + shown)
    whole = digest(cell.config.model_dump_json() + shown + str(bench.samples))
    paths = [
        f"{IMAGES}/{slug(f'{cell.model} float')}-{drawn}.png",
        f"{IMAGES}/{slug(cell.label)}-{whole}.png",
    ]
    sheets = [contact_sheet(batch) for batch in (reference, images)]
    for path, sheet in zip(paths, sheets, strict=True):
        write_png(sheet.picture, bench.folder / path)
    return Sheets(
        float_images=paths[0],
        quantized_images=paths[1],
        count=sheets[0].count,
        columns=sheets[0].columns,
        side=(reference.shape[-2], reference.shape[-1]),
    )


def calls_of_an_image(sampler: SamplerConfig, conditions: Conditions | None) -> int:
    """Rows that the network sees for one image: a step each, PLMS one more, with guidance twice as many."""
    calls = sampler.steps + (1 if sampler.kind == "plms" else 0)
    return 2 * calls if is_guided(conditions, sampler.guidance_scale) else calls


def finite(data: Any) -> Any:
    """Plain data with None for every number that JSON cannot hold."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, Sequence) and not isinstance(data, str):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


class Clock:
    """Seconds of named parts: `with clock("part"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - start

    def add_shared(self, seconds: float) -> None:
        """Counts what an earlier cell spent on the calibration set that this one shares as if it had been its own."""
        if seconds:
            self.seconds["calibrate"] += seconds
            self.seconds["shared"] = seconds
