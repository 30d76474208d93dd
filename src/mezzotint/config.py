"""Every option of a quantization run: one frozen config, written whole into the manifest.

An unknown key raises; nothing that is recorded is dead. Section numbers refer to EDA-DM (arXiv 2401.04585).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mezzotint.errors import ConfigError
from mezzotint.grid.bits import Bits, parse_bits
from mezzotint.sampling.config import SamplerConfig


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SelectionConfig(_Frozen):
    """Which x_t calibrate (TDAC)."""

    method: Literal["tdac", "uniform", "normal"] = Field(
        "tdac", description="'uniform' is Q-Diffusion's rule, 'normal' PTQ4DM's (a normal distribution over the steps)"
    )
    calib_size: int = Field(512, ge=1, description="N: trajectories; each gives one calibration sample")
    pilot_size: int = Field(64, ge=1, description="trajectories whose features score the steps")
    variety_weight: float = Field(1.2, ge=0, description="lambda: weight of variety against density")
    density_weight: float = Field(1.0, ge=0, description="weight of density; 0 scores by variety alone")
    radius: float | None = Field(None, gt=0, description="absolute density radius; None takes radius_quantile")
    radius_quantile: float = Field(0.25, gt=0, le=1, description="quantile of the pairwise distances")
    merge_repeated: bool = Field(True, description="score each distinct time once")
    allocation: Literal["largest-remainder", "round"] = Field(
        "largest-remainder", description="'round' is the released code's: round, then give the rest to the biggest"
    )
    feature_call: Literal["first", "last"] = Field(
        "first", description="which network call of a step is scored; 'last' as released (PLMS begins with two)"
    )
    normal_mean: float = Field(0.4, description="of 'normal': where its middle lies, 0 is the image and 1 pure noise")
    normal_std: float = Field(0.4, gt=0, description="of 'normal', in the same unit")


class RangeConfig(_Frozen):
    """How the first ranges of the grids are found."""

    norm: float = Field(2.4, gt=0, description="p of the L_p rounding error")
    candidates: int = Field(100, ge=1, description="clip thresholds tried; 1 clips nothing (min-max ranges)")
    clip_activations: bool = Field(True, description="False: activations keep min-max ranges, weights are searched")
    symmetric_activations: bool = Field(False, description="True wastes almost a bit on what follows SiLU")
    method: Literal["pooled", "ema"] = Field(
        "pooled", description="'pooled': one search over all rows; 'ema': a search per batch, averaged, as released"
    )
    ema_batch: int = Field(256, ge=1, description="rows of a batch of 'ema'")
    probabilities: Literal["values", "product"] = Field(
        "values", description="attention's probabilities by their own error, as all else, or by that of p v (pooled)"
    )


class StepPhase(_Frozen):
    """A second walk through the network, which learns the activation steps with the weights final."""

    share: float = Field(0.25, ge=0, description="its iterations a unit, as a share of `iters`; 0 learns no steps")
    norm: float = Field(2.4, gt=0, description="p of its block loss")


class ReconstructionConfig(_Frozen):
    """Fine-grained block reconstruction (FBR)."""

    iters: int = Field(1000, ge=1, description="optimiser steps a unit")
    batch_size: int = Field(32, ge=1)
    rounding_lr: float = Field(0.3, gt=0, description="Adam, for the rounding variables")
    step_lr: float = Field(1e-3, gt=0, description="Adam, for the activation steps")
    step_parameter: Literal["log", "linear"] = Field(
        "log", description="'log' keeps steps positive and the rate relative; 'linear' is the released code's"
    )
    step_phase: StepPhase | None = Field(
        None, description="None learns rounding and steps together; else weights first, with float activations"
    )
    layer_weight: float = Field(0.8, ge=0, description="gamma: weight of the inner layers' losses")
    inner_layers: Literal["declared", "registered"] = Field(
        "declared", description="'registered': all but the layer that the released code registers last"
    )
    loss_axis: Literal["features", "first"] = Field(
        "features", description="what losses sum over; 'first': in transformer blocks the tokens, as released"
    )
    checkpointed: tuple[Literal["resnet", "attention", "transformer"], ...] = Field(
        (), description="kinds of units that the released code checkpoints, which cuts the layer losses' gradients"
    )
    rounding_weight: float = Field(0.01, ge=0, description="weight of the rounding regulariser; 0 as released")
    beta_start: float = Field(20.0, gt=0)
    beta_end: float = Field(2.0, gt=0)
    warmup: float = Field(0.2, ge=0, lt=1, description="share of the iterations before the regulariser sets in")
    input_drop: float = Field(0.0, ge=0, le=1, description="QDrop: chance that a unit's input element is the float one")
    activation_drop: float = Field(0.0, ge=0, le=1, description="QDrop: chance that an activation is not rounded")
    block_weighting: Literal["mse", "fisher"] = Field("mse", description="'fisher': diagonal Fisher estimate")
    separate_layer_pass: bool = Field(False, description="a second quantized forward for the layer losses, as released")
    keep_better: bool = Field(True, description="a unit falls back to nearest rounding where learning did not help")
    bias_correction: bool = Field(
        False, description="take each unit's mean error per channel off its output layer's bias"
    )
    cuda_graph: bool = Field(True, description="replay the training step as a CUDA graph (GPU only)")


class QuantizeConfig(_Frozen):
    """One quantization run."""

    recipe: str = "eda-dm"
    bits: str = "w4a8"
    edge_layers: Literal["by-name", "float-inputs", "released", "released-latent"] = Field(
        "by-name",
        description="'by-name': conv_in and conv_out are 8/8; 'float-inputs': these weights, inputs as they are; "
        "'released': the first registered weight, conv_out's "
        "weight and one late input are 8 bit, conv_out's input stays float; '-latent': as latent networks register",
    )
    split_shortcuts: bool = Field(True, description="two grids for the halves of a concatenated shortcut")
    softmax_bits: int = Field(8, ge=2, le=8)
    sampler: SamplerConfig = SamplerConfig()
    conditions: tuple[str, ...] | tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description="prompts or class labels that calibrate; None: those of condition_split beside the model",
    )
    condition_split: Literal["calibration", "evaluation"] = Field(
        "calibration", description="'evaluation': calibrates on the conditions that are evaluated, as released"
    )
    selection: SelectionConfig = SelectionConfig()
    ranges: RangeConfig = RangeConfig()
    reconstruction: ReconstructionConfig | None = ReconstructionConfig()
    drift_trajectories: int = Field(
        128, ge=0, description="float trajectories whose mean error of eps is taken off conv_out's bias; 0 is off"
    )
    time_layers: Literal["as-others", "apart"] = Field(
        "as-others",
        description="'apart' (TFMQ-DM): what sees the time alone is learned as one block, and has grids for every time",
    )
    correction: Literal["none", "ptqd"] = Field(
        "none", description="'ptqd': samplers take the measured quantization noise out of every step"
    )
    correction_trajectories: int = Field(128, ge=1, description="float trajectories that this noise is measured on")
    vae_bits: str | None = Field(None, description="bits of the first stage, such as w8a8; None leaves it float")
    text_encoder_bits: str | None = Field(None, description="bits of the text encoder; None leaves it float")
    seed: int = Field(1234, ge=0)
    forward_batch: int = Field(64, ge=1, description="rows in a forward pass of the whole network")
    cache_gb: float = Field(8.0, gt=0, description="memory for the caches of reconstruction; beyond it they go to disk")
    cache_dtype: Literal["float32", "float16"] = Field(
        "float32", description="of these caches; float16 takes half the room and rounds rows to 11 bits"
    )

    @field_validator("bits", "vae_bits", "text_encoder_bits")
    @classmethod
    def _bits_can_be_read(cls, bits: str | None) -> str | None:
        return None if bits is None else str(parse_bits(bits))

    @property
    def parsed_bits(self) -> Bits:
        return parse_bits(self.bits)


FLAT_FIELDS: dict[str, tuple[str, ...]] = {
    "steps": ("sampler", "steps"),
    "spacing": ("sampler", "spacing"),
    "eta": ("sampler", "eta"),
    "calib_size": ("selection", "calib_size"),
    "pilot_size": ("selection", "pilot_size"),
    "variety_weight": ("selection", "variety_weight"),
    "radius": ("selection", "radius"),
    "iters": ("reconstruction", "iters"),
    "batch_size": ("reconstruction", "batch_size"),
    "rounding_lr": ("reconstruction", "rounding_lr"),
    "layer_weight": ("reconstruction", "layer_weight"),
    "block_weighting": ("reconstruction", "block_weighting"),
    "drift_trajectories": ("drift_trajectories",),
    "time_layers": ("time_layers",),
    "correction": ("correction",),
    "correction_trajectories": ("correction_trajectories",),
    "vae_bits": ("vae_bits",),
    "text_encoder_bits": ("text_encoder_bits",),
    "seed": ("seed",),
    "forward_batch": ("forward_batch",),
    "cache_gb": ("cache_gb",),
    "cache_dtype": ("cache_dtype",),
    "guidance_scale": ("sampler", "guidance_scale"),
    "kind": ("sampler", "kind"),
    "conditions": ("conditions",),
}


def override(config: QuantizeConfig, **changes: Any) -> QuantizeConfig:
    """`config` with options changed by their flat names (`FLAT_FIELDS`), as the command line gives them.

    None leaves an option as it is. Raises ConfigError for an unknown name, for an option of a part that the recipe does
    not have (such as `iters` of a recipe without reconstruction), and for a value outside its range.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    for name in given:
        if name not in FLAT_FIELDS:
            raise ConfigError(f"no option {name!r}; the options are {', '.join(FLAT_FIELDS)}")
    return with_settings(config, {".".join(FLAT_FIELDS[name]): value for name, value in given.items()})


def with_settings(config: QuantizeConfig, settings: Mapping[str, Any]) -> QuantizeConfig:
    """`config` with options changed by their dotted names, such as `{"selection.allocation": "round"}`.

    A value may be a whole part: `{"reconstruction": None}`, `{"reconstruction.step_phase": {"share": 0.5}}`. Raises
    ConfigError as `override` does.
    """
    data = config.model_dump()
    for name, value in settings.items():
        check_option(name)
        *parents, leaf = name.split(".")
        part = data
        for parent in parents:
            if part[parent] is None:
                raise ConfigError(f"{name} has no effect: recipe {config.recipe!r} has no {parent}")
            part = part[parent]
        part[leaf] = value
    return validated(data)


def check_option(name: str) -> None:
    """ConfigError unless there is an option or a part of that dotted name, whether or not a recipe at hand has it."""
    part: type[BaseModel] | None = QuantizeConfig
    for word in name.split("."):
        known = [] if part is None else list(part.model_fields)
        if part is None or word not in known:
            hint = f" (did you mean {'.'.join(FLAT_FIELDS[name])!r}?)" if name in FLAT_FIELDS else suggest(word, known)
            choices = f"; its part has {', '.join(known)}" if known else ""
            raise ConfigError(f"no option {name!r}{hint}{choices}")
        part = _part(part.model_fields[word].annotation)


def _part(annotation: Any) -> type[BaseModel] | None:
    """The part that a field of this type holds, where it is not None; None for a plain option."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def absent_part(config: QuantizeConfig, name: str) -> str:
    """The part of `config`, by its dotted name, that the option `name` belongs to and that is None; "" if none is."""
    words = name.split(".")
    parts = (".".join(words[:count]) for count in range(1, len(words)))
    return next((part for part in parts if setting(config, part) is None), "")


def setting(config: QuantizeConfig, name: str) -> Any:
    """The value of the option called `name` (dotted), None where the part that holds it is None."""
    value: Any = config
    for part in name.split("."):
        value = None if value is None else getattr(value, part)
    return value


def suggest(name: str, known: Iterable[str]) -> str:
    """A hint at the one of `known` that a mistyped `name` may mean, for the end of a clause; empty if none is close."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def validated(data: dict[str, Any]) -> QuantizeConfig:
    """A config from plain data, with pydantic's complaint as one line."""
    try:
        return QuantizeConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where}: {first['msg']} (got {first.get('input')!r})") from error
