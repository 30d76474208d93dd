"""What images are measured against: statistics of features, or images that features can be taken of.

    folder of pictures          images
    .npz with arr_0 / images    images, uint8 [N, H, W, 3]; guided-diffusion's sample batches
    .npz with statistics        mu, sigma [2048]: pool3, as pytorch-fid and guided-diffusion write them
                                mu_s, sigma_s [2023]: spatial, guided-diffusion's
                                mu_<set>, sigma_<set>: any other set of features, ours; count, resize, digest_<set>
    model of the zoo            its training images, as FD-zoo statistics beside the model (`fd_zoo.npz`)

An npz may hold statistics and images; each metric takes what it can use. Statistics are read as they are; whoever
wrote them chose the feature network and the resizing, so a score against them is only as comparable as those. Ours say
how they were made, and are refused where that is not how the images are measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mezzotint.errors import ConfigError
from mezzotint.evaluation import zoo_net
from mezzotint.evaluation.frechet import Statistics
from mezzotint.evaluation.images import ImageSet, folder_images, npz_images, open_npz
from mezzotint.models.zoo import PIPELINE_INDEX, model_folders

ZOO_FILE = "fd_zoo.npz"
ZOO_SET = "fd-zoo"
INCEPTION_KEYS = {"pool3": ("mu", "sigma", 2048), "spatial": ("mu_s", "sigma_s", 2023)}


@dataclass(frozen=True)
class Reference:
    """What images are measured against.

    Attributes:
        images: to take features of, None if there are only statistics.
        statistics: by set of features.
        resize: how Inception's input was resized for the statistics; None if that is not recorded.
        features: by set and resizing; filled as features are taken of the images, so that it is done once.
    """

    name: str
    images: ImageSet | None = None
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    resize: str | None = None
    features: dict[tuple[str, str], Tensor] = field(default_factory=dict, repr=False, compare=False)


def load_reference(what: str | Path) -> Reference:
    """A folder of pictures, an npz, or the name or folder of a model that ships FD-zoo statistics.

    Raises:
        ConfigError: it is none of those, or cannot be read.
    """
    path = Path(what)
    folder = path if path.exists() else model_folders().get(str(what))
    if folder is None:
        raise ConfigError(
            f"{what}: no such reference; name a folder of pictures, an .npz, or a model of the zoo "
            f"({', '.join(model_folders())})"
        )
    if folder.is_file():
        return npz_reference(folder)
    if (folder / PIPELINE_INDEX).is_file():
        return model_reference(folder)
    return Reference(folder.name, folder_images(folder))


def model_reference(folder: Path) -> Reference:
    """The training images of a model in the diffusers layout. ConfigError if it ships no statistics of them."""
    path = folder / ZOO_FILE
    if not path.is_file():
        raise ConfigError(f"{folder}: has no {ZOO_FILE}, so there is nothing to compare with; name images or an npz")
    found = npz_reference(path)
    return Reference(f"training images of {folder.resolve().name}", found.images, found.statistics, found.resize)


def npz_reference(path: Path) -> Reference:
    """The statistics and images in an npz. ConfigError if it has neither, or statistics of another network."""
    found: dict[str, Statistics] = {}
    with open_npz(path) as file:
        count = int(file["count"]) if "count" in file else None
        resize = str(file["resize"]) if "resize" in file else None
        for name, (mean, cov) in _keys(file).items():
            found[name] = _statistics(path, name, file[mean], file[cov], count)
            _check_digest(path, name, file)
    images = npz_images(path)
    if not found and images is None:
        raise ConfigError(f"{path}: holds neither statistics (mu, sigma) nor images (arr_0)")
    return Reference(path.stem, images, found, resize)


def write_statistics(
    path: Path, statistics: Mapping[str, Statistics], *, resize: str | None = None, dtype: type = np.float64
) -> None:
    """Write statistics as `npz_reference` reads them; `resize` is Inception's."""
    arrays: dict[str, Any] = {} if resize is None else {"resize": np.array(resize)}
    for name, found in statistics.items():
        mean, cov, _ = INCEPTION_KEYS.get(name, (f"mu_{name}", f"sigma_{name}", 0))
        arrays |= {mean: found.mean.numpy().astype(dtype), cov: found.cov.numpy().astype(dtype)}
        if found.samples is not None:
            arrays["count"] = np.array(found.samples)
        if name == ZOO_SET:
            arrays[f"digest_{name}"] = np.array(zoo_digest())
    np.savez(path, **arrays)


@cache
def zoo_digest() -> str:
    """First digits of the SHA-256 of FD-zoo's weights: statistics of other weights are of no use."""
    return hashlib.sha256(zoo_net.WEIGHTS.read_bytes()).hexdigest()[:16]


def _keys(file: Any) -> dict[str, tuple[str, str]]:
    """{set: names of its two arrays} of what an npz has."""
    keys = {name: (mean, cov) for name, (mean, cov, _) in INCEPTION_KEYS.items() if mean in file}
    prefix = "mu_"
    others = [name.removeprefix(prefix) for name in file if name.startswith(prefix) and name != "mu_s"]
    return keys | {name: (f"mu_{name}", f"sigma_{name}") for name in others}


def _statistics(path: Path, name: str, mean: np.ndarray, cov: np.ndarray, count: int | None) -> Statistics:
    length = INCEPTION_KEYS[name][2] if name in INCEPTION_KEYS else mean.shape[-1]
    if mean.shape != (length,) or cov.shape != (length, length):
        raise ConfigError(
            f"{path}: {name}: expected a mean [{length}] and a covariance [{length}, {length}], "
            f"got {list(mean.shape)} and {list(cov.shape)}"
        )
    return Statistics(torch.from_numpy(mean).double(), torch.from_numpy(cov).double(), count)


def _check_digest(path: Path, name: str, file: Any) -> None:
    key = f"digest_{name}"
    if key in file and str(file[key]) != zoo_digest():
        raise ConfigError(
            f"{path}: its FD-zoo statistics are of a feature network {file[key]}, this package has {zoo_digest()}; "
            f"take them again, or use the package that made them"
        )
