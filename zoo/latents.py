"""What the latent models are trained on: latents of all drawings, computed once, with their conditions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captions import Captioned, caption, learn_merges, split_prompts
from labels import CLASSES, class_of
from recipes import TEXT_POSITIONS, Recipe
from torch import Tensor, nn
from train_first_stage import encode
from training import load_table
from transformers import CLIPTokenizer

from mezzotint.models.importing.clip_vocabulary import make_tokenizer

SPLITS = ("train", "held_out")
MERGES = 900  # at most, of the tokenizer


@dataclass(frozen=True)
class Drawings:
    """Images with their conditions, before they are encoded.

    images: uint8 [N, 3, S, S]; flippable: bool [N]; weights: float64 [N], share of the draws;
    conditions: int64 [N, V, ...], V equivalent conditions of each: [N, 1] labels, [N, V, L] token ids, [N, 1] zeros.
    """

    images: Tensor
    flippable: Tensor
    weights: Tensor
    conditions: Tensor


@dataclass(frozen=True)
class Latents:
    """What training draws from, on the device: z [M, C, h, w] scaled, conditions as above, cumulative weights [M]."""

    z: Tensor
    conditions: Tensor
    cumulative: Tensor
    empty: Tensor  # the condition that stands for none: [] or [L]


@dataclass(frozen=True)
class Source:
    """What a model learns from: drawings of each split, the empty condition ([] or [L]), and what texts need."""

    drawings: dict[str, Drawings]
    empty: Tensor
    tokenizer: CLIPTokenizer | None
    prompts: dict[str, list[str]]

    @property
    def counts(self) -> dict[str, int]:
        """Number of drawings in each split."""
        return {name: len(part.images) for name, part in self.drawings.items()}

    @property
    def vocabulary(self) -> int:
        """Tokens, 0 without a tokenizer."""
        return 0 if self.tokenizer is None else len(self.tokenizer)


def to_channels_first(pixels: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] -> uint8 [N, 3, H, W]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def plain_drawings(pixels: np.ndarray, table: list[dict[str, Any]]) -> Drawings:
    """All images alike, without a condition."""
    count = len(table)
    flippable = torch.tensor([row["flippable"] for row in table])
    weights = torch.full((count,), 1 / count, dtype=torch.float64)
    return Drawings(to_channels_first(pixels), flippable, weights, torch.zeros(count, 1, dtype=torch.int64))


def class_drawings(pixels: np.ndarray, table: list[dict[str, Any]]) -> Drawings:
    """The images that have a class; a class of k images gets a share of the draws in proportion to sqrt(k)."""
    labels = [class_of(row) for row in table]
    chosen = [i for i, label in enumerate(labels) if label is not None]
    label = torch.tensor([labels[i] for i in chosen])
    counts = torch.bincount(label, minlength=len(CLASSES)).double()
    weights = counts[label].rsqrt()
    plain = plain_drawings(pixels[chosen], [table[i] for i in chosen])
    return Drawings(plain.images, plain.flippable, weights / weights.sum(), label[:, None])


def text_drawings(captioned: Captioned, tokenizer: CLIPTokenizer) -> Drawings:
    """Drawings with the token ids of their texts."""
    ids = tokenize(tokenizer, [text for texts in captioned.texts for text in texts])
    return Drawings(
        images=to_channels_first(captioned.images),
        flippable=torch.from_numpy(captioned.flippable),
        weights=torch.from_numpy(captioned.weights),
        conditions=ids.view(len(captioned.texts), -1, TEXT_POSITIONS),
    )


def learn_tokenizer(captioned: Captioned) -> CLIPTokenizer:
    """A tokenizer of CLIP's kind with merges learned from the texts."""
    tokenizer = make_tokenizer(learn_merges([text for texts in captioned.texts for text in texts], MERGES))
    tokenizer.model_max_length = TEXT_POSITIONS
    return tokenizer


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """int64 [N, TEXT_POSITIONS]."""
    options = {"padding": "max_length", "max_length": TEXT_POSITIONS, "truncation": True, "return_tensors": "pt"}
    return tokenizer(texts, **options).input_ids


@torch.no_grad()
def encode_drawings(stage: nn.Module, drawings: Drawings, empty: Tensor, device: torch.device) -> Latents:
    """Scaled latents of every drawing and of the mirrored ones, which share a drawing's weight with it."""
    mirrored = drawings.flippable.nonzero()[:, 0]
    share = torch.where(drawings.flippable, drawings.weights / 2, drawings.weights)
    images = torch.cat([drawings.images, drawings.images[mirrored].flip(-1)])
    z = torch.cat([encode(stage, part.to(device)) for part in images.split(256)]) * stage.config.scaling_factor
    weights = torch.cat([share, share[mirrored]])
    conditions = torch.cat([drawings.conditions, drawings.conditions[mirrored]])
    return Latents(z, conditions.to(device), weights.cumsum(0).to(device), empty.to(device))


def draw(latents: Latents, count: int, drop: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(z_0 float32 [count, C, h, w], conditions int64 [count, ...]), drawn by weight; `drop` of them are empty."""
    device = latents.z.device
    u = torch.rand(count, dtype=torch.float64, generator=generator, device=device) * latents.cumulative[-1]
    row = torch.searchsorted(latents.cumulative, u, right=True).clamp_(max=len(latents.z) - 1)
    variant = torch.randint(latents.conditions.shape[1], (count,), generator=generator, device=device)
    conditions = latents.conditions[row, variant]
    empty = torch.rand(count, generator=generator, device=device) < drop
    empty = empty.view(-1, *[1] * (conditions.ndim - 1))
    return latents.z[row], torch.where(empty, latents.empty, conditions)


def read_source(recipe: Recipe, path: Path, *, groups: tuple[str, ...], recoloured: float) -> Source:
    """Read and caption or classify the images of both splits. ValueError if they are not of the recipe's size.

    Args:
        recoloured: share of the draws that are recoloured drawings; of text models only.
    """
    pixels, table = load_table(path, groups)
    if pixels.shape[1] != recipe.size:
        raise ValueError(f"{path}: expected images of {recipe.size} px, got {pixels.shape[1]}")
    places = {name: [i for i, row in enumerate(table) if row["held_out"] == (name == "held_out")] for name in SPLITS}
    read = {name: (pixels[chosen], [table[i] for i in chosen]) for name, chosen in places.items()}
    if recipe.condition != "text":
        choose = class_drawings if recipe.condition == "class" else plain_drawings
        empty = torch.tensor(len(CLASSES) if recipe.condition == "class" else 0)
        return Source({name: choose(*part) for name, part in read.items()}, empty, None, {})
    captioned = {name: caption(*part, recoloured=recoloured) for name, part in read.items()}
    tokenizer = learn_tokenizer(captioned["train"])
    prompts = split_prompts(captioned["train"], read["held_out"][1])
    drawings = {name: text_drawings(part, tokenizer) for name, part in captioned.items()}
    return Source(drawings, tokenize(tokenizer, [""])[0], tokenizer, prompts)
