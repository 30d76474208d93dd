"""A checkpoint file -> a diffusers pipeline.

    model                      pipeline                    parts beside unet and scheduler
    ermongroup/ddim            DDIMPipeline
    CompVis, no condition      LDMPipeline                 vqvae
                               LatentKLPipeline            vae
    CompVis, ClassEmbedder     ClassConditionalPipeline    vqvae, class_embedder
    CompVis, FrozenCLIPEmbedder  StableDiffusionPipeline   vae, text_encoder, tokenizer

A part of which the file holds nothing is None in the pipeline, and the log says so.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, DiffusionPipeline, LDMPipeline
from torch import nn

from mezzotint.errors import ModelError
from mezzotint.models.importing.clip_vocabulary import clip_tokenizer
from mezzotint.models.importing.configs import EMA_PREFIX, Described, find_config, parse, unet_part
from mezzotint.models.importing.filling import Part, count, fill_, is_training_buffer, shorten
from mezzotint.models.importing.keys import Source, clip_source, level_source
from mezzotint.models.importing.networks import (
    CLIP_TEXT_CONFIG,
    ddim_scheduler,
    first_stage,
    latent_scheduler,
)
from mezzotint.models.importing.reading import Entries, State, read_entries
from mezzotint.models.importing.schema import (
    ClassParams,
    DDIMConfig,
    DiffusionParams,
    FirstStageParams,
    Target,
)
from mezzotint.models.pipelines import ClassConditionalPipeline, ClassEmbedder, LatentKLPipeline
from mezzotint.models.quiet import quiet_diffusers

FIRST_STAGE, CONDITION = "first_stage_model.", "cond_stage_model."
PREFIXES = ("model.diffusion_model.", EMA_PREFIX, FIRST_STAGE, CONDITION)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Imported:
    """A checkpoint as a pipeline.

    Attributes:
        pipeline: float32, on the CPU, in eval mode.
        origin: where the configuration is from: a file, or "published NAME".
        weights: "ema" or "plain"; for a file with one set of weights, which of the two that is does not show: "plain".
        absent: parts of the model of which the file holds nothing.
    """

    pipeline: DiffusionPipeline
    origin: str
    weights: str
    absent: tuple[str, ...]


def import_checkpoint(path: str | Path, *, config: str | Path | None = None, use_ema: bool = True) -> Imported:
    """The model in the checkpoint file at `path`.

    Args:
        config: the YAML of the model. None: the file beside the checkpoint that has its name, or is called
            config.yaml; or else the published model with the same entries.
        use_ema: take the averaged weights of the denoiser where the file has them.

    Raises:
        ModelError: no such file, or one that cannot be read without running code; no YAML; a part of the model that is
            incomplete, or has entries too many or of another shape; a kind of model that is not supported.
        MissingExtraError: a text encoder, and the package that holds its vocabulary is not installed.
    """
    path = check_file(path)
    entries = read_entries(path, use_ema=use_ema)
    described = find_config(path, entries.tensors, Path(config) if config is not None else None)
    try:
        with torch.no_grad(), quiet_diffusers():
            return _assemble(described, entries, use_ema)
    except ModelError as error:
        raise ModelError(f"{path} with {described.origin}: {error}") from error


def check_file(path: str | Path) -> Path:
    """`path`, if a file is there, else ModelError."""
    path = Path(path)
    if path.is_dir():
        raise ModelError(f"{path}: a folder; name the checkpoint file (a diffusers folder needs no import)")
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    return path


def _assemble(described: Described, entries: Entries, use_ema: bool) -> Imported:
    config, state = described.config, entries.tensors
    ema = use_ema and any(key.startswith(EMA_PREFIX) and not is_training_buffer(key) for key in state)
    unet = unet_part(config, ema=ema)
    if not fill_(unet, state):
        raise ModelError(f"there is no denoiser in it: no entry begins with {unet.prefix}")
    if isinstance(config, DDIMConfig):
        parts: dict[str, Any] = {}
        pipeline = DDIMPipeline(unet.network.eval(), ddim_scheduler(config))
    else:
        _check_prefixes(state)
        _check_betas(config.model.params, state)
        parts = _latent_parts(config.model.params, state)
        pipeline = _latent_pipeline(config.model.params, unet.network.eval(), parts)
    absent = tuple(name for name, part in parts.items() if part is None and name != "tokenizer")
    for name in absent:
        log.warning("%s: the checkpoint holds nothing of it; the pipeline comes without", name)
    return Imported(pipeline, described.origin, "ema" if ema or entries.averaged else "plain", absent)


def _check_prefixes(state: State) -> None:
    unknown = [key for key in state if not key.startswith(PREFIXES) and not is_training_buffer(key)]
    if unknown:
        raise ModelError(f"{count(unknown)} of no part that is known: {shorten(unknown)}")


def _check_betas(params: DiffusionParams, state: State) -> None:
    """Compares the noise schedule that the file keeps with that of the YAML."""
    betas, expected = state.get("betas"), latent_scheduler(params).betas
    if betas is not None and not (
        betas.shape == expected.shape and torch.allclose(betas.float(), expected, rtol=1e-3, atol=0)
    ):
        raise ModelError(
            f"betas: {len(betas)} from {betas[0]:.3g} to {betas[-1]:.3g}, but the YAML says {len(expected)} from "
            f"{expected[0]:.3g} to {expected[-1]:.3g}: linear_start, linear_end and timesteps are of another model"
        )


def _latent_parts(params: DiffusionParams, state: State) -> dict[str, Any]:
    """The first stage and what encodes conditions, by their names in the pipeline; None where the file has nothing."""
    scale = float(state["scale_factor"]) if "scale_factor" in state else params.scale_factor
    target = params.first_stage_config
    arguments = parse(FirstStageParams, target.params, "first_stage_config.params")
    network, levels = first_stage(target.kind, arguments, scale), len(arguments.ddconfig.ch_mult)
    name = "vae" if target.kind == "AutoencoderKL" else "vqvae"
    parts = {name: _filled(Part(name, FIRST_STAGE, network, lambda key: level_source(key, levels)), state)}
    condition = params.cond_stage_config
    if not isinstance(condition, Target):
        return parts
    if condition.kind == "ClassEmbedder" and name == "vqvae":
        classes = parse(ClassParams, condition.params, "cond_stage_config.params")
        embedder = ClassEmbedder(classes.n_classes, classes.embed_dim)
        return {**parts, "class_embedder": _filled(Part("class_embedder", CONDITION, embedder, Source), state)}
    if condition.kind == "FrozenCLIPEmbedder" and name == "vae":
        return {**parts, **_text_parts(state)}
    raise ModelError(
        f"cond_stage_config: {condition.kind} beside {target.kind} is not supported; expected "
        f"__is_unconditional__, a ClassEmbedder with a VQModelInterface, or a FrozenCLIPEmbedder with an AutoencoderKL"
    )


def _filled(part: Part, state: State) -> nn.Module | None:
    return part.network.eval() if fill_(part, state) else None


def _text_parts(state: State) -> dict[str, Any]:
    if not any(key.startswith(CONDITION) for key in state):
        return {"text_encoder": None, "tokenizer": None}
    from transformers import CLIPTextConfig, CLIPTextModel  # seconds, and only this family needs it

    tokenizer = clip_tokenizer()
    encoder = CLIPTextModel(CLIPTextConfig(**CLIP_TEXT_CONFIG))
    return {
        "text_encoder": _filled(Part("text_encoder", CONDITION, encoder, clip_source), state),
        "tokenizer": tokenizer,
    }


def _latent_pipeline(params: DiffusionParams, unet: nn.Module, parts: dict[str, Any]) -> DiffusionPipeline:
    parts = {**parts, "unet": unet, "scheduler": latent_scheduler(params)}
    if "class_embedder" in parts:
        return ClassConditionalPipeline(**parts)
    if "text_encoder" in parts:
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    return LDMPipeline(**parts) if "vqvae" in parts else LatentKLPipeline(**parts)
