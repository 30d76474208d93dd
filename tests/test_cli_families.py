"""The command line on conditional and latent models: prompts, classes, guidance, and what is said about each image."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from families import CONDITIONAL, FAMILIES, LATENT
from mezzotint.cli.app import run
from mezzotint.config import QuantizeConfig
from mezzotint.recipes.nearest import nearest

Answer = Callable[..., dict]
FAST = ["--steps", "2", "--json"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of tiny pipelines; their weights as the shipped ones, in half precision."""
    root = tmp_path_factory.mktemp("families")
    for name in LATENT:
        FAMILIES[name]().to(torch.float16).save_pretrained(root / name)
    (root / "sd" / "prompts.json").write_text(json.dumps({"calibration": ["an ant"], "evaluation": ["a red apple"]}))
    return {name: str(root / name) for name in LATENT}


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Answer:
    """Runs a command and returns what it says in JSON."""
    monkeypatch.chdir(tmp_path)

    def ask(*words: str) -> dict:
        capsys.readouterr()
        assert run(list(words)) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return ask


@pytest.mark.parametrize("name", LATENT)
def test_every_family_is_drawn_in_its_own_way(name: str, models: dict[str, str], answer: Answer) -> None:
    found = answer("sample", models[name], "--seeds", "0..2", "-o", "images", *FAST)
    protocols = {"ldm-vq": ("ddim", 1.0, 1.0), "ldm-kl": ("ddim", 0.0, 1.0), "ldm-class": ("ddim", 0.0, 3.0)}
    sampler = found["sampler"]
    expected = protocols.get(name, ("plms", 0.0, 7.5))
    assert (sampler["kind"], sampler["eta"], sampler["guidance_scale"]) == expected
    with Image.open("images/seed-00001.png") as image:
        assert image.size == ((32, 32) if "vqvae" in [path.name for path in Path(models[name]).iterdir()] else (64, 64))
    assert (found["conditions"] is not None) == (name in CONDITIONAL)
    assert Path("images/images.json").exists() == (name in CONDITIONAL)


def test_decoding_is_told_apart_from_sampling(
    models: dict[str, str], answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["sample", models["ldm-vq"], "--seeds", "0..2", "--steps", "2"]) == 0
    _, sampled, decoded = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"sampled in [\d.]+ s \(6 steps\)", sampled)
    assert re.fullmatch(r"decoded images in [\d.]+ s \(3 steps\)", decoded)


def test_prompts_go_round_and_stand_beside_the_images(models: dict[str, str], answer: Answer) -> None:
    words = ["--prompt", "a red apple", "--prompt", "an ant", "--guidance", "2.5", "-o", "images"]
    found = answer("sample", models["sd"], "--seeds", "4,5,9", *words, *FAST)
    assert found["conditions"] == ["a red apple", "an ant", "a red apple"]
    assert found["sampler"]["guidance_scale"] == 2.5
    assert json.loads(Path("images/images.json").read_text()) == [
        {"file": "seed-00004.png", "seed": 4, "shows": "a red apple"},
        {"file": "seed-00005.png", "seed": 5, "shows": "an ant"},
        {"file": "seed-00009.png", "seed": 9, "shows": "a red apple"},
    ]


def test_a_seed_and_a_prompt_are_one_image(models: dict[str, str], answer: Answer) -> None:
    Path("prompts.txt").write_text("a red apple\nan ant\n")
    answer("sample", models["sd"], "--seeds", "0..3", "--prompts", "prompts.txt", "-o", "many", *FAST)
    answer("sample", models["sd"], "--seeds", "3", "--prompt", "an ant", "-o", "one", "--batch-size", "1", *FAST)
    answer("sample", models["sd"], "--seeds", "3", "--prompt", "a red apple", "-o", "other", *FAST)
    many, one, other = (Image.open(f"{folder}/seed-00003.png") for folder in ("many", "one", "other"))
    pixels = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int() for image in (many, one, other)]
    assert (pixels[0] - pixels[1]).abs().max() <= 1
    assert (pixels[0] - pixels[2]).abs().max() > 1


def test_prompts_beside_the_model_are_the_usual_ones(models: dict[str, str], answer: Answer) -> None:
    assert answer("sample", models["sd"], "--seeds", "0,1", *FAST)["conditions"] == ["a red apple"] * 2


def test_classes_are_numbers(models: dict[str, str], answer: Answer) -> None:
    found = answer("sample", models["ldm-class"], "--labels", "3,0..1", "--seeds", "0..3", *FAST)
    assert found["conditions"] == ["class 3", "class 0", "class 1", "class 3"]
    usual = answer("sample", models["ldm-class"], "--seeds", "0..3", "-o", "usual", *FAST)["conditions"]
    assert all(int(label.split()[1]) % 2 == 1 for label in usual)


BAD = {
    "labels for text": ("sd", ["--labels", "3"], "--labels: StableDiffusionPipeline takes prompts; use --prompt"),
    "text for classes": ("ldm-class", ["--prompt", "ant"], "--prompt: ClassConditionalPipeline takes class labels"),
    "no such class": ("ldm-class", ["--labels", "8"], "class label 8: ClassConditionalPipeline has the classes 0 to 7"),
    "no classes at all": ("ldm-vq", ["--labels", "1"], "--labels: LDMPipeline is unconditional"),
    "guidance of none": ("ldm-kl", ["--guidance", "2"], "--guidance: LatentKLPipeline is unconditional"),
    "quadratic plms": ("sd", ["--spacing", "quadratic"], "plms needs evenly spaced times"),
}


@pytest.mark.parametrize(("name", "words", "message"), BAD.values(), ids=BAD)
def test_what_a_model_does_not_take_is_one_line(
    name: str,
    words: list[str],
    message: str,
    models: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["sample", models[name], *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


SMALL = ["--recipe", "nearest", "--calib-size", "2", "--steps", "2", "--json"]


@pytest.mark.parametrize("name", CONDITIONAL)
def test_quantize_sample_compare(
    name: str,
    models: dict[str, str],
    answer: Answer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The artifact is drawn as it was calibrated, with its own prompts; what is compared never calibrated."""
    from mezzotint.recipes import registry

    quick = {"nearest": lambda *words: few_thresholds(nearest(*words))}
    monkeypatch.setattr(registry, "RECIPES", {**registry.RECIPES, **quick})
    answer("quantize", models[name], "-o", "quantized", "--guidance", "2", *SMALL)
    drawn = answer("sample", "quantized", "--seeds", "0,1", "-o", "images", "--json")
    assert (drawn["sampler"]["steps"], drawn["sampler"]["guidance_scale"]) == (2, 2.0)
    usual = drawn["conditions"]
    assert usual == ["a red apple"] * 2 if name == "sd" else all(int(label.split()[1]) % 2 for label in usual)
    assert run(["compare", models[name], "quantized", "--samples", "2", "-o", "report.html", "--json"]) == 0
    out, err = capsys.readouterr()
    found, phases = json.loads(out), [line.partition(" in ")[0] for line in err.splitlines()]
    assert phases[-3:] == ["sampled both models", "decoded both models", "measured"]
    assert found["conditions"] == usual
    assert found["sampler"]["guidance_scale"] == 2.0
    assert found["sqnr_db"] > 5
    assert usual[0] in Path("report.html").read_text()


def few_thresholds(config: QuantizeConfig) -> QuantizeConfig:
    """Ranges are found among 2 clip thresholds, not 100."""
    return config.model_copy(update={"ranges": config.ranges.model_copy(update={"candidates": 2})})
