"""`mezzotint quantize` on conditional models: what calibrates, and what is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from families import FAMILIES
from mezzotint.calibration import ranges
from mezzotint.cli.app import run

SMALL = ["--recipe", "nearest", "--bits", "w8a8", "--calib-size", "3", "--steps", "2"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of tiny float pipelines by family."""
    root = tmp_path_factory.mktemp("float")
    for family in ("ldm-kl", "ldm-class", "sd"):
        FAMILIES[family]().save_pretrained(root / family)
    return {folder.name: str(folder) for folder in root.iterdir()}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in; ranges are searched on few values, that is quick."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ranges, "SAMPLED_VALUES", 256)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def config_of(folder: str) -> dict[str, object]:
    config: dict[str, object] = json.loads(Path(folder, "manifest.json").read_text())["config"]
    return config


def test_prompts_of_a_file_calibrate(models: dict[str, str], elsewhere: Path) -> None:
    (elsewhere / "prompts.txt").write_text("red app\na cat\n")
    words = ["--prompts", "prompts.txt", "--guidance", "2"]
    assert run(["quantize", models["sd"], "-o", "out", *words, *SMALL]) == 0
    config = config_of("out")
    assert config["conditions"] == ["red app", "a cat"]
    sampler = {"kind": "plms", "steps": 2, "spacing": "uniform", "eta": 0.0, "guidance_scale": 2.0}
    assert config["sampler"] == sampler


def test_labels_calibrate_and_the_sampler_is_the_familys(models: dict[str, str]) -> None:
    assert run(["quantize", models["ldm-class"], "-o", "out", "--labels", "0..2", *SMALL]) == 0
    config = config_of("out")
    assert config["conditions"] == [0, 1, 2]
    sampler = {"kind": "ddim", "steps": 2, "spacing": "uniform", "eta": 0.0, "guidance_scale": 3.0}
    assert config["sampler"] == sampler


WRONG = {
    "prompts for classes": ("ldm-class", ["--prompts", "prompts.txt"], "takes class labels; use --labels"),
    "labels for text": ("sd", ["--labels", "1"], "takes prompts"),
    "prompts for nothing": ("ldm-kl", ["--prompts", "prompts.txt"], "is unconditional"),
    "guidance for nothing": ("ldm-kl", ["--guidance", "2"], "--guidance: LatentKLPipeline is unconditional"),
    "no such class": ("ldm-class", ["--labels", "8"], "class label 8"),
    "both": ("sd", ["--labels", "1", "--prompts", "prompts.txt"], "--prompts and --labels: give one of them"),
    "noise for plms": ("sd", ["--eta", "0.5"], "plms adds no noise"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_what_does_not_fit_the_model_is_one_line(
    case: str, models: dict[str, str], elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family, words, complaint = WRONG[case]
    (elsewhere / "prompts.txt").write_text("a cat\n")
    assert run(["quantize", models[family], "-o", "out", *words, *SMALL]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("loaded ")]
    assert len(lines) == 1
    assert complaint in lines[0]
    assert sorted(path.name for path in elsewhere.iterdir()) == ["prompts.txt"]
