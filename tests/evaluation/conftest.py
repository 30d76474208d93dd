"""A made-up evaluation with images, and a manifest that has everything a recipe can record."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmark_rows import SELECTION
from mezzotint.evaluation.cost import Cost, Latency, Sizes
from mezzotint.evaluation.evaluate import compare_pairs
from mezzotint.evaluation.intervals import Estimate
from mezzotint.evaluation.layers import LayerSqnr
from mezzotint.evaluation.result import Distance, Evaluation, Versions
from mezzotint.evaluation.steps import StepSqnr

SAMPLES = 12


def make_evaluation(a: Tensor, b: Tensor) -> Evaluation:
    """An evaluation of these images with invented steps and cost."""
    rows = [StepSqnr(step=s, t=t, sqnr_db=v) for s, t, v in ((0, 800, 37.25), (50, 198, 32.5), (99, 0, 4.125))]
    fields: dict[str, Any] = {
        "model": "ddim-emoji",
        "bits": "w4a8",
        "samples": len(a),
        "seed": 7,
        "sampler": {"steps": 100, "spacing": "quadratic", "eta": 0.0},
        "batch_size": 32,
        "device": "cpu (TEST)",
        "shape": tuple(a.shape[1:]),
        "paired": compare_pairs(a, b, resamples=3),
        "distance": Distance(
            fd=Estimate(value=12.5, low=10.25, high=14.75),
            fd_pca=8.125,
            features="64 PCA coordinates (basis shipped with ddim-emoji) + 8x8 pooled pixels",
            count=256,
            warning="few images",
        ),
        "steps": rows,
        "sqnr_db": 24.625,
        "sqnr_samples": len(a),
        "layers": [LayerSqnr(name=f"down_blocks.{n}.conv", sqnr_db=11.5 + n) for n in range(9)],
        "cost": Cost(
            network=Sizes(fp32=80_412_172, fp16=40_206_086, quantized=10_933_248),
            pipeline=Sizes(fp32=90_412_172, fp16=45_206_086, quantized=20_933_248),
            parameters=20_103_043,
            macs=3_410_000_000,
            float_bops=3_491_840_000_000,
            quantized_bops=112_530_000_000,
            latency=Latency(
                float_seconds=0.1875, quantized_seconds=0.125, batch=4, runs=7, device="cpu (TEST)", threads=2
            ),
        ),
        "resamples": 20,
        "seconds": {"sample": 100.0},
        "versions": Versions(mezzotint="0.1.0", torch="2.13.0", diffusers="0.42.1", python="3.12.1"),
        "warnings": ["few images"],
    }
    return Evaluation(**fields)


@pytest.fixture(scope="session")
def image_pair() -> tuple[Tensor, Tensor]:
    """Images of a float model and slightly different ones, [12, 3, 16, 16]."""
    generator = torch.Generator().manual_seed(0)
    a = torch.rand((SAMPLES, 3, 16, 16), generator=generator) * 2 - 1
    spread = torch.linspace(0.01, 0.3, SAMPLES).view(-1, 1, 1, 1)
    return a, (a + spread * torch.randn(a.shape, generator=generator)).clamp(-1, 1)


@pytest.fixture(scope="session")
def evaluation(image_pair: tuple[Tensor, Tensor]) -> Evaluation:
    return make_evaluation(*image_pair)


@pytest.fixture
def manifest() -> dict[str, Any]:
    """The manifest of an EDA-DM run as JSON data."""
    units = [
        {
            "name": "conv_in",
            "kind": "layer",
            "nearest_loss": 0.02,
            "learned_loss": 0.005,
            "kept": "learned",
            "soft_loss": 0.004,
            "undecided": 0.125,
            "seconds": 3.5,
        },
        {
            "name": "mid_block.attentions.0",
            "kind": "attention",
            "nearest_loss": 0.001,
            "learned_loss": 0.0015,
            "kept": "nearest",
            "soft_loss": 0.0009,
            "undecided": 0.25,
            "seconds": 4.5,
        },
    ]
    return {
        "mezzotint_version": "0.1.0",
        "created": "2026-01-02T03:04:05+00:00",
        "base": {"name": "ddim-emoji", "sha256": "ab" * 32, "licence": "CC-BY-4.0", "credits": ""},
        "bits": "w4a8",
        "float_modules": ["mid_block.resnets.0.norm1", "conv_norm_out"],
        "config": {"recipe": "eda-dm", "reconstruction": {"iters": 1000, "layer_weight": 0.8}},
        "seeds": {"calibration": 2147483648},
        "results": {"selection": dict(SELECTION), "units": units, "seconds": {"reconstruct": 412.5}},
        "files": {"unet/quantized.safetensors": {"sha256": "cd" * 32, "bytes": 10_933_248}},
    }
