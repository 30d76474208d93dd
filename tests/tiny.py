"""Small random models for the tests: the layout of the shipped model at a size a laptop runs in milliseconds.

Same seed, same weights. The weights are the library's own initialisation, so `eps` is neither zero nor a copy of `x_t`.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DConditionModel, UNet2DModel

TINY_CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "norm_eps": 1e-6,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "attention_head_dim": None,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}

TINY_TEXT: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def tiny_unet(seed: int = 0, **changes: Any) -> UNet2DModel:
    """A frozen float network of about 150 k parameters on 3 x 16 x 16; `changes` go over TINY_CONFIG."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet2DModel(**{**TINY_CONFIG, **changes})
    return network.eval().requires_grad_(False)


def tiny_pipeline(seed: int = 0, **changes: Any) -> DDIMPipeline:
    """A DDIM pipeline around `tiny_unet`, with the linear schedule of the shipped model (1000 training steps)."""
    scheduler = DDIMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    pipeline = DDIMPipeline(unet=tiny_unet(seed, **changes), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_text_unet(seed: int = 0) -> UNet2DConditionModel:
    """A frozen float text-conditioned network with transformer blocks, on 4 x 8 x 8."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel(**TINY_TEXT).eval().requires_grad_(False)
