"""From prompts and class labels to conditions, and the inputs to use where the user names none.

    kind   inputs   cond                                                       uncond
    none   -        None
    text   str      encoder_hidden_states [N, L, D]: last states of CLIP       the same of the empty prompt
    class  int      encoder_hidden_states [N, 1, D]: rows of the class table   its last row

Calibration and evaluation never share an input: prompts come in two disjoint lists, even class labels calibrate and odd
ones are evaluated. Lists beside the model (`prompts.json`) win over the built-in ones, which are for models of
photographs; a model of something else would be measured on what it never saw.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from jaxtyping import Int
from torch import Tensor

from mezzotint.errors import ConfigError, ModelError
from mezzotint.models.conditions import Conditions
from mezzotint.models.denoiser import device_of
from mezzotint.models.families import family_of, model_folder
from mezzotint.models.prompts import PROMPTS_FILE, built_in_prompts, read_prompt_splits

logger = logging.getLogger("mezzotint")

Kind = Literal["none", "class", "text"]
Split = Literal["calibration", "evaluation"]
Inputs = Sequence[str] | Sequence[int]

STATES = "encoder_hidden_states"


def conditioning_kind(pipeline: DiffusionPipeline) -> Kind:
    """What the samples of `pipeline` are conditioned on."""
    kinds: dict[str, Kind] = {"sd": "text", "ldm-class": "class"}
    return kinds.get(family_of(pipeline), "none")


@torch.no_grad()
def encode_conditions(pipeline: DiffusionPipeline, inputs: Inputs | None, *, batch_size: int = 16) -> Conditions | None:
    """The conditions that `inputs` stand for, a row for each, float32 on the CPU; None for unconditional pipelines.

    Distinct inputs are encoded once, so that repeated ones have equal rows.

    Raises:
        ConfigError: inputs for an unconditional pipeline, none or the wrong type for a conditional one, a label that
            the model does not have.
        ModelError: a text model without its text encoder or its tokenizer.
    """
    kind = conditioning_kind(pipeline)
    check_inputs(pipeline, kind, inputs)
    if inputs is None or kind == "none":
        return None
    distinct: list[Any] = list(dict.fromkeys(inputs))
    empty = "" if kind == "text" else unconditional_label(pipeline)
    encode = _encode_text if kind == "text" else _encode_labels
    if kind == "text":
        _log_cut(pipeline, distinct)
    parts = [distinct[start : start + batch_size] for start in range(0, len(distinct), batch_size)]
    states = torch.cat([encode(pipeline, part) for part in [[empty], *parts]])
    place = {value: row for row, value in enumerate(distinct, start=1)}
    rows = states[[place[value] for value in inputs]]
    uncond = states[:1].expand_as(rows)
    return Conditions({STATES: rows}, {STATES: uncond}, [input_label(value) for value in inputs])


def check_inputs(pipeline: DiffusionPipeline, kind: Kind, inputs: Inputs | None) -> None:
    """ConfigError if `inputs` are not what a pipeline of this kind takes."""
    name = type(pipeline).__name__
    if kind == "none":
        if inputs is not None:
            raise ConfigError(f"{name} is unconditional: it takes no prompts and no class labels")
        return
    words = {"text": "prompts (text)", "class": "class labels (whole numbers)"}[kind]
    wanted = {"text": str, "class": int}[kind]
    if inputs is None or not all(isinstance(value, wanted) and not isinstance(value, bool) for value in inputs):
        raise ConfigError(f"{name} takes {words}, got {'none' if inputs is None else list(inputs)[:3]}")
    if not inputs:
        raise ConfigError(f"{name} takes {words}, got an empty list")
    if kind == "class":
        last = unconditional_label(pipeline) - 1
        for value in inputs:
            if not 0 <= int(value) <= last:
                raise ConfigError(f"class label {value}: {name} has the classes 0 to {last}")


def unconditional_label(pipeline: Any) -> int:
    """The last row of the class table, which stands for no class. ModelError if there is no class table."""
    if pipeline.class_embedder is None:
        raise ModelError(f"{type(pipeline).__name__} has no class_embedder, so class labels cannot be encoded")
    return int(pipeline.class_embedder.unconditional_label)


def input_label(value: str | int) -> str:
    """What stands under an image: the prompt, or the class."""
    return value if isinstance(value, str) else f"class {value}"


def condition_inputs(
    pipeline: DiffusionPipeline, split: Split, count: int, seed: int = 0
) -> list[str] | list[int] | None:
    """`count` prompts or labels of a split, in an order of `seed`; None for unconditional pipelines.

    The first of more are the first of fewer; a split with fewer values than `count` is gone through again.
    """
    kind = conditioning_kind(pipeline)
    if kind == "none":
        return None
    values: list[Any] = _labels(pipeline, split) if kind == "class" else _prompts(pipeline, split)
    random.Random(f"{seed} {split}").shuffle(values)
    return [values[number % len(values)] for number in range(count)]


def _labels(pipeline: Any, split: Split) -> list[int]:
    """Even labels calibrate, odd ones are evaluated."""
    labels = list(range(0 if split == "calibration" else 1, unconditional_label(pipeline), 2))
    if not labels:
        raise ModelError(f"{type(pipeline).__name__}: its class_embedder has too few classes for the {split} split")
    return labels


def _prompts(pipeline: Any, split: Split) -> list[str]:
    folder = model_folder(pipeline)
    if folder is not None and (folder / PROMPTS_FILE).is_file():
        return read_prompt_splits(folder / PROMPTS_FILE)[split]
    return built_in_prompts(split)


def _encode_text(pipeline: Any, prompts: list[str]) -> Tensor:
    """float32 [B, L, D]: the text encoder's last states, padded to its full length as Stable Diffusion was trained."""
    ids = token_ids(pipeline, prompts)
    return pipeline.text_encoder(ids.to(device_of(pipeline.text_encoder)))[0].float().cpu()


def token_ids(pipeline: Any, prompts: list[str]) -> Int[Tensor, "b l"]:
    """int64 tokens of `prompts` on the CPU, padded or cut to the text encoder's full length."""
    words = {"padding": "max_length", "max_length": _text_length(pipeline), "truncation": True, "return_tensors": "pt"}
    return pipeline.tokenizer(prompts, **words).input_ids


def _log_cut(pipeline: Any, prompts: list[str]) -> None:
    """One line if any of `prompts` is longer than what the text encoder reads."""
    length = _text_length(pipeline)
    whole = pipeline.tokenizer(prompts, verbose=False).input_ids
    cut = [prompt for prompt, tokens in zip(prompts, whole, strict=True) if len(tokens) > length]
    if cut:
        logger.warning("%d of %d prompts are cut to %d tokens, the first is %r", len(cut), len(prompts), length, cut[0])


def _text_length(pipeline: Any) -> int:
    """Tokens that the text encoder reads. ModelError if it or the tokenizer is missing."""
    encoder, tokenizer = pipeline.text_encoder, pipeline.tokenizer
    for part, value in (("text_encoder", encoder), ("tokenizer", tokenizer)):
        if value is None:
            raise ModelError(f"{type(pipeline).__name__} has no {part}, so prompts cannot be encoded")
    return min(int(tokenizer.model_max_length), int(encoder.config.max_position_embeddings))


def _encode_labels(pipeline: Any, labels: list[int]) -> Tensor:
    """float32 [B, 1, D]: rows of the class table."""
    table = pipeline.class_embedder
    return table(torch.tensor(labels, device=device_of(table))).float().cpu()
