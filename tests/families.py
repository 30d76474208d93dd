"""Small random pipelines of the paper's five families, made offline: same seed, same weights.

family     latents      images       condition
ddim       -            3 x 16 x 16  -
ldm-vq     3 x 8 x 8    3 x 32 x 32  -
ldm-kl     4 x 8 x 8    3 x 64 x 64  -                 scale-shift norm, resnet up/down, two heads a level
ldm-class  3 x 8 x 8    3 x 32 x 32  8 classes and none
sd         4 x 8 x 8    3 x 64 x 64  CLIP text of 16 tokens
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    LDMPipeline,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mezzotint.models.pipelines import ClassConditionalPipeline, ClassEmbedder, LatentKLPipeline
from mezzotint.models.unets import MultiHeadUNet2DModel
from tiny import tiny_pipeline

CLASSES = 8
TEXT_TOKENS, TEXT_WIDTH = 16, 12
TEXT_VOCABULARY = 300
COMPVIS: dict[str, Any] = {
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
PLAIN_BLOCKS: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
CROSS_BLOCKS: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 4,
}
Module = TypeVar("Module", bound=nn.Module)


def seeded(seed: int, make: Callable[[], Module]) -> Module:
    """A frozen module in eval mode whose initial weights come from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval().requires_grad_(False)


def tiny_vq(seed: int = 0, **changes: Any) -> VQModel:
    """A VQ-f4 first stage with 32 codes of 3 values, not scaled (CompVis' VQ models have no scale)."""
    config = {
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "norm_num_groups": 4,
        "num_vq_embeddings": 32,
        "scaling_factor": 1.0,
    }
    return seeded(seed, lambda: VQModel(**{**config, **changes}))


def tiny_kl(seed: int = 0, **changes: Any) -> AutoencoderKL:
    """A KL-f8 first stage with 4 latent channels and Stable Diffusion's scale."""
    config = {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "scaling_factor": 0.18215,
    }
    return seeded(seed, lambda: AutoencoderKL(**{**config, **changes}))


def tiny_clip(seed: int = 0) -> CLIPTextModel:
    """A text encoder of CLIP's architecture: two layers of width 12."""
    config = CLIPTextConfig(
        vocab_size=TEXT_VOCABULARY,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_TOKENS,
        bos_token_id=TEXT_VOCABULARY - 2,
        eos_token_id=TEXT_VOCABULARY - 1,
        pad_token_id=TEXT_VOCABULARY - 1,
    )
    return seeded(seed, lambda: CLIPTextModel(config))


def tiny_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with letters and digits, alone and at the end of a word, and a few merges."""
    letters = [chr(code) for code in range(33, 127)]
    merges = [("a", "t</w>"), ("a", "n</w>"), ("r", "e"), ("re", "d</w>"), ("a", "p"), ("ap", "p"), ("l", "e</w>")]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(first + second for first, second in merges)]
    vocabulary = {word: number for number, word in enumerate(words)}
    vocabulary |= {"<|startoftext|>": TEXT_VOCABULARY - 2, "<|endoftext|>": TEXT_VOCABULARY - 1}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=TEXT_TOKENS)


def tiny_ldm_vq(seed: int = 0) -> LDMPipeline:
    unet = seeded(seed, lambda: UNet2DModel(in_channels=3, out_channels=3, **UNET, **PLAIN_BLOCKS))
    return quiet(LDMPipeline(vqvae=tiny_vq(seed), unet=unet, scheduler=DDIMScheduler(**COMPVIS, clip_sample=False)))


def tiny_ldm_kl(seed: int = 0) -> LatentKLPipeline:
    changes = {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"}
    blocks = {"down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D")}
    blocks |= {"up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D")}
    unet = seeded(
        seed,
        lambda: MultiHeadUNet2DModel(
            num_attention_heads=2, in_channels=4, out_channels=4, **{**UNET, **blocks, **changes}
        ),
    )
    scheduler = DDIMScheduler(**{**COMPVIS, "beta_end": 0.0155}, clip_sample=False)
    return quiet(LatentKLPipeline(vae=tiny_kl(seed), unet=unet, scheduler=scheduler))


def tiny_ldm_class(seed: int = 0) -> ClassConditionalPipeline:
    unet = seeded(seed, lambda: UNet2DConditionModel(in_channels=3, out_channels=3, **UNET, **CROSS_BLOCKS))
    table = seeded(seed, lambda: ClassEmbedder(num_embeddings=CLASSES + 1, embed_dim=TEXT_WIDTH))
    scheduler = DDIMScheduler(**COMPVIS, clip_sample=False)
    return quiet(ClassConditionalPipeline(vqvae=tiny_vq(seed), unet=unet, class_embedder=table, scheduler=scheduler))


def tiny_sd(seed: int = 0) -> StableDiffusionPipeline:
    unet = seeded(seed, lambda: UNet2DConditionModel(in_channels=4, out_channels=4, **UNET, **CROSS_BLOCKS))
    scheduler = PNDMScheduler(**{**COMPVIS, "beta_start": 0.00085, "beta_end": 0.012}, skip_prk_steps=True)
    return quiet(
        StableDiffusionPipeline(
            vae=tiny_kl(seed),
            text_encoder=tiny_clip(seed),
            tokenizer=tiny_tokenizer(),
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


FAMILIES: dict[str, Callable[[], DiffusionPipeline]] = {
    "ddim": tiny_pipeline,
    "ldm-vq": tiny_ldm_vq,
    "ldm-kl": tiny_ldm_kl,
    "ldm-class": tiny_ldm_class,
    "sd": tiny_sd,
}
LATENT = [name for name in FAMILIES if name != "ddim"]
CONDITIONAL = ["ldm-class", "sd"]
