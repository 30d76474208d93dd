from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint.errors import OutputError
from mezzotint.evaluation import pictures


def test_minus_one_is_black_one_is_white_and_outside_is_clipped() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).view(1, 1, 5).expand(3, 1, 5)
    assert pictures.to_bytes(x)[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_png_keeps_every_byte() -> None:
    image = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    uri = pictures.data_uri(image)
    head, body = uri.split(",")
    assert head == "data:image/png;base64"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))
    np.testing.assert_array_equal(pixels, pictures.to_bytes(image).numpy())


def test_one_channel_becomes_grey() -> None:
    grey = pictures.to_bytes(torch.tensor([[[0.5]]]))
    assert grey.tolist() == [[[191, 191, 191]]]


def test_grid_puts_images_row_by_row() -> None:
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 2, 2) / 10
    sheet = pictures.grid(images, columns=3, gap=1)
    assert sheet.shape == (1, 5, 8)
    torch.testing.assert_close(sheet[0, 0, [0, 3, 6]], torch.tensor([0.0, 0.1, 0.2]))
    torch.testing.assert_close(sheet[0, 3, [0, 3, 6]], torch.tensor([0.3, 0.4, 1.0]))  # the last place is paper
    assert bool((sheet[0, 2] == 1).all())


def test_paired_grid_has_the_float_model_above() -> None:
    a, b = torch.full((4, 3, 2, 2), -1.0), torch.full((4, 3, 2, 2), 0.5)
    sheet = pictures.paired_grid(a, b, gap=0)
    assert sheet.shape == (3, 4, 8)
    assert bool((sheet[:, :2] == -1).all())
    assert bool((sheet[:, 2:] == 0.5).all())


def test_difference_is_black_where_nothing_changed() -> None:
    a, b = torch.tensor([0.2, 0.2, -1.0]).view(1, 1, 3), torch.tensor([0.2, 0.3, 1.0]).view(1, 1, 3)
    torch.testing.assert_close(pictures.difference(a, b, gain=8.0).flatten(), torch.tensor([-1.0, -0.2, 1.0]))


def test_grid_png_is_enlarged_without_smoothing(tmp_path: Path) -> None:
    path = pictures.grid_png(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1), tmp_path / "grid.png", columns=2, scale=3)
    pixels = np.asarray(Image.open(path))
    assert pixels.shape == (3, 12, 3)
    assert set(np.unique(pixels)) == {0, 255}


def test_unwritable_place_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"missing/x\.png: cannot write the picture"):
        pictures.grid_png(torch.zeros(1, 3, 2, 2), tmp_path / "missing" / "x.png", columns=1)


@pytest.mark.parametrize(
    ("count", "side", "images", "columns"),
    [(3, 8, 3, 3), (8, 8, 8, 8), (15, 8, 8, 8), (100, 8, 32, 8), (100, 128, 24, 8), (100, 512, 8, 8)],
)
def test_a_contact_sheet_is_full_and_small_enough(count: int, side: int, images: int, columns: int) -> None:
    drawn = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1).expand(count, 3, side, side) / count
    sheet = pictures.contact_sheet(drawn)
    assert (sheet.count, sheet.columns) == (images, columns)
    assert sheet.picture.shape == (3, images // columns * side, columns * side)
    assert torch.equal(sheet.picture[0, ::side, ::side].flatten(), drawn[:images, 0, 0, 0])
