"""Quantized model against float model: same seeds, same sampler, same device.

    sample_pairs   images of both models from the same start noises
    compare        paired PSNR and SSIM, Frechet distance, from the images alone
    evaluate       all of it: images, comparison, SQNR of eps along the trajectory, cost

The reference is the float model's image, never a real one: quantization is to change nothing. (A distance to real
images in simple features has ranked quantized models above their float model.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.errors import ConfigError
from mezzotint.evaluation import cost, layers, paired, steps
from mezzotint.evaluation.drawing import (
    SAMPLES,
    Pairs,
    Progress,
    calibrating_inputs,
    quantization_of,
    sample_pairs,
    usual_sampler,
)
from mezzotint.evaluation.features import Basis, basis_for, extract, train_statistics
from mezzotint.evaluation.frechet import (
    SAMPLES_PER_FEATURE,
    Statistics,
    first_features,
    frechet_distance,
    frechet_estimate,
    one_thread,
    statistics,
)
from mezzotint.evaluation.intervals import bootstrap
from mezzotint.evaluation.perceptual import lpips_at_hand, lpips_per_image
from mezzotint.evaluation.result import Distance, Evaluation, Paired, TrainDistance, Versions
from mezzotint.models.conditioning import Inputs, input_label
from mezzotint.models.decoding import image_shape
from mezzotint.models.denoiser import example_inputs, network_of, sample_shape
from mezzotint.models.families import model_folder
from mezzotint.sampling.config import SamplerConfig
from mezzotint.sampling.schedulers import make_scheduler

__all__ = ["Pairs", "compare_pairs", "compare_sets", "evaluate", "measure_cost", "sample_pairs", "usual_sampler"]

CHUNK_VALUES = 1 << 24  # image values compared at once, in float64: some hundred MB beside the images
SQNR_SAMPLES = 32
RESAMPLES = 20
LOW_QUANTILE = 0.1
LATENCY_BATCH = 4


def compare_pairs(
    a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"], *, resamples: int = RESAMPLES, seed: int = 0
) -> Paired:
    """PSNR, SSIM and, where its weights are, LPIPS between images of the same seeds, with intervals over the images."""
    mse = _by_chunks(paired.mse_per_image, a, b)
    psnr = paired.psnr_of_mse(mse)
    ssim = _by_chunks(paired.ssim_per_image, a, b) if paired.ssim_fits(*a.shape[-2:]) else None
    network = lpips_at_hand(*a.shape[-2:])
    lpips = None if network is None else lpips_per_image(a, b, network).double()
    draw: dict[str, Any] = {"count": len(a), "resamples": resamples, "seed": seed}
    return Paired(
        psnr_pooled=bootstrap(lambda rows: paired.psnr_pooled(mse[rows]), **draw),
        psnr_mean=bootstrap(lambda rows: paired.psnr_mean(mse[rows]), **draw),
        psnr_low=float(psnr.quantile(LOW_QUANTILE, interpolation="lower")),
        ssim=None if ssim is None else bootstrap(lambda rows: float(ssim[rows].mean()), **draw, upper_bound=1.0),
        lpips=None if lpips is None else bootstrap(lambda rows: float(lpips[rows].mean()), **draw, lower_bound=0.0),
        psnr_images=psnr.tolist(),
    )


def compare_sets(
    a: Float[Tensor, "n c h w"],
    b: Float[Tensor, "n c h w"],
    basis: Basis,
    *,
    train: Statistics | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Distance:
    """Frechet distance between the images of the two models; a resample takes the same seeds from both.

    Args:
        train: statistics of the training images in the same features: each model's distance to them is measured too.
    """
    features_a, features_b = extract(a, basis), extract(b, basis)
    with one_thread(features_a.shape[1]):
        return _distance(features_a, features_b, basis, train, resamples=resamples, seed=seed)


def _distance(
    a: Float[Tensor, "n f"], b: Float[Tensor, "n f"], basis: Basis, train: Statistics | None, **draw: int
) -> Distance:
    """`compare_sets` of the features of both sets."""

    def distance(rows: Tensor) -> float:
        return frechet_distance(statistics(a[rows]), statistics(b[rows]))

    all_a, all_b = statistics(a), statistics(b)
    components, count = len(basis.components), a.shape[1]
    return Distance(
        fd=bootstrap(distance, len(a), **draw, lower_bound=0.0),
        fd_pca=frechet_distance(first_features(all_a, components), first_features(all_b, components)),
        features=basis.label,
        count=count,
        warning=None if all_a.enough_samples else _too_few(len(a), count),
        train=None if train is None else TrainDistance.of(*(frechet_estimate(x, train, **draw) for x in (a, b))),
    )


def evaluate(
    float_pipeline: Any,
    quantized_pipeline: Any,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    sampler: SamplerConfig | None = None,
    batch_size: int = 32,
    inputs: Inputs | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    decode_progress: Progress | None = None,
    pairs: Pairs | None = None,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """All measures of a quantized model against its float model. Both are moved to `device`.

    Args:
        samples, seed: images of the seeds seed ... seed + samples - 1.
        sampler: None is the one that the quantized model was calibrated with.
        inputs: prompts or class labels, as `sample_pairs`; not with `pairs`, which have theirs.
        progress, decode_progress: as `sample_pairs`; not called when `pairs` are given.
        pairs: images from `sample_pairs` with the same samples, seed and sampler, so that a report can show the very
            images that were measured; None samples them here.
        resamples: bootstrap resamples of each interval.
    """
    sampler = sampler or usual_sampler(quantized_pipeline)
    float_pipeline.to(device)
    quantized_pipeline.to(device)
    if pairs is None:
        drawing: dict[str, Any] = {"samples": samples, "seed": seed, "sampler": sampler, "batch_size": batch_size}
        drawing |= {"inputs": inputs, "progress": progress, "decode_progress": decode_progress}
        pairs = sample_pairs(float_pipeline, quantized_pipeline, **drawing)
    elif inputs is not None:
        raise ConfigError("inputs: the images of `pairs` were drawn already; give the inputs to sample_pairs")
    _check_pairs(pairs, samples, seed, sampler)

    a, b, watch = pairs.float_images, pairs.quantized_images, _Stopwatch(sample=pairs.seconds)
    with watch("compare"):
        images = compare_pairs(a, b, resamples=resamples, seed=seed)
        folder = model_folder(float_pipeline)
        train = train_statistics(folder)
        distance = compare_sets(a, b, basis_for(folder, a), train=train, resamples=resamples, seed=seed)
    with watch("sqnr"):
        rows = _sqnr(float_pipeline, quantized_pipeline, pairs, batch_size)
        single_layers = _layers(float_pipeline, quantized_pipeline, pairs)
    with watch("cost"):
        measured_cost = measure_cost(float_pipeline, quantized_pipeline)
    return Evaluation(
        model=_name(float_pipeline),
        bits=str(getattr(quantization_of(quantized_pipeline), "bits", "float")),
        samples=samples,
        seed=seed,
        sampler=sampler.model_dump(mode="json"),
        batch_size=batch_size,
        device=cost.device_name(torch.device(device)),
        shape=image_shape(float_pipeline),
        conditions=None if pairs.conditions is None else pairs.conditions.labels,
        paired=images,
        distance=distance,
        steps=rows,
        sqnr_db=steps.mean_sqnr(rows),
        sampler_sqnr_db=steps.mean_sampler_sqnr(rows),
        sqnr_samples=min(samples, SQNR_SAMPLES),
        layers=single_layers,
        cost=measured_cost,
        resamples=resamples,
        seconds=watch.seconds,
        versions=Versions.here(),
        warnings=_warnings(images, distance) + _overlap(quantized_pipeline, pairs),
    )


def _sqnr(float_pipeline: Any, quantized_pipeline: Any, pairs: Pairs, batch_size: int) -> list[steps.StepSqnr]:
    """SQNR of eps on the first trajectories of `pairs`, with their conditions."""
    count = min(len(pairs.float_images), SQNR_SAMPLES)
    return steps.eps_sqnr(
        network_of(float_pipeline),
        network_of(quantized_pipeline),
        make_scheduler(float_pipeline, pairs.sampler),
        range(pairs.seed, pairs.seed + count),
        shape=sample_shape(float_pipeline),
        steps=steps.measured_steps(pairs.sampler.steps),
        batch_size=batch_size,
        conditions=None if pairs.conditions is None else pairs.conditions.rows(slice(0, count)),
        guidance_scale=pairs.sampler.guidance_scale,
    )


def _layers(float_pipeline: Any, quantized_pipeline: Any, pairs: Pairs) -> list[layers.LayerSqnr]:
    """SQNR of single layers on a few trajectories of `pairs`, worst first."""
    count = min(len(pairs.float_images), layers.LAYER_TRAJECTORIES)
    return layers.layer_sqnr(
        network_of(float_pipeline),
        network_of(quantized_pipeline),
        make_scheduler(float_pipeline, pairs.sampler),
        range(pairs.seed, pairs.seed + count),
        shape=sample_shape(float_pipeline),
        steps=steps.measured_steps(pairs.sampler.steps, layers.LAYER_STEPS),
        conditions=None if pairs.conditions is None else pairs.conditions.rows(slice(0, count)),
        guidance_scale=pairs.sampler.guidance_scale,
    )


def measure_cost(float_pipeline: Any, quantized_pipeline: Any) -> cost.Cost:
    """Bytes, bit operations and latency of the two pipelines."""
    float_network, quantized_network = network_of(float_pipeline), network_of(quantized_pipeline)
    inputs = example_inputs(float_network, LATENCY_BATCH)
    macs = cost.count_macs(float_network, *inputs)
    specs = getattr(quantization_of(quantized_pipeline), "layers", {})
    return cost.Cost(
        network=cost.network_sizes(float_network, quantized_network),
        pipeline=cost.pipeline_sizes(float_pipeline, quantized_pipeline),
        parameters=sum(parameter.numel() for parameter in float_network.parameters()),
        macs=sum(macs.values()) // len(inputs[0]),
        float_bops=cost.bit_operations(macs, {}) // len(inputs[0]),
        quantized_bops=cost.bit_operations(macs, specs) // len(inputs[0]),
        latency=cost.measure_latency(float_network, quantized_network, *inputs),
    )


class _Stopwatch:
    """Seconds of named parts: `with watch("part"): ...`."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - start


def _name(pipeline: Any) -> str:
    """Name of a float model without the path of this machine."""
    folder = model_folder(pipeline)
    return folder.resolve().name if folder else str(getattr(pipeline, "name_or_path", None) or type(pipeline).__name__)


def _check_pairs(pairs: Pairs, samples: int, seed: int, sampler: SamplerConfig) -> None:
    asked = {"samples": samples, "seed": seed, "sampler": sampler}
    given = {"samples": len(pairs.float_images), "seed": pairs.seed, "sampler": pairs.sampler}
    for name, value in asked.items():
        if given[name] != value:
            raise ConfigError(f"pairs: they were sampled with {name} {given[name]}, the evaluation asks for {value}")


def _too_few(samples: int, count: int) -> str:
    return (
        f"{samples} images for {count} features: the Fréchet distance needs at least {SAMPLES_PER_FEATURE * count} "
        f"images before its bias is small; compare it only with values from the same number of images and features"
    )


def _warnings(image_quality: Paired, distance: Distance) -> list[str]:
    found = [] if distance.warning is None else [distance.warning]
    if image_quality.ssim is None:
        found.append(f"SSIM was not measured: its window of {paired.SSIM_WINDOW} pixels does not fit in the images")
    return found


def _overlap(quantized_pipeline: Any, pairs: Pairs) -> list[str]:
    """A warning if images were drawn with inputs that calibrated the model."""
    used = {input_label(value) for value in calibrating_inputs(quantized_pipeline)}
    labels = [] if pairs.conditions is None else pairs.conditions.labels
    shared = sum(label in used for label in labels)
    return [f"{shared} of {len(labels)} images were drawn with inputs that calibrated this model"] if shared else []


def _by_chunks(
    measure: Callable[[Tensor, Tensor], Tensor], a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]
) -> Float[Tensor, " n"]:
    """`measure` of each pair, so many pairs at once that large images fit in memory too."""
    size = max(1, CHUNK_VALUES // max(1, a[0].numel()))
    return torch.cat([measure(*parts) for parts in zip(a.split(size), b.split(size), strict=True)])
