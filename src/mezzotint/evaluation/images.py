"""Sets of images, wherever they are: a tensor, a folder, an npz, a dataset. Read in batches, never all at once.

Every image leaves here as float32 in [-1, 1] and as the 8-bit picture it would be saved as: what a metric sees does
not depend on whether a model's output went through a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mezzotint.errors import ConfigError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
ARRAYS = ("arr_0", "images", "samples")  # names of images in an npz; guided-diffusion's is the first


@dataclass(frozen=True)
class ImageSet:
    """Images to be read again and again.

    Attributes:
        name: where they come from, for tables.
        count: how many.
        read: gives those at some places (a slice), [n, 3, H, W] in [-1, 1], all of one size.
    """

    name: str
    count: int
    read: Callable[[slice], Tensor]

    def batches(self, size: int) -> Iterator[Float[Tensor, "n 3 h w"]]:
        """All of them in order, `size` at a time."""
        for start in range(0, self.count, size):
            yield self.read(slice(start, min(self.count, start + size)))


def tensor_images(images: Float[Tensor, "n c h w"], name: str = "images") -> ImageSet:
    """Images that are there already, in [-1, 1]; grey ones get three channels."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ConfigError(f"{name}: expected images [N, 3, H, W] in [-1, 1], got {list(images.shape)}")
    return ImageSet(name, len(images), lambda rows: rounded(images[rows]))


def folder_images(folder: str | Path) -> ImageSet:
    """All pictures in a folder and its subfolders, in the order of their names.

    Raises:
        ConfigError: there are none, one cannot be read, or (when they are read) two have different sizes.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    paths = [path for path in paths if path.name != "grid.png"]  # `mezzotint sample` puts one beside its images
    if not paths:
        raise ConfigError(f"{folder}: holds no pictures ({', '.join(sorted(SUFFIXES))})")
    return ImageSet(folder.name or str(folder), len(paths), lambda rows: _stacked(paths[rows]))


def npz_images(path: str | Path) -> ImageSet | None:
    """The images in an npz, uint8 [N, H, W, 3] as arr_0, images or samples; None if it holds none. ConfigError."""
    path = Path(path)
    with open_npz(path) as file:
        name = next((name for name in ARRAYS if name in file), None)
        if name is None:
            return None
        pixels = file[name]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise ConfigError(f"{path}: {name}: expected uint8 [N, H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    return ImageSet(path.name, len(pixels), lambda rows: from_uint8(torch.from_numpy(pixels[rows]).permute(0, 3, 1, 2)))


def dataset_images(dataset: Sequence[Any], name: str = "dataset", *, key: str = "image") -> ImageSet:
    """The images of a dataset with a length and places, as torch, torchvision and Hugging Face have them.

    Args:
        dataset: items are pictures (PIL), uint8 [H, W, 3] arrays, tensors [3, H, W] in [0, 1], or a pair whose first
            is one of those, or a mapping that has one under `key`.
    """

    def read(rows: slice) -> Tensor:
        return torch.cat([_item(dataset[index], key) for index in range(*rows.indices(len(dataset)))])

    return ImageSet(name, len(dataset), read)


def rounded(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h w"]:
    """The images as they look when saved with 8 bits; one channel becomes three."""
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round()
    return pixels.expand(-1, 3, -1, -1) / 127.5 - 1


def from_uint8(pixels: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """0..255 -> -1..1."""
    return pixels.float() / 127.5 - 1


def open_npz(path: Path) -> Any:
    """The open archive. ConfigError if it cannot be read; pickled objects are refused."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as npz ({error})") from error


def _stacked(paths: Sequence[Path]) -> Tensor:
    images = [_read(path) for path in paths]
    for image, path in zip(images, paths, strict=True):
        if image.shape != images[0].shape:
            sizes = [f"{x.shape[-1]}x{x.shape[-2]}" for x in (images[0], image)]
            raise ConfigError(
                f"{path}: is {sizes[1]}, {paths[0].name} is {sizes[0]}; a distance compares images of one size: crop "
                f"and resize them first, all in the same way"
            )
    return torch.cat(images)


def _read(path: Path) -> Tensor:
    try:
        with Image.open(path) as picture:
            return _from_picture(picture)
    except (OSError, UnidentifiedImageError) as error:
        raise ConfigError(f"{path}: cannot be read as a picture ({error})") from error


def _from_picture(picture: Image.Image) -> Tensor:
    return from_uint8(torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None])


def _item(item: Any, key: str) -> Tensor:
    """[1, 3, H, W] of one item of a dataset."""
    if isinstance(item, dict):
        item = item[key]
    elif isinstance(item, tuple | list):
        item = item[0]
    if isinstance(item, Image.Image):
        return _from_picture(item)
    x = torch.as_tensor(item)
    if x.dtype == torch.uint8 and x.ndim == 3 and x.shape[-1] == 3:
        return from_uint8(x.permute(2, 0, 1)[None])
    if x.is_floating_point() and x.ndim == 3 and x.shape[0] in (1, 3):
        return rounded(x[None] * 2 - 1)
    raise ConfigError(f"dataset: expected pictures, uint8 [H, W, 3] or float [3, H, W], got {x.dtype} {list(x.shape)}")
