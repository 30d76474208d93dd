"""`mezzotint evaluate`: folders, npz and models against references, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mezzotint.cli.app import run
from tiny import tiny_pipeline


def pixels(count: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder of pictures, an npz of others, and a tiny model."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "pictures").mkdir()
    for index, picture in enumerate(pixels(9, seed=0)):
        Image.fromarray(picture).save(folder / "pictures" / f"seed-{index}.png")
    np.savez(folder / "real.npz", arr_0=pixels(8, seed=1))
    tiny_pipeline().save_pretrained(folder / "model")
    return {name: str(folder / name) for name in ("pictures", "real.npz", "model", "statistics.npz")}


def evaluate(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert run(["evaluate", *words, "--json", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out)


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(["evaluate", *words, "--device", "cpu"]) == 2
    return capsys.readouterr().err


def test_a_folder_against_images(places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(capsys, places["pictures"], "-r", places["real.npz"], "--metrics", "fd-zoo, kd-zoo")
    assert found["images"] == "pictures"
    rows = {score["name"]: score for score in found["scores"]}
    assert set(rows) == {"FD-zoo", "KD-zoo"}
    for score in rows.values():
        assert score["count"] == 9
        assert score["reference"] == "real"
        assert score["low"] <= score["value"] <= score["high"]
        assert "9 images" in score["warning"]
        assert "64 px" in score["resize"]


def test_saved_statistics_are_a_reference(places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    path = places["statistics.npz"]
    made = evaluate(capsys, places["real.npz"], "--metrics", "fd-zoo", "--save-statistics", path)
    assert made == {"statistics": path, "features": "fd-zoo", "images": 8}
    by_images = evaluate(capsys, places["pictures"], "-r", places["real.npz"])["scores"][0]["value"]
    by_statistics = evaluate(capsys, places["pictures"], "-r", path)["scores"][0]["value"]
    assert by_statistics == pytest.approx(by_images, rel=1e-9)
    assert "exists already" in complaint(capsys, places["real.npz"], "--save-statistics", path)


def test_a_model_is_drawn_from(places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    words = (places["model"], "--samples", "2", "--steps", "1", "-r", places["real.npz"])
    found = evaluate(capsys, *words)
    assert found["images"] == "model"
    assert found["scores"][0]["count"] == 2
    assert evaluate(capsys, *words, "--seed", "9") != found


def test_the_table_has_the_warning(places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", places["pictures"], "-r", places["real.npz"], "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "FD-zoo" in out
    assert "the protocol takes" in " ".join(out.split())


def test_what_cannot_be_scored_says_why(
    places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "needs a reference" in complaint(capsys, places["pictures"])
    assert "expected some of fid" in complaint(capsys, places["pictures"], "--metrics", "fod")
    assert "no such reference" in complaint(capsys, places["pictures"], "-r", str(tmp_path / "none"))
    assert "--resize" in complaint(capsys, places["pictures"], "--resize", "tf2")
    assert "one caption for each of the 9" in complaint(capsys, places["pictures"], "--metrics", "clip")
    assert "is unconditional" in complaint(capsys, places["model"], "--captions", _captions(tmp_path), "--samples", "2")
    np.savez(tmp_path / "mu.npz", mu=np.zeros(3))
    assert "holds no images" in complaint(capsys, str(tmp_path / "mu.npz"))


def test_captions_of_a_sampled_folder_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index, picture in enumerate(pixels(2, seed=0)):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    entries = [{"file": f"{index}.png", "seed": index, "shows": "a"} for index in (1, 0)]
    (tmp_path / "images.json").write_text(json.dumps(entries[:1]))
    assert "one caption for each of the 2 images, got 1" in _flat(complaint(capsys, str(tmp_path), "--metrics", "clip"))
    (tmp_path / "images.json").write_text("[{}]")
    assert "not as mezzotint sample writes it" in _flat(complaint(capsys, str(tmp_path)))


def _captions(folder: Path) -> str:
    (folder / "captions.txt").write_text("a cat\n")
    return str(folder / "captions.txt")


def _flat(text: str) -> str:
    return " ".join(text.split())
