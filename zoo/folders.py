"""From trained modules to pipeline folders, and pictures drawn with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, LDMPipeline, StableDiffusionPipeline
from labels import CLASSES
from recipes import Denoiser, Recipe
from safetensors.torch import load_file, save_file
from torch import nn
from training import Run
from transformers import CLIPTokenizer

from mezzotint.models.pipelines import ClassConditionalPipeline, LatentKLPipeline


def averaged_model(run: Run, recipe: Recipe, vocabulary: int) -> Denoiser:
    """A float32 copy of the module with the averaged weights, rounded to float16 as they are stored."""
    model = Denoiser(recipe, vocabulary)
    model.load_state_dict(run.averaged())
    return model.half().float().eval().requires_grad_(False)


def assemble(recipe: Recipe, model: Denoiser, stage: nn.Module, tokenizer: CLIPTokenizer | None) -> DiffusionPipeline:
    """The pipeline of these parts."""
    scheduler = recipe.scheduler(**recipe.schedule)
    if recipe.condition == "class":
        return ClassConditionalPipeline(stage, model.unet, model.class_embedder, scheduler)
    if recipe.condition == "text":
        return StableDiffusionPipeline(
            vae=stage, text_encoder=model.text_encoder, tokenizer=tokenizer, unet=model.unet, scheduler=scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    if recipe.first_stage == "vq-f4":
        return LDMPipeline(vqvae=stage, unet=model.unet, scheduler=scheduler)
    return LatentKLPipeline(stage, model.unet, scheduler)


def sample_inputs(recipe: Recipe, prompts: dict[str, list[str]], count: int) -> list[Any]:
    """What the sample grid shows: every class equally often; texts, half of them new to the model; or nothing."""
    if recipe.condition == "class":
        return [index * len(CLASSES) // count for index in range(count)]
    if recipe.condition == "text":
        halves = ((prompts["calibration"], count // 2), (prompts["evaluation"], count - count // 2))
        return [texts[index % len(texts)] for texts, wanted in halves for index in range(wanted)]
    return [None] * count


def sample_images(
    pipeline: DiffusionPipeline, recipe: Recipe, inputs: list[Any], *, seed: int = 0, steps: int | None = None
) -> np.ndarray:
    """uint8 [N, H, W, 3]: one float32 sample for each of `inputs`, at the recipe's setting."""
    pipeline.set_progress_bar_config(disable=True)
    parts = []
    for start in range(0, len(inputs), 64):
        part = inputs[start : start + 64]
        first = {"none": {"batch_size": len(part)}, "class": {"class_labels": part}, "text": {"prompt": part}}
        options = {**recipe.sampling, **first[recipe.condition]}
        if steps is not None:
            options["num_inference_steps"] = steps
        generator = torch.Generator().manual_seed(seed + start)
        parts.append(pipeline(**options, generator=generator, output_type="np").images)
    return (np.concatenate(parts) * 255).round().astype(np.uint8)


def write_tokenizer_files(folder: Path) -> None:
    """Write vocab.json and merges.txt, which transformers 4 reads, beside the tokenizer.json of transformers 5."""
    parts = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(parts["vocab"]) + "\n")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in parts["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))


def prefix_text_encoder(path: Path) -> None:
    """Give the text encoder's weights the names that every version of transformers reads: text_model.*"""
    weights = load_file(path)
    save_file({f"text_model.{key.removeprefix('text_model.')}": value for key, value in weights.items()}, path,
              metadata={"format": "pt"})  # fmt: skip


def write_texts(out: Path, recipe: Recipe, prompts: dict[str, list[str]]) -> None:
    """Write classes.json or prompts.json beside the model, and its text parts in the older format too."""
    if recipe.condition == "class":
        (out / "classes.json").write_text(json.dumps(CLASSES, indent=1) + "\n")
    if recipe.condition == "text":
        (out / "prompts.json").write_text(json.dumps(prompts, indent=1) + "\n")
        write_tokenizer_files(out / "tokenizer")
        prefix_text_encoder(out / "text_encoder" / "model.safetensors")
