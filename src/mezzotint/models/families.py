"""Which of the paper's five families a pipeline belongs to, and what else its parts say about it.

    family     first stage  network               condition from   example
    ddim       none         UNet2DModel           -                DDIM, CIFAR-10
    ldm-vq     vqvae        UNet2DModel           -                LDM-4, LSUN-Bedroom
    ldm-kl     vae          UNet2DModel           -                LDM-8, LSUN-Church
    ldm-class  vqvae        UNet2DConditionModel  class_embedder   LDM-4, ImageNet
    sd         vae          UNet2DConditionModel  text_encoder     Stable Diffusion v1

Read off the parts a pipeline has, never off its name: a quantized pipeline and a float one answer alike, and so does a
checkpoint that came without its text encoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from diffusers import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from mezzotint.errors import ModelError

Family = Literal["ddim", "ldm-vq", "ldm-kl", "ldm-class", "sd"]

FIRST_STAGES = ("vqvae", "vae")
UNSUPPORTED_PARTS = ("text_encoder_2", "bert", "movq")


def family_of(pipeline: DiffusionPipeline) -> Family:
    """The family of `pipeline`. ModelError if its parts fit none."""
    stage = first_stage_name(pipeline)
    conditional = isinstance(pipeline.components.get("unet"), UNet2DConditionModel)
    if stage is None:
        if conditional:
            raise ModelError(f"{type(pipeline).__name__} is conditional in pixel space; expected a vae or a vqvae")
        return "ddim"
    if stage == "vqvae":
        return "ldm-class" if conditional else "ldm-vq"
    return "sd" if conditional else "ldm-kl"


def first_stage_name(pipeline: DiffusionPipeline) -> str | None:
    """Name of the part that turns latents into images, None for pixel pipelines; the part itself may be missing.

    Raises:
        ModelError: a part that is not supported.
    """
    parts = pipeline.components
    strange = [name for name in UNSUPPORTED_PARTS if parts.get(name) is not None]
    if strange:
        raise ModelError(f"{type(pipeline).__name__}: pipelines with a {strange[0]} are not supported")
    return next((name for name in FIRST_STAGES if name in parts), None)


def model_folder(pipeline: Any) -> Path | None:
    """The folder a pipeline was loaded from, None if it was not loaded from one."""
    source = getattr(pipeline, "name_or_path", None)
    return Path(source) if source and Path(source).is_dir() else None
