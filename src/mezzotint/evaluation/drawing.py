"""What an evaluation draws: which sampler, which prompts or classes, and the images of both models.

Each pipeline encodes the inputs with its own parts and decodes its own latents, once for all seeds: a quantized text
encoder or first stage is part of what is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from torch import Tensor

from mezzotint.errors import ConfigError
from mezzotint.models.conditioning import Inputs, condition_inputs, encode_conditions
from mezzotint.models.conditions import Conditions
from mezzotint.models.decoding import decode_latents, first_stage
from mezzotint.models.denoiser import network_of
from mezzotint.sampling.config import SamplerConfig
from mezzotint.sampling.defaults import default_sampler
from mezzotint.sampling.trajectory import sample_latents

Progress = Callable[[int, int], None]

SAMPLES = 256


@dataclass(frozen=True)
class Pairs:
    """Images of both models [N, C, H, W] in [-1, 1]; row n of each comes from seed `seed + n`.

    Attributes:
        conditions: what the float model was told, a row for each image; None for unconditional models.
    """

    float_images: Tensor
    quantized_images: Tensor
    seed: int
    sampler: SamplerConfig
    seconds: float
    conditions: Conditions | None = None


def sample_pairs(
    float_pipeline: Any,
    quantized_pipeline: Any,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    sampler: SamplerConfig | None = None,
    batch_size: int = 32,
    inputs: Inputs | None = None,
    progress: Progress | None = None,
    decode_progress: Progress | None = None,
) -> Pairs:
    """Images of both models for the seeds seed ... seed + samples - 1.

    Args:
        sampler: None is `usual_sampler` of the quantized pipeline.
        inputs: prompts or class labels, image n gets input n, begun again where there are fewer; None is
            `evaluation_inputs`.
        progress, decode_progress: as `mezzotint.sample`, counting both models: all steps, then all images.
    """
    if samples < 2:
        raise ConfigError(f"samples: an evaluation compares at least 2 images, got {samples}")
    sampler = sampler or usual_sampler(quantized_pipeline)
    inputs = evaluation_inputs(float_pipeline, quantized_pipeline, samples) if inputs is None else inputs
    seeds, start = list(range(seed, seed + samples)), time.perf_counter()
    both = (float_pipeline, quantized_pipeline)
    for pipeline in both:
        first_stage(pipeline)  # one that is missing is an error before the first step, not after the last
    latents, conditions = [], []
    for half, pipeline in enumerate(both):
        conditions.append(encode_conditions(pipeline, repeated(inputs, samples)))
        drawing: dict[str, Any] = {"sampler": sampler, "batch_size": batch_size, "conditions": conditions[-1]}
        latents.append(sample_latents(pipeline, seeds, **drawing, progress=_half(progress, half)))
    images = [decode_latents(both[half], latents[half], progress=_half(decode_progress, half)) for half in (0, 1)]
    return Pairs(images[0], images[1], seed, sampler, time.perf_counter() - start, conditions[0])


def usual_sampler(pipeline: Any) -> SamplerConfig:
    """The sampler that an artifact was calibrated with; of a float model, the paper's for its family."""
    recorded = getattr(quantization_of(pipeline), "sampler", None)
    return SamplerConfig.model_validate(recorded) if recorded else default_sampler(pipeline)


def evaluation_inputs(
    float_pipeline: Any, quantized_pipeline: Any, count: int, seed: int = 0
) -> list[str] | list[int] | None:
    """`count` prompts or labels of the evaluation split that did not calibrate; None for unconditional models.

    The splits are disjoint, but a run may have been given prompts of its own. ConfigError if it was given all of them.
    """
    inputs = condition_inputs(float_pipeline, "evaluation", count, seed)
    used = calibrating_inputs(quantized_pipeline)
    if inputs is None or not used:
        return inputs
    left: list[Any] = [value for value in inputs if value not in used]
    if not left:
        raise ConfigError("every input of the evaluation split calibrated this model; give others to evaluate it with")
    return list(islice(cycle(left), count))


def calibrating_inputs(quantized_pipeline: Any) -> set[str | int]:
    """The prompts or labels that a run was given to calibrate with; empty where it took those of the split."""
    config = getattr(quantization_of(quantized_pipeline), "config", None) or {}
    return set(config.get("conditions") or ())


def quantization_of(pipeline: Any) -> Any:
    """The manifest of a quantized pipeline, None for a float one."""
    return getattr(network_of(pipeline), "quantization", None)


def repeated(inputs: Inputs | None, count: int) -> list[Any] | None:
    """`count` inputs, begun again where there are fewer; an empty list stays empty."""
    return None if inputs is None else list(islice(cycle(inputs), count))


def _half(progress: Progress | None, half: int) -> Progress | None:
    """The same progress, over the first (0) or second (1) of two equal halves."""
    if progress is None:
        return None
    return lambda done, total: progress(half * total + done, 2 * total)
