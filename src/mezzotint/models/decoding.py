"""From what the sampler leaves to images in [-1, 1].

    family          images
    pixel models    x_0, clipped
    latent models   decode(x_0 / scaling_factor), clipped; a VQ first stage takes the nearest code of its codebook first

`scaling_factor` is of the first stage's config: latents = encode(image) * scaling_factor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.errors import ConfigError, ModelError
from mezzotint.models.denoiser import device_of, sample_shape
from mezzotint.models.families import first_stage_name

DECODE_BATCH = 16  # a decoder needs far more memory for an image than the denoiser for its latent


def decode_latents(
    pipeline: DiffusionPipeline,
    x: Float[Tensor, "n c h w"],
    batch_size: int = DECODE_BATCH,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "n c2 h2 w2"]:
    """Images of latents in [-1, 1], on the CPU; of a pixel model's samples, the samples clipped.

    Args:
        progress: called with (images decoded, images in all), first before the decoder is called; not called where
            there is nothing to decode.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size: expected at least 1, got {batch_size}")
    stage = first_stage(pipeline)
    if stage is None:
        return x.clamp(-1, 1).cpu()
    if len(x) == 0:
        return torch.empty((0, *image_shape(pipeline)))
    scale, images, done = first_stage_scale(stage), [], 0
    if progress is not None:
        progress(0, len(x))
    for part in x.split(batch_size):
        images.append(_decode(stage, part.to(device_of(stage)) / scale).cpu())
        done += len(part)
        if progress is not None:
            progress(done, len(x))
    return torch.cat(images).contiguous()  # a decoder may give channels-last


def image_shape(pipeline: DiffusionPipeline) -> tuple[int, int, int]:
    """(C, H, W) of the images of `pipeline`; each level of the first stage but the last halves them."""
    channels, height, width = sample_shape(pipeline)
    stage = first_stage(pipeline)
    if stage is None:
        return channels, height, width
    config = _config(stage)
    factor = 2 ** (len(config.block_out_channels) - 1)
    return config.out_channels, height * factor, width * factor


def first_stage(pipeline: DiffusionPipeline) -> nn.Module | None:
    """The autoencoder of a latent pipeline, None for a pixel pipeline. ModelError if a latent pipeline lacks it."""
    name = first_stage_name(pipeline)
    if name is None:
        return None
    stage = pipeline.components[name]
    if stage is None:
        raise ModelError(
            f"{type(pipeline).__name__}: its {name} is missing, so latents cannot be decoded; "
            f"sample_latents draws them, a checkpoint with a first stage gives images"
        )
    return stage


def first_stage_scale(stage: nn.Module) -> float:
    """`scaling_factor`: latents = encode(image) * scaling_factor."""
    return float(_config(stage).scaling_factor)


@torch.no_grad()
def _decode(stage: Any, z: Tensor) -> Tensor:
    dtype = next(stage.parameters()).dtype
    image = stage.decode(z.to(device_of(stage), dtype), return_dict=False)[0]
    return image.float().clamp(-1, 1)


def _config(stage: nn.Module) -> Any:
    """The diffusers config of `stage`; torch's typing takes every attribute of a module for a tensor."""
    return stage.config
