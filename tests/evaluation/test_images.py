from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint.errors import ConfigError
from mezzotint.evaluation.images import (
    ImageSet,
    dataset_images,
    folder_images,
    from_uint8,
    npz_images,
    rounded,
    tensor_images,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3)).astype(np.uint8)
EXPECTED = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 127.5 - 1


def whole(images: ImageSet, size: int = 2) -> torch.Tensor:
    return torch.cat(list(images.batches(size)))


def test_a_folder_an_npz_a_tensor_and_a_dataset_are_the_same_images(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    for index, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / ("deeper" if index > 2 else ".") / f"x{index}.png")
    (tmp_path / "deeper").rename(tmp_path / "z")
    Image.fromarray(PIXELS[0]).save(tmp_path / "grid.png")  # of `mezzotint sample`: no image of its own
    np.savez(tmp_path / "images.npz", arr_0=PIXELS)
    pairs = [(Image.fromarray(pixels), 3) for pixels in PIXELS]
    mappings = [{"image": pixels} for pixels in PIXELS]
    floats = list((EXPECTED + 1) / 2)
    sets = [folder_images(tmp_path), npz_images(tmp_path / "images.npz"), tensor_images(EXPECTED)]
    sets += [dataset_images(items) for items in (pairs, mappings, floats)]
    for images in sets:
        assert images is not None
        assert images.count == 5
        for size in (1, 2, 5, 9):
            torch.testing.assert_close(whole(images, size), EXPECTED, rtol=0, atol=1e-6)


def test_images_are_seen_as_the_8_bit_pictures_they_would_be_saved_as() -> None:
    x = torch.rand(4, 3, 5, 5) * 2.4 - 1.2
    seen = whole(tensor_images(x))
    assert torch.equal(seen, rounded(seen))
    assert (seen - x.clamp(-1, 1)).abs().max() <= 1 / 255 + 1e-6
    codes = ((x.clamp(-1, 1) + 1) * 127.5).round().byte()
    torch.testing.assert_close(seen, from_uint8(codes))


def test_grey_images_get_three_channels() -> None:
    x = torch.rand(2, 1, 4, 4) * 2 - 1
    assert whole(tensor_images(x)).shape == (2, 3, 4, 4)
    with pytest.raises(ConfigError, match=r"expected images \[N, 3, H, W\]"):
        tensor_images(torch.zeros(2, 4, 5, 5))


def test_images_of_two_sizes_are_an_error(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    Image.fromarray(PIXELS[0][:4]).save(tmp_path / "b.png")
    with pytest.raises(ConfigError, match=r"b.png: is 8x4, a.png is 8x6; .* crop and resize"):
        whole(folder_images(tmp_path))


def test_what_holds_no_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no pictures"):
        folder_images(tmp_path)
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(ConfigError, match=r"bad.png: cannot be read as a picture"):
        whole(folder_images(tmp_path))
    np.savez(tmp_path / "floats.npz", arr_0=np.zeros((2, 4, 4, 3)))
    with pytest.raises(ConfigError, match=r"arr_0: expected uint8 \[N, H, W, 3\], got float64 \[2, 4, 4, 3\]"):
        npz_images(tmp_path / "floats.npz")
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(3))
    assert npz_images(tmp_path / "statistics.npz") is None
    with pytest.raises(ConfigError, match="expected pictures"):
        whole(dataset_images([np.zeros((3, 3))]))
