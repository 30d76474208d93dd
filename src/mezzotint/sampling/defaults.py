"""The sampler of each family in the paper's code (EDA-DM, arXiv 2401.04585, and the scripts released with it)."""

from __future__ import annotations

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from mezzotint.models.families import Family, family_of
from mezzotint.sampling.config import SamplerConfig

SAMPLERS: dict[Family, SamplerConfig] = {
    "ddim": SamplerConfig(steps=100, spacing="quadratic"),
    "ldm-vq": SamplerConfig(steps=200, spacing="uniform", eta=1.0),
    "ldm-kl": SamplerConfig(steps=500, spacing="uniform"),
    "ldm-class": SamplerConfig(steps=20, spacing="uniform", guidance_scale=3.0),
    "sd": SamplerConfig(kind="plms", steps=50, spacing="uniform", guidance_scale=7.5),
}


def default_sampler(pipeline: DiffusionPipeline) -> SamplerConfig:
    """The sampler of the paper for the family of `pipeline`. ModelError if it belongs to none."""
    return SAMPLERS[family_of(pipeline)]
