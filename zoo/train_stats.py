"""Statistics of a latent model's training images, for Frechet distances: train_stats.safetensors beside the model.

The features are those of zoo/features.py, on images averaged down to 32x32 (`mezzotint.evaluation.features`); their
basis is that of the embedded model, which saw the same drawings, so that only a link to it is stored:

    mean  float32 [256]         sum_i w_i f(x_i)                                                                 (1)
    cov   float32 [256, 256]    sum_i w_i (f(x_i) - mean) (f(x_i) - mean)^T                                      (2)

    w_i   share of the training draws that drawing i has, mirrored and recoloured ones included; sum 1
"""

import os
from pathlib import Path

import torch
from latents import Drawings
from safetensors.torch import save_file
from torch import Tensor
from training import to_float

from mezzotint.evaluation.features import BASIS_FILE, TRAIN_FILE, extract, load_basis


def weighted_statistics(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Equations (1) and (2): float64 [F] and [F, F] of features [N, F] with weights [N]."""
    weights = weights.double() / weights.double().sum()
    mean = weights @ features.double()
    centred = features.double() - mean
    return mean, centred.T @ (weights[:, None] * centred)


def write_statistics(drawings: Drawings, folder: Path, basis_folder: Path) -> None:
    """Write the statistics into `folder`, and a relative link to the basis in `basis_folder`."""
    basis = load_basis(basis_folder)
    if basis is None:
        raise FileNotFoundError(f"{basis_folder / BASIS_FILE}: run zoo/features.py first")
    rows, weights = [], []
    for images, flippable, share in zip(
        drawings.images.split(512), drawings.flippable.split(512), drawings.weights.split(512), strict=True
    ):
        x = to_float(images)
        rows += [extract(x, basis), extract(x.flip(-1), basis)]
        weights += [torch.where(flippable, share / 2, share), torch.where(flippable, share / 2, 0.0)]
    mean, cov = weighted_statistics(torch.cat(rows), torch.cat(weights))
    save_file({"mean": mean.float(), "cov": cov.float()}, folder / TRAIN_FILE)
    link(folder / BASIS_FILE, basis_folder / BASIS_FILE)


def link(path: Path, target: Path) -> None:
    """Make `path` a relative symbolic link to `target`, in place of a link that is there."""
    path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(target.resolve(), path.parent.resolve()))
