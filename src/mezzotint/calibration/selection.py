"""From a float model to a calibration set: pilot -> scores -> counts -> one x_t from each trajectory.

Only what is needed is kept. The pilot's features live for one batch; then every trajectory is told the one step it
contributes and only that x_t is stored, so memory is O(N d), not O(T N d) as in the released code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Int
from torch import Tensor, nn

from mezzotint.calibration import tdac
from mezzotint.calibration.rows import CalibrationSet
from mezzotint.config import QuantizeConfig, SelectionConfig
from mezzotint.models.conditions import Conditions
from mezzotint.models.denoiser import mid_feature_module, network_of, sample_shape
from mezzotint.progress import Progress, as_callback
from mezzotint.sampling.schedulers import make_scheduler
from mezzotint.sampling.trajectory import iterate, record_at

# Calibration seeds are the upper half of the 32 bits that a generator reads: they never meet the small seeds people
# draw and evaluate with.
FIRST_CALIBRATION_SEED = 1 << 31
SEEDS_OF_A_RUN = 1 << 20


@dataclass(frozen=True)
class Selection:
    """How many samples each scored step contributes.

    Attributes:
        steps: sampler steps that were scored (the first of each distinct time unless repeats are kept).
        times: their model time steps.
        density, variety, score: equations (2), (3), (4) of `tdac`; empty for methods that do not score.
        counts: samples per scored step; they sum to the calibration size.
        radius: squared feature distance within which two steps count as close; None where nothing was scored.
    """

    steps: list[int]
    times: list[int]
    counts: list[int]
    density: list[float]
    variety: list[float]
    score: list[float]
    radius: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def calibration_seeds(seed: int, n: int) -> list[int]:
    """Seeds of the n calibration trajectories of a run."""
    first = FIRST_CALIBRATION_SEED + seed % (FIRST_CALIBRATION_SEED // SEEDS_OF_A_RUN) * SEEDS_OF_A_RUN
    return list(range(first, first + n))


def scored_steps(times: Sequence[int], merge_repeated: bool) -> list[int]:
    """Sampler steps to score: all, or the first of each distinct time (a repeated time changes nothing)."""
    if not merge_repeated:
        return list(range(len(times)))
    first: dict[int, int] = {}
    for step, t in enumerate(times):
        first.setdefault(int(t), step)
    return list(first.values())


@dataclass(frozen=True)
class Pilot:
    """What the selectors choose from.

    Attributes:
        steps: sampler steps that can contribute samples.
        times: their model time steps.
        similarity: how alike the features of these steps are; None for methods that do not look at features.
    """

    steps: list[int]
    times: list[int]
    similarity: tdac.StepSimilarity | None


def record_trajectory(
    pipeline: DiffusionPipeline,
    config: QuantizeConfig,
    conditions: Conditions | None,
    device: torch.device,
    progress: Progress,
) -> Pilot:
    """The steps of the sampler and, for methods that score them, the similarity of their mid-block features.

    Runs `config.selection.pilot_size` float trajectories; their features live for one batch.

    Args:
        conditions: from `calibration_conditions`; row k belongs to trajectory k.
    """
    scheduler = make_scheduler(pipeline, config.sampler)
    steps = scored_steps(scheduler.times, config.selection.merge_repeated)
    scores = SELECTORS[config.selection.method].looks_at_features
    similarity = _feature_similarity(pipeline, config, conditions, steps, device, progress) if scores else None
    return Pilot(steps, [scheduler.times[step] for step in steps], similarity)


def select_samples(
    pipeline: DiffusionPipeline,
    config: QuantizeConfig,
    conditions: Conditions | None,
    pilot: Pilot,
    device: torch.device,
    progress: Progress,
) -> tuple[Selection, CalibrationSet]:
    """How many samples each step gets, and the samples: x_t of each trajectory at the one step assigned to it."""
    selection = SELECTORS[config.selection.method].select(pilot, config.selection)
    steps = assign_steps(selection, config.seed)
    conditions = None if conditions is None else conditions.rows(slice(0, len(steps)))
    guidance_scale = config.sampler.guidance_scale
    x_t, t = record_at(
        network_of(pipeline),
        make_scheduler(pipeline, config.sampler),
        calibration_seeds(config.seed, len(steps)),
        steps,
        shape=sample_shape(pipeline),
        batch_size=config.forward_batch,
        conditions=conditions,
        guidance_scale=guidance_scale,
        device=device,
        progress=as_callback(progress, "record: calibration set"),
    )
    return selection, CalibrationSet.of_trajectories(x_t, t, conditions, guidance_scale)


def select_uniform(pilot: Pilot, options: SelectionConfig) -> Selection:
    """As many samples from every distinct time step (Q-Diffusion's rule)."""
    counts = tdac.largest_remainder(torch.ones(len(pilot.steps)), options.calib_size)
    return Selection(pilot.steps, pilot.times, counts.tolist(), [], [], [], None)


def select_normal(pilot: Pilot, options: SelectionConfig) -> Selection:
    """Normally distributed time steps (PTQ4DM, arXiv 2211.15736), as expected counts instead of random draws.

    Step k of T lies between 1 - k / T and 1 - (k + 1) / T, 1 being pure noise and 0 the image; what the distribution
    puts outside falls to the two end steps.
    """
    total = len(pilot.steps)
    below = [NormalDist(options.normal_mean, options.normal_std).cdf(1 - k / total) for k in range(1, total)]
    edges = torch.tensor([1.0, *below, 0.0], dtype=torch.float64)  # share of samples below each boundary
    counts = tdac.largest_remainder(edges[:-1] - edges[1:], options.calib_size)
    return Selection(pilot.steps, pilot.times, counts.tolist(), [], [], [], None)


def select_tdac(pilot: Pilot, options: SelectionConfig) -> Selection:
    """TDAC: steps scored by density and variety of the mid-block features."""
    if pilot.similarity is None:
        raise ValueError("TDAC needs the features of a pilot run")
    distance = pilot.similarity.distance()
    radius = options.radius
    if radius is None:
        radius = tdac.choose_radius(distance, options.radius_quantile)
    density, variety = tdac.density(distance, radius), pilot.similarity.variety()
    score = tdac.step_score(density, variety, options.variety_weight, options.density_weight)
    allocate = tdac.rounded_allocation if options.allocation == "round" else tdac.largest_remainder
    counts = allocate(score, options.calib_size)
    return Selection(
        pilot.steps, pilot.times, counts.tolist(), density.tolist(), variety.tolist(), score.tolist(), radius
    )


class Selector(NamedTuple):
    """One way to share out the calibration samples."""

    select: Callable[[Pilot, SelectionConfig], Selection]
    looks_at_features: bool


SELECTORS: dict[str, Selector] = {
    "tdac": Selector(select_tdac, looks_at_features=True),
    "uniform": Selector(select_uniform, looks_at_features=False),
    "normal": Selector(select_normal, looks_at_features=False),
}


def _feature_similarity(
    pipeline: DiffusionPipeline,
    config: QuantizeConfig,
    conditions: Conditions | None,
    steps: Sequence[int],
    device: torch.device,
    progress: Progress,
) -> tdac.StepSimilarity:
    """Under guidance the features of a step are those of all its network rows, unconditional and conditional."""
    network, shape = network_of(pipeline), sample_shape(pipeline)
    drawing: dict[str, Any] = {"shape": shape, "guidance_scale": config.sampler.guidance_scale, "device": device}
    wanted, call = set(steps), 0 if config.selection.feature_call == "first" else -1
    seeds = calibration_seeds(config.seed, config.selection.pilot_size)
    scheduler = make_scheduler(pipeline, config.sampler)
    similarity = tdac.StepSimilarity()
    progress.start("record: pilot", len(seeds) * config.sampler.steps)
    for start in range(0, len(seeds), config.forward_batch):
        rows = slice(start, min(start + config.forward_batch, len(seeds)))
        batch, own = seeds[rows], None if conditions is None else conditions.rows(rows)
        features = []
        with first_inputs(mid_feature_module(network)) as seen:
            for state in iterate(network, scheduler, batch, conditions=own, **drawing):
                if state.step in wanted:
                    features.append(seen[call])
                seen.clear()
                progress.advance(len(batch))
        similarity.add(torch.stack(features))
    progress.finish()
    return similarity


@contextmanager
def first_inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """A list that receives the first positional input of every call of `module` inside the block.

    Read one entry after a sampler step, then clear. Where a sampler calls the network twice (PLMS at its start), the
    first entry is the one at the step's own time; the released code keeps the last.
    """
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()


def assign_steps(selection: Selection, seed: int) -> Int[Tensor, "n"]:
    """The sampler step that each trajectory contributes: the multiset of counts in a seeded random order."""
    steps = torch.tensor(selection.steps).repeat_interleave(torch.tensor(selection.counts))
    order = torch.randperm(len(steps), generator=torch.Generator().manual_seed(seed))
    return steps[order]
