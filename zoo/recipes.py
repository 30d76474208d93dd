"""The four latent models: their parts, noise schedules and samplers, at about 3 M parameters.

The block types are those of the models they stand for, so that what is tested on them is what the large ones have:
ldm4-uncond has attention at two of three levels with a fixed width of a head, ldm8-uncond a fixed number of heads,
scale-shift norm and residual blocks that resize, the two conditional ones transformer blocks with cross-attention.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, PNDMScheduler, UNet2DConditionModel, UNet2DModel
from labels import CLASSES
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from mezzotint.models.pipelines import ClassEmbedder
from mezzotint.models.unets import MultiHeadUNet2DModel

COMPVIS_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
PNDM_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
UNET_COMMON = {"sample_size": 16, "norm_num_groups": 8}
CLASS_WIDTH, TEXT_WIDTH, TEXT_POSITIONS = 64, 128, 24
TEXT_ENCODER = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": TEXT_POSITIONS,
    "projection_dim": TEXT_WIDTH,
    "hidden_act": "quick_gelu",
}


@dataclass(frozen=True)
class Recipe:
    """One of the four models: its data, its parts, and how its sample grid is drawn."""

    size: int  # pixels
    first_stage: str
    condition: str  # "none", "class" or "text"
    network: type
    unet: dict[str, Any]
    scheduler: type
    schedule: dict[str, Any]
    sampling: dict[str, Any]
    grid: tuple[int, int]  # columns and rows of the sample grid


RECIPES = {
    "ldm4-uncond": Recipe(
        size=64,
        first_stage="vq-f4",
        condition="none",
        network=UNet2DModel,
        unet={
            **UNET_COMMON,
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (48, 64, 96),
            "layers_per_block": 2,
            "attention_head_dim": 32,
        },
        scheduler=DDIMScheduler,
        schedule=COMPVIS_SCHEDULER,
        sampling={"num_inference_steps": 100, "eta": 1.0},
        grid=(8, 8),
    ),
    "ldm8-uncond": Recipe(
        size=128,
        first_stage="kl-f8",
        condition="none",
        network=MultiHeadUNet2DModel,
        unet={
            **UNET_COMMON,
            "num_attention_heads": 8,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
            "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "AttnUpBlock2D"),
            "block_out_channels": (64, 64, 64),
            "layers_per_block": 2,
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "resnet_time_scale_shift": "scale_shift",
            "attn_norm_num_groups": 8,
        },
        scheduler=DDIMScheduler,
        schedule={**COMPVIS_SCHEDULER, "beta_end": 0.0155},
        sampling={"num_inference_steps": 100, "eta": 0.0},
        grid=(8, 8),
    ),
    "ldm4-class": Recipe(
        size=64,
        first_stage="vq-f4",
        condition="class",
        network=UNet2DConditionModel,
        unet={
            **UNET_COMMON,
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (64, 80, 80),
            "layers_per_block": 1,
            "attention_head_dim": 1,
            "cross_attention_dim": CLASS_WIDTH,
        },
        scheduler=DDIMScheduler,
        schedule=COMPVIS_SCHEDULER,
        sampling={"num_inference_steps": 20, "guidance_scale": 3.0},
        grid=(10, 9),
    ),
    "sd-text": Recipe(
        size=128,
        first_stage="kl-f8",
        condition="text",
        network=UNet2DConditionModel,
        unet={
            **UNET_COMMON,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "block_out_channels": (64, 64, 96),
            "layers_per_block": 1,
            "attention_head_dim": 8,
            "cross_attention_dim": TEXT_WIDTH,
        },
        scheduler=PNDMScheduler,
        schedule=PNDM_SCHEDULER,
        sampling={"num_inference_steps": 50, "guidance_scale": 7.5},
        grid=(8, 8),
    ),
}


class Denoiser(nn.Module):
    """The network with what encodes its conditions, so that one optimizer trains both."""

    def __init__(self, recipe: Recipe, vocabulary: int = 0) -> None:
        super().__init__()
        self.condition = recipe.condition
        self.unet = recipe.network(**recipe.unet)
        if recipe.condition == "class":
            self.class_embedder = ClassEmbedder(len(CLASSES) + 1, CLASS_WIDTH)
        if recipe.condition == "text":
            ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
            self.text_encoder = CLIPTextModel(CLIPTextConfig(vocab_size=vocabulary, **TEXT_ENCODER, **ends))

    def encode(self, rows: Tensor) -> Tensor | None:
        """float [B, L, D] from conditions int64 [B] (labels) or [B, L] (token ids); None for the others."""
        if self.condition == "class":
            return self.class_embedder(rows)
        return self.text_encoder(rows)[0] if self.condition == "text" else None

    def forward(self, z_t: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        """The predicted noise, float32."""
        with torch.autocast(z_t.device.type, dtype=torch.bfloat16, cache_enabled=False):
            states = self.encode(rows)
            prediction = self.unet(z_t, t) if states is None else self.unet(z_t, t, states)
        return prediction.sample.float()
