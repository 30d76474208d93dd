"""CLIP and DINOv2 as feature networks, and the two scores made of CLIP's: CLIP score and CMMD.

    score(x, c) = 100 max(cos(f(x), g(c)), 0)                        mean over the images                        (1)
    CMMD        = 1000 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y)),    k = exp(-|f - f'|^2 / (2 sigma^2))   (2)

    f, g    float32 [N, 768]   unit vectors of images and captions
    sigma   10

(1) is Hessel et al. 2021 without its factor 2.5, with the network of the papers on quantization, ViT-L/14 at 224 px
(torchmetrics' CLIPScore gives the same). (2) is Jayasumana et al. 2024 (arXiv 2401.09603) with their ViT-L/14 at
336 px and, like theirs, with every image's distance to itself in the means. FD-DINOv2 (Stein et al. 2023, arXiv
2306.04675) is the Frechet distance of DINOv2 ViT-L/14's class token.

transformers, which the pipelines need anyway, runs the networks; open-clip would bring torchvision, whose registry
wheels do not load beside a CPU-only torch. Pictures are resized by torch with antialiasing, which differs from
Pillow's by less than one of 255 levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mezzotint.evaluation.weights import find_repository, repository_missing

CLIP_REPOSITORIES = {"clip": "openai/clip-vit-large-patch14", "clip-336": "openai/clip-vit-large-patch14-336"}
CLIP_SIDES = {"clip": 224, "clip-336": 336}
DINO_REPOSITORY, DINO_SIDE = "facebook/dinov2-large", 224
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIGMA, SCALE = 10.0, 1000.0
BLOCK = 1024  # rows of a kernel matrix at once


class Prepared(nn.Module):
    """A network behind its preparation: shorter side to `side`, centre cropped, channels normalized."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, side: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network, self.side = network, side
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def prepare(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 s s"]:
        """The network's input from images in [-1, 1]."""
        height, width = images.shape[-2:]
        factor = self.side / min(height, width)
        size = [round(height * factor), round(width * factor)]
        x = F.interpolate((images + 1) / 2, size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((length - self.side) // 2 for length in size)
        x = x[..., top : top + self.side, left : left + self.side]
        return (x - self.mean) / self.std

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n f"]:
        return self.network(self.prepare(images))


class ClipImages(nn.Module):
    """Unit vectors of prepared images."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_model, self.visual_projection = model.vision_model, model.visual_projection

    def forward(self, pixels: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n f"]:
        return F.normalize(self.visual_projection(self.vision_model(pixel_values=pixels).pooler_output), dim=-1)


class ClassToken(nn.Module):
    """DINOv2's class token after the last norm."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n f"]:
        return self.model(pixel_values=pixels).pooler_output


def load_clip_images(name: str = "clip") -> Prepared:
    """CLIP's image half: `clip` at 224 px, `clip-336` at 336. WeightsError if its weights are nowhere."""
    from transformers import CLIPModel

    model = _pretrained(CLIPModel, CLIP_REPOSITORIES[name])
    return Prepared(ClipImages(model), CLIP_SIDES[name], CLIP_MEAN, CLIP_STD).eval().requires_grad_(False)


def load_dino() -> Prepared:
    """DINOv2 ViT-L/14. WeightsError if its weights are nowhere."""
    from transformers import Dinov2Model

    model = _pretrained(Dinov2Model, DINO_REPOSITORY)
    return Prepared(ClassToken(model), DINO_SIDE, IMAGENET_MEAN, IMAGENET_STD).eval().requires_grad_(False)


@torch.no_grad()
def clip_captions(captions: Sequence[str], *, device: str | torch.device = "cpu") -> Float[Tensor, "n f"]:
    """Unit vectors of captions, cut to CLIP's 77 tokens. WeightsError if its weights are nowhere."""
    from transformers import CLIPModel, CLIPTokenizer

    repository = CLIP_REPOSITORIES["clip"]
    model, tokenizer = _pretrained(CLIPModel, repository).to(device), _pretrained(CLIPTokenizer, repository)
    length = model.config.text_config.max_position_embeddings
    rows = []
    for start in range(0, len(captions), 64):
        texts = list(captions[start : start + 64])
        ids = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt").to(device)
        rows.append(F.normalize(model.text_projection(model.text_model(**ids).pooler_output), dim=-1).cpu())
    return torch.cat(rows)


def clip_scores(images: Float[Tensor, "n f"], captions: Float[Tensor, "n f"]) -> Float[Tensor, " n"]:
    """Equation (1) of each image and its caption."""
    return 100 * (images * captions).sum(dim=1).clamp_min(0)


def cmmd(
    x: Float[Tensor, "n f"], y: Float[Tensor, "m f"], weights: Float[Tensor, "r n"] | None = None
) -> Float[Tensor, " r"]:
    """Equation (2) in float64; `weights` says how often each of x counts in each of r resamples, None is once."""
    x, y = x.double(), y.double()
    weights = torch.ones(1, len(x), dtype=torch.float64) if weights is None else weights.double()
    shares = weights / weights.sum(dim=1, keepdim=True)
    own = torch.zeros(len(shares), dtype=torch.float64)
    cross = torch.zeros_like(own)
    for rows in torch.arange(len(x)).split(BLOCK):
        own += ((shares[:, rows] @ _kernel(x[rows], x)) * shares).sum(dim=1)
        cross += shares[:, rows] @ _kernel(x[rows], y).mean(dim=1)
    other = sum(_kernel(part, y).sum() for part in y.split(BLOCK)) / len(y) ** 2
    return SCALE * (own + other - 2 * cross)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return torch.exp(-torch.cdist(a, b).square() / (2 * SIGMA**2))


def _pretrained(kind: Any, repository: str) -> Any:
    place = find_repository(repository)
    try:
        return kind.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise repository_missing(repository, error) from error
