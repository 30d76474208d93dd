"""The time layers as one unit, apart from the blocks that hold them (TFMQ-DM, arXiv 2311.16503, section 4.2).

A residual block is told the time through a projection, and reconstructing the block trades errors of that projection
for errors of x_t it happened to see. But what the projections g_i say depends on the time alone, so it can be compared
with what the float ones say, at every time of the sampler:

    L = mean over times t of  sum_i | g_i(h(t)) - g_i(h(t))_quantized |^2                                       (1)

over the rounding of all weights of h, the time embedding, and of all g_i at once; activations stay float meanwhile.
Then every layer gets its grids, one for each time (`calibration.time_ranges`), and nothing below learns them again.

The rows are the T times; the loop, the regulariser and the rates are those of any unit (`reconstruction.learn`). Fisher
weights, inner layers and QDrop have no meaning here and are left out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from mezzotint.calibration.time_ranges import fit_time_ranges_, timed_quantizers
from mezzotint.config import QuantizeConfig, ReconstructionConfig
from mezzotint.layers.simulated import SimulatedLayer
from mezzotint.models.time_block import TimeBlock, time_layers
from mezzotint.models.units import Unit
from mezzotint.progress import Progress
from mezzotint.reconstruction.checkpoints import Checkpoints, grid_state, load_grid_state_
from mezzotint.reconstruction.learn import learn_unit
from mezzotint.reconstruction.problem import MAIN, UnitProblem
from mezzotint.reconstruction.reconstruct import UnitResult
from mezzotint.reconstruction.store import RowStore
from mezzotint.reconstruction.walk import Call

NAME, KIND = "time layers", "time"
_CHECKPOINT = "time-layers"


def units_without_time(units: Sequence[Unit], network: nn.Module) -> list[Unit]:
    """The units that are left when the time layers of the float `network` are learned apart."""
    apart = set(time_layers(network))
    left = []
    for unit in units:
        names = [(f"{unit.name}.{layer}" if layer else unit.name, layer) for layer in (*unit.inner, *unit.output)]
        kept = {layer for name, layer in names if name not in apart}
        if kept:
            inner, output = (tuple(layer for layer in part if layer in kept) for part in (unit.inner, unit.output))
            left.append(replace(unit, inner=inner, output=output))
    return left


def reconstruct_time_layers(
    floating: nn.Module,
    simulated: nn.Module,
    times: Sequence[int],
    config: QuantizeConfig,
    device: torch.device,
    progress: Progress,
    checkpoints: Checkpoints,
) -> list[UnitResult]:
    """Learns the time layers of `simulated` in place, if the recipe learns at all, and fits their grids.

    Returns:
        One result, with the keys of any unit's; none without reconstruction.
    """
    if config.reconstruction is None:
        fit_time_ranges_(simulated)
        return []
    block = TimeBlock(simulated)
    saved, facts = checkpoints.load(_CHECKPOINT), checkpoints.load_json(_CHECKPOINT)
    if saved is not None and facts is not None:
        load_grid_state_(block, saved)
        return [facts]
    with RowStore(config.cache_gb, device) as store:
        problem = _pose(TimeBlock(floating), block, times, store, device)
        result = _reconstruct(problem, simulated, config, config.reconstruction, device, progress)
        problem.release()
    checkpoints.save(_CHECKPOINT, grid_state(block), result)
    return [result]


@torch.no_grad()
def _pose(
    floating: TimeBlock, simulated: TimeBlock, times: Sequence[int], store: RowStore, device: torch.device
) -> UnitProblem:
    everything, t = slice(0, len(times)), torch.tensor(times, device=device)
    output = floating(t)
    rows, target = store.allocate(t.shape, t.dtype), store.allocate(output.shape)
    rows.write(everything, t)
    target.write(everything, output)
    unit = Unit(NAME, KIND, (), ())
    inputs = {MAIN: rows}
    problem = UnitProblem(unit, simulated, floating, Call({MAIN: None}), inputs, inputs, target, len(times), [rows])
    problem.layers = {name: layer for name, layer in simulated.named_modules() if isinstance(layer, SimulatedLayer)}
    return problem


def _reconstruct(
    problem: UnitProblem,
    simulated: nn.Module,
    config: QuantizeConfig,
    options: ReconstructionConfig,
    device: torch.device,
    progress: Progress,
) -> UnitResult:
    started, batch = time.perf_counter(), len(problem.batches(1))
    options = options.model_copy(
        update={"block_weighting": "mse", "layer_weight": 0.0, "input_drop": 0.0, "activation_drop": 0.0}
    )
    grids = timed_quantizers(simulated)
    nearest = grid_state(problem.simulated)
    progress.start("reconstruct: time layers", options.iters)
    try:
        for grid in grids:
            grid.enabled = False
        nearest_loss = problem.block_loss(batch)
        learned = learn_unit(problem, options, seed=config.seed, device=device, forward_batch=batch, progress=progress)
        learned_loss = problem.block_loss(batch)
    finally:
        for grid in grids:
            grid.enabled = True
    keep_nearest = options.keep_better and not learned_loss < nearest_loss
    if keep_nearest:
        load_grid_state_(problem.simulated, nearest)
    fit_time_ranges_(simulated)
    progress.finish()
    return {
        "name": NAME,
        "kind": KIND,
        "nearest_loss": nearest_loss,
        "learned_loss": learned_loss,
        "soft_loss": learned.soft_loss,
        "undecided": learned.undecided,
        "final_loss": problem.block_loss(batch),
        "kept": "nearest" if keep_nearest else "learned",
        "seconds": time.perf_counter() - started,
    }
