"""From the original arguments to the diffusers networks of the same arithmetic, still without weights.

    original                                   diffusers
    ermongroup/ddim Model                      UNet2DModel, one head, eps 1e-6, strided convolutions padded by (0, 1)
    UNetModel, num_head_channels               UNet2DModel, attention_head_dim
    UNetModel, num_heads                       MultiHeadUNet2DModel (one head size for all levels is not enough)
    UNetModel, use_spatial_transformer         UNet2DConditionModel; its `attention_head_dim` is the *number* of heads
    VQModelInterface                           VQModel
    AutoencoderKL                              AutoencoderKL
    FrozenCLIPEmbedder                         transformers CLIPTextModel (ViT-L/14)
    linear betas in sqrt(beta)                 "scaled_linear"

Networks are made on the meta device, so that their weights can be put in place without a second copy in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNet2DModel, VQModel
from torch import nn

from mezzotint.errors import ModelError
from mezzotint.models.importing.schema import DDIMConfig, DiffusionParams, FirstStageParams, UNetParams
from mezzotint.models.unets import MultiHeadUNet2DModel

_PREDICTION_TYPES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}

# The text encoder of openai/clip-vit-large-patch14, which Stable Diffusion v1 names and does not describe.
CLIP_TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}


def ddim_unet(config: DDIMConfig) -> UNet2DModel:
    """The pixel-space denoiser of ermongroup/ddim, without weights."""
    model, size = config.model, config.data.image_size
    widths = [model.ch * factor for factor in model.ch_mult]
    attends = [size // 2**level in model.attn_resolutions for level in range(len(widths))]
    with torch.device("meta"):
        return UNet2DModel(
            sample_size=size,
            in_channels=model.in_channels,
            out_channels=model.out_ch,
            block_out_channels=tuple(widths),
            layers_per_block=model.num_res_blocks,
            down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
            up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            attention_head_dim=None,
            norm_eps=1e-6,
            dropout=model.dropout,
        )


def latent_unet(params: UNetParams, sample_size: int) -> nn.Module:
    """The denoiser of a CompVis model, without weights.

    Args:
        sample_size: height and width of the latents. `image_size` of the network itself is not used by CompVis and
            wrong in the YAML of Stable Diffusion.
    """
    widths = [params.model_channels * factor for factor in params.channel_mult]
    attends = [2**level in params.attention_resolutions for level in range(len(widths))]
    common: dict[str, Any] = {
        "sample_size": sample_size,
        "in_channels": params.in_channels,
        "out_channels": params.out_channels,
        "block_out_channels": tuple(widths),
        "layers_per_block": params.num_res_blocks,
        "dropout": params.dropout,
    }
    with torch.device("meta"):
        if params.use_spatial_transformer:
            return UNet2DConditionModel(
                **common,
                down_block_types=tuple("CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
                up_block_types=tuple("CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
                cross_attention_dim=params.context_dim,
                transformer_layers_per_block=params.transformer_depth,
                attention_head_dim=_head_counts(params, widths),
            )
        common |= _unconditional_blocks(params, attends)
        if params.num_heads == -1:
            return UNet2DModel(**common, attention_head_dim=params.num_head_channels)
        return MultiHeadUNet2DModel(params.num_heads, **common)


def _head_counts(params: UNetParams, widths: list[int]) -> int | tuple[int, ...]:
    if params.num_heads != -1:
        return params.num_heads
    return tuple(width // params.num_head_channels for width in widths)


def _unconditional_blocks(params: UNetParams, attends: list[bool]) -> dict[str, Any]:
    """Types of blocks, and of what lies between them: convolutions or residual blocks."""
    between, down, up = "conv", "DownBlock2D", "UpBlock2D"
    if params.resblock_updown:
        between, down, up = "resnet", "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
    return {
        "down_block_types": tuple("AttnDownBlock2D" if attend else down for attend in attends),
        "up_block_types": tuple("AttnUpBlock2D" if attend else up for attend in reversed(attends)),
        "downsample_type": between,
        "upsample_type": between,
        "resnet_time_scale_shift": "scale_shift" if params.use_scale_shift_norm else "default",
        "attn_norm_num_groups": 32,  # with scale_shift, the middle attention would have no norm otherwise
    }


def first_stage(kind: str, params: FirstStageParams, scaling_factor: float) -> nn.Module:
    """The autoencoder, without weights. ModelError for a class that is not supported."""
    arguments = params.ddconfig
    levels = len(arguments.ch_mult)
    common: dict[str, Any] = {
        "sample_size": arguments.resolution,
        "in_channels": arguments.in_channels,
        "out_channels": arguments.out_ch,
        "block_out_channels": tuple(arguments.ch * factor for factor in arguments.ch_mult),
        "layers_per_block": arguments.num_res_blocks,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": arguments.z_channels,
        "scaling_factor": scaling_factor,
    }
    with torch.device("meta"):
        if kind in ("VQModelInterface", "VQModel") and params.n_embed is not None and not arguments.double_z:
            return VQModel(**common, num_vq_embeddings=params.n_embed, vq_embed_dim=params.embed_dim)
        if kind == "AutoencoderKL" and arguments.double_z and params.embed_dim == arguments.z_channels:
            return AutoencoderKL(**common)
    raise ModelError(
        f"first_stage_config: {kind} with double_z {arguments.double_z}, n_embed {params.n_embed} and embed_dim "
        f"{params.embed_dim} is not supported; expected a VQModelInterface with a codebook, or an AutoencoderKL whose "
        f"embed_dim is its z_channels"
    )


def ddim_scheduler(config: DDIMConfig) -> DDIMScheduler:
    """The noise schedule of an ermongroup/ddim model: x_0 has alpha 1."""
    diffusion = config.diffusion
    return DDIMScheduler(
        num_train_timesteps=diffusion.num_diffusion_timesteps,
        beta_start=diffusion.beta_start,
        beta_end=diffusion.beta_end,
        beta_schedule={"linear": "linear", "quad": "scaled_linear"}[diffusion.beta_schedule],
        clip_sample=False,
        set_alpha_to_one=True,
    )


def latent_scheduler(params: DiffusionParams) -> DDIMScheduler:
    """The noise schedule of a CompVis model: times 1, 1 + T/S, ..., and the last step ends at the alpha of time 0."""
    return DDIMScheduler(
        num_train_timesteps=params.timesteps,
        beta_start=params.linear_start,
        beta_end=params.linear_end,
        beta_schedule="scaled_linear",  # "linear" of CompVis is linear in sqrt(beta)
        prediction_type=_PREDICTION_TYPES[params.parameterization],
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
