"""What an evaluation found, as plain data: every number of the report and every input it was measured with.

The whole tree goes to JSON and back unchanged (`model_dump_json`, `model_validate_json`); an error of exactly zero is
an infinite PSNR or SQNR and is written as the string "Infinity".
"""

from __future__ import annotations

import platform
from typing import Any

import diffusers
import torch
from pydantic import BaseModel, ConfigDict

from mezzotint.evaluation.cost import Cost
from mezzotint.evaluation.intervals import Estimate
from mezzotint.evaluation.layers import LayerSqnr
from mezzotint.evaluation.steps import StepSqnr
from mezzotint.version import __version__

FROZEN = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Paired(BaseModel):
    """Image quality of the quantized model, image by image against the float model's image of the same seed.

    Attributes:
        psnr_pooled: dB, one MSE over all images.
        psnr_mean: dB, mean of the PSNRs of single images.
        psnr_low: dB, tenth percentile of the PSNRs of single images: one image in ten is worse.
        ssim: mean over images, None if the images are smaller than its window.
        lpips: mean over images, None where the weights of its network are not on the disk.
        psnr_images: dB of each image, in the order of the seeds.
    """

    model_config = FROZEN

    psnr_pooled: Estimate
    psnr_mean: Estimate
    psnr_low: float
    ssim: Estimate | None
    lpips: Estimate | None = None
    psnr_images: list[float]


class TrainDistance(BaseModel):
    """Frechet distances of each model's images to the training images, in the features of `Distance`.

    The float model's is the yardstick: what is beyond it (or below it, by chance) is quantization's. Intervals are over
    the images, the training statistics stay as they are; None in records of before they were measured.
    """

    model_config = FROZEN

    float_fd: float
    quantized_fd: float
    float_interval: tuple[float, float] | None = None
    quantized_interval: tuple[float, float] | None = None

    @classmethod
    def of(cls, floating: Estimate, quantized: Estimate) -> TrainDistance:
        return cls(
            float_fd=floating.value,
            quantized_fd=quantized.value,
            float_interval=(floating.low, floating.high),
            quantized_interval=(quantized.low, quantized.high),
        )


class Distance(BaseModel):
    """Frechet distance between the images of the two models.

    Attributes:
        fd: squared distance in all features, in squared units of a feature.
        fd_pca: the same in the principal coordinates alone.
        features: which features, in words.
        count: how many features.
        warning: why not to trust it, or None.
        train: distances to the training images, None where the model ships no statistics of them.
    """

    model_config = FROZEN

    fd: Estimate
    fd_pca: float
    features: str
    count: int
    warning: str | None
    train: TrainDistance | None = None


class Versions(BaseModel):
    """Software that made the numbers."""

    model_config = FROZEN

    mezzotint: str
    torch: str
    diffusers: str
    python: str

    @classmethod
    def here(cls) -> Versions:
        """Of this process."""
        return cls(
            mezzotint=__version__,
            torch=torch.__version__,
            diffusers=diffusers.__version__,
            python=platform.python_version(),
        )


class Evaluation(BaseModel):
    """Everything `evaluate` measured, with its inputs.

    Attributes:
        samples, seed: images of the seeds seed ... seed + samples - 1, from both models.
        sampler: fields of the SamplerConfig.
        shape: (C, H, W) of an image.
        conditions: the prompt or class of each image, None for unconditional models.
        sqnr_db: mean of the dB values in `steps`, of the network.
        sampler_sqnr_db: the same of eps as the sampler uses it, guided and corrected; None in older records.
        sqnr_samples: trajectories behind `steps`.
        layers: SQNR of single layers on the float network's inputs, worst first; empty where it was not measured.
        resamples: bootstrap resamples behind every interval.
        seconds: wall time of the parts.
        warnings: what a reader must know before quoting a number.
    """

    model_config = FROZEN

    model: str
    bits: str
    samples: int
    seed: int
    sampler: dict[str, Any]
    batch_size: int
    device: str
    shape: tuple[int, int, int]
    conditions: list[str] | None = None
    paired: Paired
    distance: Distance
    steps: list[StepSqnr]
    sqnr_db: float
    sampler_sqnr_db: float | None = None
    sqnr_samples: int
    layers: list[LayerSqnr] = []
    cost: Cost
    resamples: int
    seconds: dict[str, float]
    versions: Versions
    warnings: list[str]
