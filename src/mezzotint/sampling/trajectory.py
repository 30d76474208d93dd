"""Trajectories from seeds.

A seed is the identity of a sample: its start noise, and with eta > 0 the noise of each of its steps, come from a CPU
generator of its own, in that order. So a sample does not depend on the batch it is drawn in, on the order of the seeds
or on the device, up to the rounding of the network's kernels. diffusers' DDIMPipeline uses the noise in the same way
when it is given a list of generators.

    name     dtype    shape         meaning
    seeds    int      [N]           0 to 2**32 - 1
    step     int                    index in the sampler, 0 is pure noise
    t        int                    model time of that step
    x_t      float32  [B, C, H, W]  sample before the step
    eps      float32  [B, C, H, W]  output of the network on it, guided where there is guidance, corrected where the
                                    network has a correction (`mezzotint.sampling.correction`)
    x_prev   float32  [B, C, H, W]  sample after the step

Conditions are rows in the order of the seeds. Latent models are sampled in latents; decoding begins when
the last of them is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from jaxtyping import Float, Int
from torch import Tensor, nn

from mezzotint.errors import ConfigError
from mezzotint.models.conditioning import conditioning_kind
from mezzotint.models.conditions import Conditions
from mezzotint.models.decoding import decode_latents, first_stage
from mezzotint.models.denoiser import device_of, network_of, sample_shape
from mezzotint.sampling.config import SamplerConfig
from mezzotint.sampling.correction import corrector_for
from mezzotint.sampling.ddim import DDIM
from mezzotint.sampling.defaults import default_sampler
from mezzotint.sampling.replay import eps_of
from mezzotint.sampling.schedulers import make_scheduler

Shape = tuple[int, int, int]
Device = str | torch.device
Progress = Callable[[int, int], None]

SEED_BITS = 32  # torch's CPU generator reads no more: seeds 3 and 3 + 2**32 would give the same noise


@dataclass(frozen=True)
class State:
    """A batch of trajectories at one step; see the module's docstring."""

    step: int
    t: int
    x_t: Tensor
    eps: Tensor
    x_prev: Tensor


Callback = Callable[[slice, State], None]


def start_noise(seeds: Sequence[int], shape: Shape) -> Float[Tensor, "b c h w"]:
    """x_T of every seed, on the CPU."""
    return _draw(_generators(seeds), shape)


def iterate(
    network: nn.Module,
    scheduler: DDIM,
    seeds: Sequence[int],
    *,
    shape: Shape,
    conditions: Conditions | None = None,
    guidance_scale: float = 1.0,
    device: Device | None = None,
    replay: bool = False,
) -> Iterator[State]:
    """The steps of one batch of trajectories, all at once in memory; stop early by leaving the loop.

    Args:
        conditions: a row for each seed; None for an unconditional network.
        guidance_scale: s of `mezzotint.sampling.guidance`; it acts where the conditions have unconditional rows.
        device: where to compute; None is where the network lies.
        replay: on a GPU, replay the network as a CUDA graph (`mezzotint.sampling.replay`); its hooks do not run then.
    """
    _check_conditions(conditions, len(seeds))
    device = torch.device(device) if device is not None else device_of(network)
    generators = _generators(seeds)
    conditions = None if conditions is None else conditions.to(device)
    x_t = _draw(generators, shape).to(device)
    past: list[Tensor] = []
    predict = eps_of(network, conditions, guidance_scale, replay=replay)
    corrector = corrector_for(network, scheduler, guidance_scale, device)
    if corrector is not None:
        predict = corrector.around(predict)

    for step, t in enumerate(scheduler.times):
        noise = _draw(generators, shape).to(device) if scheduler.eta > 0 else None
        if corrector is not None and noise is not None:
            noise = corrector.shares[step] * noise
        with torch.no_grad():  # not around the yield: the caller's code is not ours to switch
            eps, x_prev = scheduler.advance(predict, step, x_t, noise, past)
        yield State(step, t, x_t, eps, x_prev)
        x_t = x_prev


def sample(
    pipeline: DiffusionPipeline,
    seeds: Sequence[int],
    *,
    sampler: SamplerConfig | None = None,
    batch_size: int = 64,
    conditions: Conditions | None = None,
    device: Device | None = None,
    progress: Progress | None = None,
    decode_progress: Progress | None = None,
    callback: Callback | None = None,
) -> Float[Tensor, "n c h w"]:
    """Images in [-1, 1] on the CPU, row n from seeds[n]; those of latent models decoded.

    Args:
        sampler: None is `default_sampler(pipeline)`.
        conditions: from `mezzotint.models.conditioning.encode_conditions`, a row for each seed.
        device: where to compute; None is where the network lies.
        progress: called with (steps done, steps in all), where every image has its own; first with (0, steps in all),
            before the network is called.
        decode_progress: called with (images decoded, images in all) after the last step; not for pixel models.
        callback: called after every step with the rows of the batch and its State.

    Raises:
        ConfigError: a conditional pipeline without conditions, or with another number of them than seeds.
    """
    first_stage(pipeline)  # one that is missing is an error before the first step, not after the last
    drawing: dict[str, Any] = {"sampler": sampler, "batch_size": batch_size, "conditions": conditions}
    x = sample_latents(pipeline, seeds, **drawing, device=device, progress=progress, callback=callback)
    return decode_latents(pipeline, x, progress=decode_progress)


def sample_latents(
    pipeline: DiffusionPipeline,
    seeds: Sequence[int],
    *,
    sampler: SamplerConfig | None = None,
    batch_size: int = 64,
    conditions: Conditions | None = None,
    device: Device | None = None,
    progress: Progress | None = None,
    callback: Callback | None = None,
) -> Float[Tensor, "n c h w"]:
    """x_0 as the sampler leaves it, on the CPU: latents before decoding, pixels before clipping; as `sample`."""
    _check_pipeline(pipeline, conditions, len(seeds))
    sampler = sampler or default_sampler(pipeline)
    network, shape, scheduler = network_of(pipeline), sample_shape(pipeline), make_scheduler(pipeline, sampler)
    done, total = 0, len(seeds) * len(scheduler.times)
    drawing: dict[str, Any] = {"shape": shape, "guidance_scale": sampler.guidance_scale, "device": device}
    drawing["replay"] = True
    parts = [torch.empty((0, *shape))]
    if progress is not None and total:
        progress(0, total)
    for rows in _batches(len(seeds), batch_size):
        for state in iterate(network, scheduler, seeds[rows], conditions=_rows(conditions, rows), **drawing):
            if callback is not None:
                callback(rows, state)
            done += rows.stop - rows.start
            if progress is not None:
                progress(done, total)
        parts.append(state.x_prev.cpu())
    return torch.cat(parts)


def record_at(
    network: nn.Module,
    scheduler: DDIM,
    seeds: Sequence[int],
    steps_of_sample: Int[Tensor, " n"],
    *,
    shape: Shape,
    batch_size: int = 64,
    conditions: Conditions | None = None,
    guidance_scale: float = 1.0,
    device: Device | None = None,
    progress: Progress | None = None,
) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]:
    """(x_t, t) on the CPU: of trajectory n only the sample at its own step, steps_of_sample[n]. Rows as seeds.

    Nothing else is kept: O(N d) memory. Trajectories are batched by step, so that a batch ends at the last step that
    one of its rows needs: about half the network calls of whole trajectories when the steps are spread evenly.

    Args:
        progress: called with (network rows computed, network rows in all), first before the network is called.
    """
    _check_steps_of_sample(steps_of_sample, len(seeds), len(scheduler.times))
    _check_conditions(conditions, len(seeds))
    drawing: dict[str, Any] = {"shape": shape, "guidance_scale": guidance_scale, "device": device, "replay": True}
    kept = torch.empty((len(seeds), *shape))
    order = steps_of_sample.cpu().argsort(stable=True)
    parts = [order[rows] for rows in _batches(len(seeds), batch_size)]
    total, done = sum(len(part) * int(steps_of_sample[part[-1]]) for part in parts), 0
    if progress is not None and total:
        progress(0, total)
    for part in parts:
        wanted = steps_of_sample[part].cpu()
        batch = [seeds[index] for index in part.tolist()]
        kept[part[wanted == 0]] = start_noise([batch[i] for i in (wanted == 0).nonzero()[:, 0].tolist()], shape)
        last = int(wanted[-1])
        if last == 0:
            continue  # the whole batch is start noise; iterate would call the network for nothing
        for state in iterate(network, scheduler, batch, conditions=_rows(conditions, part), **drawing):
            here = wanted == state.step + 1
            kept[part[here]] = state.x_prev[here.to(state.x_prev.device)].cpu()
            done += len(part)
            if progress is not None:
                progress(done, total)
            if state.step + 1 == last:
                break
    return kept, torch.tensor(scheduler.times)[steps_of_sample.cpu()]


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    for seed in seeds:
        if not 0 <= seed < 1 << SEED_BITS:
            raise ConfigError(f"seed {seed}: expected 0 to 2**{SEED_BITS} - 1, the generator reads {SEED_BITS} bits")
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def _draw(generators: Sequence[torch.Generator], shape: Shape) -> Tensor:
    """float32 [B, C, H, W]: one unit normal draw from each generator."""
    if not generators:
        return torch.empty((0, *shape))
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def _batches(total: int, size: int) -> list[slice]:
    """Consecutive runs of up to `size` rows; the remainder is kept."""
    if size < 1:
        raise ConfigError(f"batch_size: expected at least 1, got {size}")
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _rows(conditions: Conditions | None, rows: slice | Tensor) -> Conditions | None:
    return None if conditions is None else conditions.rows(rows)


def _check_conditions(conditions: Conditions | None, count: int) -> None:
    if conditions is not None and len(conditions) != count:
        raise ConfigError(f"conditions: expected a row for each of {count} seeds, got {len(conditions)}")


def _check_pipeline(pipeline: DiffusionPipeline, conditions: Conditions | None, count: int) -> None:
    kind = conditioning_kind(pipeline)
    if kind != "none" and conditions is None:
        raise ConfigError(
            f"{type(pipeline).__name__} needs a {kind} condition for each of {count} seeds; "
            f"give conditions=encode_conditions(pipeline, inputs)"
        )
    _check_conditions(conditions, count)


def _check_steps_of_sample(steps: Tensor, count: int, total: int) -> None:
    if len(steps) != count:
        raise ConfigError(f"steps_of_sample: expected a step for each of {count} seeds, got {len(steps)}")
    if count and not 0 <= int(steps.min()) <= int(steps.max()) < total:
        raise ConfigError(f"steps_of_sample: expected 0 to {total - 1}, got {int(steps.min())} to {int(steps.max())}")
