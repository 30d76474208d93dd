"""Images of the models as PNG: single, in a grid, in pairs, and their difference made visible.

Images are float [-1, 1] with 1 or 3 channels (other counts show their first three, one shows as grey); in a PNG -1 is
0 and 1 is 255, rounded to nearest.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mezzotint.errors import OutputError

GAP = 2
PAPER = 1.0
SHEET_COLUMNS, SHEET_ROWS = 8, 4
SHEET_PIXELS = 400_000  # of one contact sheet; caps how many images it holds


def to_bytes(images: Float[Tensor, "*n c h w"]) -> UInt8[Tensor, "*n h w 3"]:
    """8-bit RGB of images in [-1, 1], channels last; values outside are clipped."""
    grey = images.shape[-3] < 3
    rgb = images[..., :1, :, :].expand(*images.shape[:-3], 3, -1, -1) if grey else images[..., :3, :, :]
    return ((rgb.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1)


def difference(a: Float[Tensor, "*n c h w"], b: Float[Tensor, "*n c h w"], gain: float) -> Float[Tensor, "*n c h w"]:
    """|a - b| times `gain` on a black ground, as an image in [-1, 1]: black where nothing changed."""
    return ((a - b).abs() * gain - 1).clamp(-1, 1)


def grid(images: Float[Tensor, "n c h w"], columns: int, gap: int = GAP) -> Float[Tensor, "c gh gw"]:
    """The images row by row in `columns` columns, with white gaps of `gap` pixels; the last row may be short."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = images.new_full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), PAPER)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


@dataclass(frozen=True)
class ContactSheet:
    """The first `count` images of a set as one picture without gaps, `columns` in a row."""

    picture: Tensor
    count: int
    columns: int


def contact_sheet(images: Float[Tensor, "n c h w"]) -> ContactSheet:
    """The first images in full rows, as many as a page carries; two sets of one shape give sheets of one shape."""
    columns = min(SHEET_COLUMNS, len(images))
    fitting = SHEET_PIXELS // (columns * images.shape[-1] * images.shape[-2])
    count = columns * max(1, min(SHEET_ROWS, len(images) // columns, fitting))
    return ContactSheet(grid(images[:count], columns, gap=0), count, columns)


def paired_grid(
    float_images: Float[Tensor, "n c h w"], quantized_images: Float[Tensor, "n c h w"], gap: int = GAP
) -> Float[Tensor, "c gh gw"]:
    """Two rows, one column a seed: float model above, quantized model beneath."""
    return grid(torch.cat([float_images, quantized_images]), columns=len(float_images), gap=gap)


def png_bytes(image: Float[Tensor, "c h w"], scale: int = 1) -> bytes:
    """One image as PNG, every pixel enlarged to a square of `scale` pixels."""
    pixels = to_bytes(image).repeat_interleave(scale, dim=0).repeat_interleave(scale, dim=1)
    buffer = io.BytesIO()
    Image.fromarray(pixels.cpu().numpy()).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def data_uri(image: Float[Tensor, "c h w"]) -> str:
    """One image as a PNG that stands inside a page."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode("ascii")


def grid_png(images: Float[Tensor, "n c h w"], path: str | Path, columns: int, scale: int = 1) -> Path:
    """Writes the images as one PNG, row by row in `columns` columns, every pixel enlarged to `scale` pixels."""
    return write_png(grid(images, columns), path, scale)


def write_png(image: Float[Tensor, "c h w"], path: str | Path, scale: int = 1) -> Path:
    """Writes one image, such as `paired_grid` makes, as PNG."""
    path = Path(path)
    try:
        path.write_bytes(png_bytes(image, scale))
    except OSError as error:
        raise OutputError(f"{path}: cannot write the picture: {error}") from error
    return path
