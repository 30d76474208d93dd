"""The main job as a row of verbs: record, select, prepare, fit, reconstruct, to integers.

record_trajectory -> select_samples -> prepare -> fit_ranges -> reconstruct -> correct_output -> to_integer
    -> save_quantized
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from mezzotint.base import base_info
from mezzotint.calibration.parts import quantize_parts, wanted_parts
from mezzotint.calibration.plan import float_parts, plan_layers
from mezzotint.calibration.ranges import fit_ranges
from mezzotint.calibration.rows import CalibrationSet, calibration_conditions
from mezzotint.calibration.selection import calibration_seeds, record_trajectory, select_samples
from mezzotint.config import QuantizeConfig
from mezzotint.errors import ModelError
from mezzotint.layers.spec import LayerSpec
from mezzotint.layers.swap import prepare, to_integer
from mezzotint.manifest import Manifest, PartRecord, weights_sha256
from mezzotint.models.denoiser import example_inputs, network_of
from mezzotint.models.families import family_of
from mezzotint.models.time_block import distinct_times
from mezzotint.models.units import layers_by_role, list_units, split_shortcuts
from mezzotint.progress import NullProgress, Progress
from mezzotint.recipes.registry import make_config
from mezzotint.reconstruction.checkpoints import Checkpoints, grid_state, load_grid_state_
from mezzotint.reconstruction.drift import correct_output_
from mezzotint.reconstruction.noise import measure_noise
from mezzotint.reconstruction.reconstruct import reconstruct
from mezzotint.reconstruction.time_block import reconstruct_time_layers, units_without_time
from mezzotint.sampling.correction import correct_
from mezzotint.sampling.schedulers import make_scheduler

CALIBRATION_OPTIONS = ("sampler", "conditions", "condition_split", "selection", "seed", "forward_batch")


@dataclass
class Simulation:
    """A calibrated simulated network and how it came about.

    Attributes:
        network: float arithmetic on grid values; `to_integer` makes it compute with integers.
        plan: the grids by layer name.
        results: what `Manifest.results` records.
        shared_seconds: of the seconds in `results`, those that an earlier run spent (`CalibrationCache`).
    """

    network: nn.Module
    plan: dict[str, LayerSpec]
    results: dict[str, Any] = field(default_factory=dict)
    shared_seconds: float = 0.0


@dataclass(frozen=True)
class Calibration:
    """A calibration set, what `Manifest.results` says of its selection, and the seconds that each phase took."""

    rows: CalibrationSet
    selection: dict[str, Any]
    seconds: dict[str, float]


class CalibrationCache:
    """The last calibration sets of *one* float pipeline, for runs that differ in what they do with them.

    A set depends on the options `CALIBRATION_OPTIONS` and the device, not on bits, ranges or reconstruction. A run that
    finds its own here gives what it would have given, and reports the seconds of the run that made the set.

    Args:
        most: sets that are kept, in the memory of the host. The recipes select in four ways.
    """

    def __init__(self, most: int = 4) -> None:
        self.most = most
        self._kept: dict[str, Calibration] = {}

    def find(self, config: QuantizeConfig, device: torch.device) -> Calibration | None:
        """The set of a run with `config`, None if it is not here."""
        return self._kept.get(self._key(config, device))

    def keep(self, config: QuantizeConfig, device: torch.device, calibration: Calibration) -> None:
        """Keeps a set, and lets the oldest go where there are too many."""
        self._kept[self._key(config, device)] = calibration
        while len(self._kept) > self.most:
            del self._kept[next(iter(self._kept))]

    def _key(self, config: QuantizeConfig, device: torch.device) -> str:
        options = config.model_dump(mode="json", include=set(CALIBRATION_OPTIONS))
        return json.dumps([options, str(device)], sort_keys=True)


def quantize(
    pipeline: DiffusionPipeline,
    bits: str = "w4a8",
    recipe: str = "eda-dm",
    *,
    config: QuantizeConfig | None = None,
    preset: str = "default",
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    resume_dir: str | Path | None = None,
    **options: Any,
) -> DiffusionPipeline:
    """A pipeline like `pipeline` whose network computes with integers; the float pipeline is left as it was.

    Args:
        pipeline: float diffusers pipeline with a `.unet`.
        bits: weights and activations, such as "w4a8", "w8a8" or "w4a32" (float activations).
        recipe: a name of `mezzotint.recipes.registry.RECIPES`, such as "eda-dm", "q-diffusion" or "nearest".
        config: every option at once; then `bits`, `recipe`, `preset` and `options` are ignored.
        preset: how much time to spend: "fast", "default" or "paper".
        device: where to calibrate; None takes the GPU if there is one.
        resume_dir: folder for checkpoints; a killed run goes on from them.
        options: single options by their flat names (`mezzotint.config.FLAT_FIELDS`), such as `iters=200`.

    Returns:
        The pipeline on the CPU. Its network has the attribute `quantization`, a `Manifest`.

    Raises:
        ModelError, BitsError, ConfigError, ResumeError, OutputError: see `mezzotint.errors`.
    """
    config = config or make_config(recipe, bits, preset, family=family_of(pipeline), **options)
    wanted_parts(pipeline, config)  # refuses before hours of work
    simulation = simulate(pipeline, config, device=device, progress=progress, resume_dir=resume_dir)
    network = to_integer(simulation.network.cpu())
    parts = quantize_parts(pipeline, config, pick_device(device), progress or NullProgress())
    base = base_info(pipeline)
    network.quantization = Manifest(  # type: ignore[assignment]
        base=base,
        bits=config.bits,
        layers=simulation.plan,
        parts={
            name: PartRecord(bits=part.bits, layers=part.plan, float_modules=part.float_modules, results=part.results)
            for name, part in parts.items()
        },
        float_modules=float_parts(network_of(pipeline), simulation.plan),
        config=config.model_dump(mode="json"),
        sampler=config.sampler.model_dump(mode="json"),
        seeds={"run": config.seed, "first_calibration": calibration_seeds(config.seed, 1)[0]},
        results=simulation.results,
    )
    return with_network(pipeline, network, **{name: part.network for name, part in parts.items()})


def with_network(pipeline: DiffusionPipeline, network: nn.Module, **parts: nn.Module) -> DiffusionPipeline:
    """A pipeline like `pipeline`, sharing its parts and where it came from, but for the network and `parts`."""
    other = copy.copy(pipeline)
    other.register_modules(unet=network, **parts)
    return other


def pick_device(device: str | torch.device | None) -> torch.device:
    """`device`, or where that is None the GPU if there is one."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def simulate(
    pipeline: DiffusionPipeline,
    config: QuantizeConfig,
    *,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    resume_dir: str | Path | None = None,
    calibration: CalibrationCache | None = None,
) -> Simulation:
    """Calibrates a simulated copy of the pipeline's network; the pipeline is left as and where it was.

    Args:
        calibration: sets of earlier runs on the same pipeline; a new one is added.
    """
    progress = progress or NullProgress()
    device = pick_device(device)
    floating = network_of(pipeline)
    if getattr(floating, "quantization", None) is not None:
        raise ModelError("this model is quantized already; give the float model")
    home = next(floating.parameters()).device
    checkpoints = Checkpoints(None, {})
    if resume_dir is not None:
        fingerprint = {"config": config.model_dump(mode="json"), "base": weights_sha256(floating)}
        checkpoints = Checkpoints(Path(resume_dir), fingerprint)
    floating.to(device)
    try:
        return _simulate(pipeline, floating, config, device, progress, checkpoints, calibration)
    finally:
        floating.to(home)


def _simulate(
    pipeline: DiffusionPipeline,
    floating: nn.Module,
    config: QuantizeConfig,
    device: torch.device,
    progress: Progress,
    checkpoints: Checkpoints,
    shared: CalibrationCache | None,
) -> Simulation:
    clock = _Clock()
    with torch.no_grad():
        rows, selection = _calibration_set(pipeline, config, device, progress, checkpoints, clock, shared)
        inputs, apart = example_inputs(floating), config.time_layers == "apart"
        units = list_units(floating, *inputs)
        times = distinct_times(make_scheduler(pipeline, config.sampler).times)
        splits, edges = split_shortcuts(floating, *inputs), layers_by_role(floating)
        plan = plan_layers(floating, config, splits=splits, edges=edges, times=len(times))
        simulated = prepare(floating, plan, times=times)
        with clock("fit"):
            _ranges(simulated, rows, config, device, progress, checkpoints)
    with clock("reconstruct"):
        unit_results = []
        if apart:
            units = units_without_time(units, floating)
            unit_results = reconstruct_time_layers(floating, simulated, times, config, device, progress, checkpoints)
        unit_results += reconstruct(floating, simulated, rows, units, config, device, progress, checkpoints)
    results: dict[str, Any] = {"selection": selection, "units": unit_results, "seconds": clock.seconds}
    if config.drift_trajectories:
        with clock("correct"):
            results["output_correction"] = correct_output_(pipeline, simulated, config, device, progress)
    if config.correction == "ptqd":
        with clock("measure noise"):
            noise = measure_noise(pipeline, simulated, config, device, progress)
        correct_(simulated, noise)
        results["noise_correction"] = noise.model_dump(mode="json")
    return Simulation(simulated, plan, results, clock.shared)


def _calibration_set(
    pipeline: DiffusionPipeline,
    config: QuantizeConfig,
    device: torch.device,
    progress: Progress,
    checkpoints: Checkpoints,
    clock: _Clock,
    shared: CalibrationCache | None,
) -> tuple[CalibrationSet, dict[str, Any]]:
    saved, facts = checkpoints.load("calibration"), checkpoints.load_json("calibration")
    if saved is not None and facts is not None:
        return CalibrationSet.from_state(saved), facts
    found = None if shared is None else shared.find(config, device)
    if found is not None:
        clock.seconds |= found.seconds
        clock.shared = sum(found.seconds.values())
    else:
        found = _calibration(pipeline, config, device, progress, clock)
        if shared is not None:
            shared.keep(config, device, found)
    checkpoints.save("calibration", found.rows.state(), found.selection)
    return found.rows, found.selection


def _calibration(
    pipeline: DiffusionPipeline, config: QuantizeConfig, device: torch.device, progress: Progress, clock: _Clock
) -> Calibration:
    """Reads of `config` what `CALIBRATION_OPTIONS` names and nothing else."""
    with clock("record"):
        most = max(config.selection.calib_size, config.selection.pilot_size)
        conditions = calibration_conditions(pipeline, config, most)
        pilot = record_trajectory(pipeline, config, conditions, device, progress)
    with clock("select"):
        selection, rows = select_samples(pipeline, config, conditions, pilot, device, progress)
    return Calibration(rows, selection.to_dict(), dict(clock.seconds))


def _ranges(
    simulated: nn.Module,
    rows: CalibrationSet,
    config: QuantizeConfig,
    device: torch.device,
    progress: Progress,
    checkpoints: Checkpoints,
) -> None:
    saved: dict[str, Tensor] | None = checkpoints.load("ranges")
    if saved is not None:
        load_grid_state_(simulated, saved)
        return
    fit_ranges(simulated, rows, config, device, progress)
    checkpoints.save("ranges", grid_state(simulated), {})


class _Clock:
    """Seconds by phase; `shared` of them were spent by an earlier run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.shared = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started
