"""The YAML that belongs to an original checkpoint, as far as it says what the network is.

Every option of a network that changes its output is listed, with the values that are supported; another value, or an
option nobody listed, is an error that names it. What only matters for training is skipped.

Sources: `openaimodel.UNetModel`, `autoencoder.VQModelInterface` and `AutoencoderKL`, `ddpm.LatentDiffusion` of
CompVis/latent-diffusion (their arguments and defaults), `configs/*.yml` of ermongroup/ddim.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

UNCONDITIONAL: Literal["__is_unconditional__"] = "__is_unconditional__"
Levels = Annotated[tuple[int, ...], Field(min_length=1)]
None_ = Literal[None]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Open(BaseModel):
    """For parts with many options that only training reads."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class UNetParams(_Strict):
    """Arguments of CompVis' `UNetModel`.

    `attention_resolutions` are factors by which a level is smaller than the input (1 is the first level).
    """

    image_size: int
    in_channels: int
    model_channels: int
    out_channels: int
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    channel_mult: Levels = (1, 2, 4, 8)
    num_heads: int = -1
    num_head_channels: int = -1
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_spatial_transformer: bool = False
    transformer_depth: int = 1
    context_dim: int | None = None

    dropout: float = 0.0  # does nothing in eval mode, as the next two
    use_checkpoint: bool = False
    use_fp16: bool = False
    legacy: bool = True  # two rules for the width of heads that agree wherever this importer is used
    conv_resample: Literal[True] = True
    dims: Literal[2] = 2
    num_classes: None_ = None
    num_heads_upsample: Literal[-1] = -1
    use_new_attention_order: Literal[False] = False
    n_embed: None_ = None

    @model_validator(mode="after")
    def _one_kind_of_heads(self) -> UNetParams:
        if (self.num_heads == -1) == (self.num_head_channels == -1):
            raise ValueError("give either num_heads or num_head_channels")
        if self.use_spatial_transformer != (self.context_dim is not None):
            raise ValueError("use_spatial_transformer and context_dim belong together")
        if self.use_spatial_transformer and (self.use_scale_shift_norm or self.resblock_updown):
            raise ValueError("use_scale_shift_norm and resblock_updown are supported without use_spatial_transformer")
        return self


class AutoencoderParams(_Strict):
    """`ddconfig`: arguments of CompVis' `Encoder` and `Decoder`."""

    double_z: bool
    z_channels: int
    resolution: int
    in_channels: int
    out_ch: int
    ch: int
    ch_mult: Levels
    num_res_blocks: int
    attn_resolutions: Annotated[tuple[int, ...], Field(max_length=0)] = ()
    dropout: float = 0.0
    resamp_with_conv: Literal[True] = True
    use_linear_attn: Literal[False] = False
    attn_type: Literal["vanilla"] = "vanilla"
    give_pre_end: Literal[False] = False
    tanh_out: Literal[False] = False


class FirstStageParams(_Open):
    """Arguments of the first stage; `n_embed` is the size of its codebook."""

    embed_dim: int
    n_embed: int | None = None
    ddconfig: AutoencoderParams
    remap: None_ = None


class ClassParams(_Open):
    """Arguments of CompVis' `ClassEmbedder`."""

    n_classes: int = 1000
    embed_dim: int


class Target(_Open):
    """A class by its dotted name, and its arguments."""

    target: str
    params: dict[str, Any] = {}

    @property
    def kind(self) -> str:
        """The bare name of the class."""
        return self.target.rpartition(".")[2]


class DiffusionParams(_Open):
    """Arguments of CompVis' `LatentDiffusion`."""

    linear_start: float = 1e-4
    linear_end: float = 2e-2
    timesteps: int = 1000
    beta_schedule: Literal["linear"] = "linear"
    parameterization: Literal["eps", "x0", "v"] = "eps"
    image_size: int = 256
    channels: int = 3
    scale_factor: float = 1.0
    conditioning_key: Literal["crossattn"] | None = None
    unet_config: Target
    first_stage_config: Target
    cond_stage_config: Target | Literal["__is_unconditional__"] = UNCONDITIONAL


class CompVisModel(_Open):
    """`model:` of a CompVis YAML."""

    target: str
    params: DiffusionParams


class CompVisConfig(_Open):
    """A YAML of CompVis/latent-diffusion or CompVis/stable-diffusion."""

    model: CompVisModel


class DDIMModel(_Strict):
    """`model:` of an ermongroup/ddim YAML. `attn_resolutions` are heights of feature maps."""

    type: Literal["simple"] = "simple"
    in_channels: int
    out_ch: int
    ch: int
    ch_mult: Levels
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    dropout: float = 0.0
    var_type: str = "fixedlarge"
    ema_rate: float = 0.0
    ema: bool = True
    resamp_with_conv: Literal[True] = True


class DDIMData(_Open):
    """`data:` of an ermongroup/ddim YAML."""

    image_size: int
    logit_transform: Literal[False] = False


class DDIMDiffusion(_Open):
    """`diffusion:` of an ermongroup/ddim YAML."""

    beta_schedule: Literal["linear", "quad"]
    beta_start: float
    beta_end: float
    num_diffusion_timesteps: int


class DDIMConfig(_Open):
    """A YAML of ermongroup/ddim."""

    data: DDIMData
    model: DDIMModel
    diffusion: DDIMDiffusion
