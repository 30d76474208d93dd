"""The programs in zoo/ import each other by bare names, as Python finds them beside the program that is run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ZOO = Path(__file__).parents[2] / "zoo"
if not ZOO.is_dir():  # a source distribution has the tests without the zoo
    collect_ignore_glob = ["test_*.py"]
sys.path.append(str(ZOO))

SOURCES = ("noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat")
NAMES = {
    "Food & Drink": ("red-apple", "green-apple", "banana", "pear", "carrot"),
    "Animals & Nature": ("dog-face", "fox", "tulip"),
    "Smileys & Emotion": ("grinning-face", "blue-heart"),
    "People & Body": ("man-running", "man-running-facing-right", "waving-hand"),
}


def disc(hue_rgb: tuple[int, int, int], size: int, radius: float) -> np.ndarray:
    """uint8 [size, size, 3]: a filled circle on white."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    image = np.full((size, size, 3), 255, dtype=np.uint8)
    image[x**2 + y**2 < (radius * size) ** 2] = hue_rgb
    return image


def emoji_rows() -> list[dict[str, Any]]:
    """Rows as zoo/render.py writes them: every name in four sets; pears are held out."""
    return [
        {
            "name": name,
            "text": name.replace("-", " "),
            "group": group,
            "source": source,
            "licence": "MIT",
            "flippable": "right" not in name,
            "held_out": name == "pear",
        }
        for source in SOURCES
        for group, names in NAMES.items()
        for name in names
    ]


def emoji_pixels(size: int) -> np.ndarray:
    """uint8 [N, size, size, 3]: a disc of its own size and colour for each row."""
    rows, generator = emoji_rows(), np.random.default_rng(0)
    colours = [tuple(int(v) for v in generator.permutation((230, 90, 20))) for _ in rows]
    return np.stack([disc(colour, size, 0.2 + 0.2 * i / len(rows)) for i, colour in enumerate(colours)])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with emoji-32.npz and emoji-64.npz as zoo/render.py writes them."""
    for size in (32, 64):
        np.savez_compressed(tmp_path / f"emoji-{size}.npz", images=emoji_pixels(size))
        (tmp_path / f"emoji-{size}.json").write_text(json.dumps(emoji_rows()))
    return tmp_path
