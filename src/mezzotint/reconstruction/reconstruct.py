"""FBR over a whole network: units in execution order, each against the float one, given everything before it quantized.

After hardening, a unit keeps the better of learned and nearest rounding by its block loss on all calibration rows,
and both losses are recorded. Every finished unit is checkpointed.

With `step_phase` there are two walks, as in Q-Diffusion (arXiv 2302.04304, BRECQ's order): one learns the rounding of
all weights with every activation in float, the next the activation steps with these weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn

from mezzotint.calibration.ranges import quantizers
from mezzotint.calibration.rows import CalibrationSet
from mezzotint.config import QuantizeConfig, ReconstructionConfig
from mezzotint.models.denoiser import predict_eps
from mezzotint.models.units import Unit
from mezzotint.progress import Progress
from mezzotint.reconstruction.checkpoints import Checkpoints, grid_state, load_grid_state_
from mezzotint.reconstruction.learn import TOGETHER, Learned, Phase, learn_unit
from mezzotint.reconstruction.losses import random_signs
from mezzotint.reconstruction.problem import UnitProblem, pose
from mezzotint.reconstruction.sources import last_readers, unit_sources
from mezzotint.reconstruction.store import RowStore, RowTensor
from mezzotint.reconstruction.walk import Walker

UnitResult = dict[str, Any]


class _Walk(NamedTuple):
    """One walk through the network: what it learns, with which options, and the names of its checkpoints."""

    label: str
    phase: Phase
    options: ReconstructionConfig
    checkpoint: str = "unit"


def reconstruct(
    floating: nn.Module,
    simulated: nn.Module,
    rows: CalibrationSet,
    units: Sequence[Unit],
    config: QuantizeConfig,
    device: torch.device,
    progress: Progress,
    checkpoints: Checkpoints,
) -> list[UnitResult]:
    """Learns all units of `simulated` in place; one result per unit, in order (keys as in the manifest).

    Memory: on `device` up to `config.cache_gb` for the rows of the unit at hand and for the outputs that later units
    read; the rest of them in temporary files. The conditions are there once.

    With two walks a result is that of the first, where activations were float; that of the second is its `steps`.
    """
    options, all_results = config.reconstruction, []
    for walk in _walks(options, simulated) if options else []:
        floats = _float_activations(simulated) if not walk.phase.steps else nullcontext()
        with floats:
            all_results.append(
                _reconstruct(floating, simulated, rows, units, config, device, progress, checkpoints, walk)
            )
    if len(all_results) < 2:
        return all_results[0] if all_results else []
    return [
        {**first, "seconds": first["seconds"] + second["seconds"], "steps": second}
        for first, second in zip(*all_results, strict=True)
    ]


def _walks(options: ReconstructionConfig, simulated: nn.Module) -> list[_Walk]:
    if options.step_phase is None:
        return [_Walk("reconstruct", TOGETHER, options)]
    weights = _Walk("reconstruct: weights", Phase(steps=False), options)
    if not quantizers(simulated) or not options.step_phase.share:
        return [weights]
    iters = max(1, round(options.iters * options.step_phase.share))
    phase = Phase(rounding=False, norm=options.step_phase.norm)
    steps = options.model_copy(update={"iters": iters, "rounding_weight": 0.0})
    return [weights, _Walk("reconstruct: steps", phase, steps, "steps")]


@contextmanager
def _float_activations(simulated: nn.Module) -> Iterator[None]:
    """Inside the block no activation of `simulated` is quantized."""
    grids = quantizers(simulated).values()
    for grid in grids:
        grid.enabled = False
    try:
        yield
    finally:
        for grid in grids:
            grid.enabled = True


def _reconstruct(
    floating: nn.Module,
    simulated: nn.Module,
    rows: CalibrationSet,
    units: Sequence[Unit],
    config: QuantizeConfig,
    device: torch.device,
    progress: Progress,
    checkpoints: Checkpoints,
    walk: _Walk,
) -> list[UnitResult]:
    """One walk: every unit in order, given everything before it quantized as this walk does."""
    results = []
    sources = _sources(floating, units, rows, device)
    last_reader = last_readers(units, sources)
    progress.start(walk.label, len(units) * walk.options.iters)
    with RowStore(config.cache_gb, device, getattr(torch, config.cache_dtype)) as store:
        cond = _keep_conditions(rows, store)
        float_walker, quantized_walker = (
            Walker(network, rows, batch=config.forward_batch, device=device, sources=sources, cond=cond)
            for network in (floating, simulated)
        )
        for index, unit in enumerate(units):
            problem = pose(unit, float_walker, quantized_walker, store)
            output = store.allocate(problem.target.shape, waiting=True) if unit.name in last_reader else None
            name = f"{walk.checkpoint}-{index:03d}"
            saved = checkpoints.load(name)
            facts = checkpoints.load_json(name)
            if saved is not None and facts is not None:
                load_grid_state_(problem.simulated, saved)
                problem.block_loss(config.forward_batch, output)
                result = facts
                progress.advance(walk.options.iters, unit=unit.name)
            else:
                result = _reconstruct_unit(problem, float_walker, index, config, walk, device, progress, store, output)
                checkpoints.save(name, grid_state(problem.simulated), result)
            results.append(result)
            problem.release()
            _hand_on(problem, output, float_walker, quantized_walker)
            for name in [name for name, last in last_reader.items() if last == index]:
                float_walker.forget(name)
                quantized_walker.forget(name)
    progress.finish()
    return results


def _sources(
    floating: nn.Module, units: Sequence[Unit], rows: CalibrationSet, device: torch.device
) -> dict[str, frozenset[str]]:
    _, x_t, t, cond = next(rows.batches(1, device))
    return unit_sources(floating, units, lambda: predict_eps(floating, x_t, t, cond))


def _keep_conditions(rows: CalibrationSet, store: RowStore) -> dict[str, RowTensor]:
    kept = {name: store.allocate(values.shape, values.dtype, waiting=True) for name, values in rows.cond.items()}
    for name, values in rows.cond.items():
        kept[name].write(slice(0, len(rows)), values)
    return kept


def _hand_on(problem: UnitProblem, output: RowTensor | None, float_walker: Walker, quantized_walker: Walker) -> None:
    """Hands the unit's outputs to the walkers for the units that read them; without any they are released."""
    name, shape = problem.unit.name, problem.target.shape
    quantized_walker.finish(name, shape, output)
    if output is None:
        problem.target.release()
    else:
        problem.target.wait_()
    float_walker.finish(name, shape, None if output is None else problem.target)


def _reconstruct_unit(
    problem: UnitProblem,
    float_walker: Walker,
    index: int,
    config: QuantizeConfig,
    walk: _Walk,
    device: torch.device,
    progress: Progress,
    store: RowStore,
    output: RowTensor | None,
) -> UnitResult:
    """Learns one unit; `output` takes the rows of what it gives from now on."""
    started = time.perf_counter()
    seed, batch, options = config.seed + 1 + index, config.forward_batch, walk.options
    if options.block_weighting == "fisher":
        problem.weight = fisher_weights(problem, float_walker, seed, store)
    nearest = grid_state(problem.simulated)
    nearest_loss = problem.block_loss(batch)
    if walk.phase.rounding or problem.grids:
        drawing: dict[str, Any] = {"seed": seed, "device": device, "forward_batch": batch, "progress": progress}
        learned = learn_unit(problem, options, **drawing, phase=walk.phase)
    else:  # a unit without activation grids has no steps
        learned = Learned(nearest_loss, 0.0)
        progress.advance(options.iters, unit=problem.unit.name)
    final_loss = learned_loss = problem.block_loss(batch, output)
    keep_nearest = options.keep_better and not learned_loss < nearest_loss  # also when it is not a number
    if keep_nearest:
        load_grid_state_(problem.simulated, nearest)
    if options.bias_correction:
        correct_bias_(problem, batch)
    if keep_nearest or options.bias_correction:
        final_loss = problem.block_loss(batch, output)
    return {
        "name": problem.unit.name,
        "kind": problem.unit.kind,
        "nearest_loss": nearest_loss,
        "learned_loss": learned_loss,
        "soft_loss": learned.soft_loss,
        "undecided": learned.undecided,
        "final_loss": final_loss,
        "kept": "nearest" if keep_nearest else "learned",
        "seconds": time.perf_counter() - started,
    }


@torch.no_grad()
def correct_bias_(problem: UnitProblem, batch: int) -> None:
    """Adds the unit's mean error, per channel, to the bias of its output layer, if that lowers the block loss.

    It does not where the layer's output is scaled or normalised before it leaves the unit, or has another width.
    """
    layer = problem.layers.get(problem.unit.output[0])
    error = problem.mean_error(batch)
    if layer is None or layer.bias is None or layer.bias.shape != error.shape:
        return
    before, loss = layer.bias.clone(), problem.block_loss(batch)
    layer.bias += error
    if not problem.block_loss(batch) < loss:
        layer.bias.copy_(before)


def fisher_weights(problem: UnitProblem, float_walker: Walker, seed: int, store: RowStore) -> RowTensor:
    """Diagonal Fisher estimate of the unit's output, [N, ...], scaled to mean 1 (see `losses`)."""
    weight = store.allocate(problem.target.shape)
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for rows, gradient in float_walker.output_gradients(problem.unit.name, lambda eps: random_signs(eps, generator)):
        squared = gradient.square()
        total += float(squared.mean(dtype=torch.float64)) * (rows.stop - rows.start)
        weight.write(rows, squared)
    mean = total / problem.n_rows
    for rows in problem.batches(float_walker.batch):
        weight.write(rows, weight.read(rows) / (mean if mean > 0 else 1.0))
    return weight
