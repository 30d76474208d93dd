"""Image features without a feature network: principal coordinates and coarse pixels.

A Frechet distance needs features. Inception features are large, need a download and were made for photographs; the
images of a small model are described well enough by two linear maps:

    f(x) = [ (x - mean) @ components.T ,  pool_8x8(x) ]                                  (1)

64 coordinates in the principal axes of the training images, which see structure over the whole image, and the image
averaged over 8 x 8 equal windows (3 x 64 values for colour), which sees local brightness and colour. 256 features in
all.

    name        dtype    shape      meaning
    images      float32  [N,C,H,W]  in [-1, 1]
    mean        float32  [D]        mean training image, D = C*H*W, flattened in the order C, H, W
    components  float32  [K, D]     orthonormal principal axes, largest variance first

Both maps are linear and the axes have length one, so a feature is in the units of a pixel (times sqrt(D) at most).
Images larger than 32 pixels are first averaged over windows down to 32 x 32 (`small`): a basis of larger ones would be
tens of megabytes and mostly noise. The label says so.

The basis comes with the model (`features.safetensors`); for a model without one it is fitted to the images of the
float model, and the label in every result says which. Such features are blind to what a photograph *shows*: they
measure the distance of a quantized model to its own float model and must not be compared with published Inception
FIDs. Mean and covariance of the training images' features (`train_stats.safetensors`) come with some models; a distance
to them is as blind, and only says whether quantization moved the images away from what the float model had reached.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mezzotint.errors import ModelError
from mezzotint.evaluation.frechet import Statistics

BASIS_FILE = "features.safetensors"
TRAIN_FILE = "train_stats.safetensors"
COMPONENTS = 64
SIDE = 32
POOLED_SIDE = 8


@dataclass(frozen=True)
class Basis:
    """Principal axes of a set of images.

    Attributes:
        mean: [D] mean image.
        components: [K, D] orthonormal rows.
        source: where the axes come from, in words that a reader of a table understands.
        averaged: whether the images are larger than 32 pixels and averaged down to that.
    """

    mean: Tensor
    components: Tensor
    source: str
    averaged: bool = False

    @property
    def label(self) -> str:
        """Name of the features for tables: what they are and where the axes come from."""
        pooled = f"{POOLED_SIDE}x{POOLED_SIDE} pooled pixels"
        of = f" of the images averaged down to {SIDE}x{SIDE}" if self.averaged else ""
        return f"{len(self.components)} PCA coordinates ({self.source}) + {pooled}{of}"


def small(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
    """Images of at most 32 x 32 as they are; larger ones as 32 x 32 averages over equal windows."""
    return adaptive_avg_pool2d(images.float(), SIDE) if _is_large(images) else images


def load_basis(folder: str | Path) -> Basis | None:
    """The basis shipped in a model folder, None if the folder has none. ModelError for a file that cannot be used."""
    path = Path(folder) / BASIS_FILE
    if not path.is_file():
        return None
    mean, components = _tensors(path, "mean", "components")
    if mean.ndim != 1 or components.ndim != 2 or components.shape[1] != len(mean):
        raise ModelError(
            f"{path}: expected `mean` [D] and `components` [K, D], got {list(mean.shape)} and {list(components.shape)}"
        )
    return Basis(mean, components, f"basis shipped with {Path(folder).name}")


def fit_basis(images: Float[Tensor, "n c h w"], count: int = COMPONENTS) -> Basis:
    """Principal axes of these images: at most `count`, and never more than n - 1 (n images span no more)."""
    flat = small(images).flatten(1).double()
    mean = flat.mean(dim=0)
    _, _, axes = torch.linalg.svd(flat - mean, full_matrices=False)
    kept = max(1, min(count, len(images) - 1))
    return Basis(mean.float(), axes[:kept].float(), "fitted to the float model's images", _is_large(images))


def basis_for(folder: str | Path | None, float_images: Float[Tensor, "n c h w"]) -> Basis:
    """The basis of the model in `folder` if it ships one, else a basis fitted to the float model's images."""
    shipped = load_basis(folder) if folder is not None else None
    return fit_basis(float_images) if shipped is None else replace(shipped, averaged=_is_large(float_images))


def train_statistics(folder: str | Path | None) -> Statistics | None:
    """Statistics of the training images in the features of the basis in the same folder; None if it has not both.

    Raises:
        ModelError: a file that cannot be used.
    """
    path = None if folder is None else Path(folder) / TRAIN_FILE
    if path is None or not path.is_file() or not (path.parent / BASIS_FILE).is_file():
        return None
    mean, cov = _tensors(path, "mean", "cov")
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise ModelError(f"{path}: expected `mean` [F] and `cov` [F, F], got {list(mean.shape)} and {list(cov.shape)}")
    return Statistics(mean.double(), cov.double(), samples=None)


def extract(images: Float[Tensor, "n c h w"], basis: Basis) -> Float[Tensor, "n f"]:
    """Features of each image in float64: K principal coordinates first, then C*8*8 pooled pixels (equation 1)."""
    images = small(images)
    flat = images.flatten(1).double()
    if flat.shape[1] != len(basis.mean):
        raise ModelError(
            f"the feature basis ({basis.source}) is for images of {len(basis.mean)} values, "
            f"got {list(images.shape[1:])} = {flat.shape[1]}; "
            f"without {BASIS_FILE} one is fitted to the float model's images"
        )
    coordinates = (flat - basis.mean.double()) @ basis.components.double().T
    pooled = adaptive_avg_pool2d(images.double(), POOLED_SIDE).flatten(1)
    return torch.cat([coordinates, pooled], dim=1)


def _is_large(images: Tensor) -> bool:
    return max(images.shape[-2:]) > SIDE


def _tensors(path: Path, *names: str) -> list[Tensor]:
    """float32 tensors of a safetensors file. ModelError if it lacks one or is no such file."""
    try:
        with safe_open(path, framework="pt") as file:
            return [file.get_tensor(name).float() for name in names]
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: expected tensors {' and '.join(names)}: {error}") from error
