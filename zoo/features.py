"""Fit the small image features that ship with the embedded model, and their statistics over its training images.

    features(x) = concat( C (x - m), pool(x) )                                                                   (1)

    x           float32 [3072]      an image in [-1, 1], flattened from [3, 32, 32]
    m           float32 [3072]      mean training image                            features.safetensors "mean"
    C           float32 [64, 3072]  leading principal components, unit rows        features.safetensors "components"
    variance    float32 [64]        variance along each row of C                   "explained_variance"
    pool(x)     float32 [192]       means over 4x4 pixels, flattened from [3, 8, 8]
    mean, cov   float32 [256], [256, 256]  of (1) over the training images         train_stats.safetensors

The components see shape at the scale of the whole drawing, the pooled pixels its colours and where they lie. Both
are linear: a Frechet distance on them compares means and covariances of pixels and is no perceptual metric. What it
has over Inception features is that it needs no download and is exactly reproducible.

The images are those the model was trained on, mirrored ones included with the weight they had there; sums are in
float64, and a component's sign is the one that makes its largest entry positive.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor
from training import HERE, load_images, to_float

EMBEDDED = HERE.parent / "src" / "mezzotint" / "embedded" / "ddim-emoji"


def training_images(data: Path, groups: list[str]) -> Tensor:
    """float32 [2N, 3, H, W]: each training image twice, the second time mirrored where training may mirror it."""
    splits, flippable = load_images(data, torch.device("cpu"), groups)
    x = to_float(splits["train"])
    return torch.cat([x, torch.where(flippable[:, None, None, None], x.flip(-1), x)])


def fit_components(flat: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(mean float32 [d], components float32 [count, d], explained variance float32 [count]) of `flat` [N, d]."""
    x = flat.numpy().astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
    components = vectors[:, ::-1][:, :count].T
    peak = np.abs(components).argmax(1)
    components = components * np.sign(components[np.arange(count), peak])[:, None]
    parts = (x.mean(0), components, values[::-1][:count])
    return tuple(torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32)) for part in parts)


def extract_features(x: Tensor, mean: Tensor, components: Tensor) -> Tensor:
    """Equation (1): float32 [N, 64 + 192] from images float32 [N, 3, 32, 32]."""
    coordinates = (x.flatten(1) - mean) @ components.T
    return torch.cat([coordinates, torch.nn.functional.avg_pool2d(x, 4).flatten(1)], dim=1)


def main(
    data: Annotated[Path, typer.Option(help="The npz of zoo/render.py.")] = HERE / "data" / "emoji-32.npz",
    out: Annotated[Path, typer.Option(help="Model folder: read training.json there, write beside it.")] = EMBEDDED,
    count: Annotated[int, typer.Option(help="Principal components kept.")] = 64,
) -> None:
    """Write features.safetensors and train_stats.safetensors."""
    groups = json.loads((out / "training.json").read_text())["settings"]["groups"]
    x = training_images(data, groups)
    mean, components, variance = fit_components(x.flatten(1), count)
    values = extract_features(x, mean, components).numpy().astype(np.float64)
    stats = {"mean": values.mean(0), "cov": np.cov(values, rowvar=False)}

    out.mkdir(parents=True, exist_ok=True)
    tensors = {"mean": mean, "components": components, "explained_variance": variance}
    save_file(tensors, out / "features.safetensors")
    save_file({k: torch.from_numpy(v.astype(np.float32)) for k, v in stats.items()}, out / "train_stats.safetensors")
    share = variance.sum() / x.flatten(1).var(0).sum()
    print(f"{len(x) // 2} images, mirrored ones beside them; {count} components hold {share:.1%} of the variance")


if __name__ == "__main__":
    typer.run(main)
