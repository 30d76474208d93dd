"""`mezzotint import`: a checkpoint in, a folder out, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import mezzotint
from checkpoint_fixtures import SMALL, Fixture
from mezzotint.cli.app import run

CHURCH = Fixture.read(SMALL / "ldm8-church.json")


@pytest.fixture(scope="module")
def entries() -> dict[str, torch.Tensor]:
    return CHURCH.entries()


@pytest.fixture
def checkpoint(tmp_path: Path, entries: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small church checkpoint in the current folder; its YAML is called other.yaml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    save_file(entries, tmp_path / "church.safetensors")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(CHURCH.data["config"]))
    return Path("church.safetensors")


def run_json(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert run([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_folder_and_what_is_said_of_it(
    checkpoint: Path, entries: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_json(capsys, "import", str(checkpoint), "--config", "other.yaml")
    folder = Path(result["folder"])
    assert folder == Path.cwd() / "church"
    assert result["pipeline"] == "LatentKLPipeline"
    assert result["config"] == "other.yaml"
    assert result["weights"] == "ema"
    assert result["absent"] == []
    pipeline = mezzotint.load(folder)
    for name, part in result["parts"].items():
        assert part["class"] == type(pipeline.components[name]).__name__
    assert result["parts"]["unet"]["parameters"] == sum(p.numel() for p in pipeline.unet.parameters())
    assert torch.equal(pipeline.unet.conv_out.weight, entries["model_ema.diffusion_modelout2weight"])
    assert {path.dtype for path in load_file(folder / "unet/diffusion_pytorch_model.safetensors").values()} == {
        torch.float32
    }
    assert not [path for path in Path.cwd().iterdir() if path.name.startswith(".")]  # nothing half written


def test_plain_weights_and_a_table(
    checkpoint: Path, entries: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["import", str(checkpoint), "--config", "other.yaml", "--no-ema", "-o", "plain"]) == 0
    table = capsys.readouterr().out
    for words in ("LatentKLPipeline", "MultiHeadUNet2DModel", "AutoencoderKL", "other.yaml", "plain"):
        assert words in table
    unet = mezzotint.load(Path("plain")).unet
    assert torch.equal(unet.conv_out.weight, entries["model.diffusion_model.out.2.weight"])


def test_what_is_left_out_is_said(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    kept = {key: value for key, value in load_file(checkpoint).items() if not key.startswith("first_stage_model.")}
    save_file(kept, "bare.safetensors")
    assert run(["import", "bare.safetensors", "--config", "other.yaml"]) == 0
    assert "left out" in capsys.readouterr().out
    assert caplog.messages == ["vae: the checkpoint holds nothing of it; the pipeline comes without"]


def test_existing_folders(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["import", str(checkpoint), "--config", "other.yaml", "-o", "out"]
    Path("out").mkdir()
    assert run(words) == 0  # an empty folder is none
    capsys.readouterr()
    assert run(words) == 2
    assert "exists already; choose another folder, or replace it with --overwrite" in capsys.readouterr().err
    assert run([*words, "--overwrite"]) == 0
    for name, file in (("papers", "thesis.tex"), ("artifact", "manifest.json")):
        Path(name).mkdir()
        (Path(name) / file).write_text("{}")
        assert run([*words, "-o", name, "--overwrite"]) == 2
        assert "holds something else than a float pipeline; it will not be replaced" in capsys.readouterr().err
        assert (Path(name) / file).exists()
    assert run([*words, "-o", "other.yaml"]) == 2
    assert "is a file; choose a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.ckpt"], "nowhere.ckpt: no such file"),
        (["."], "a folder; name the checkpoint file"),
        (["other.yaml"], "other.yaml: no torch checkpoint, or a truncated one"),
        (["church.safetensors"], "none of the published models"),
        (["church.safetensors", "--config", "nowhere.yaml"], "nowhere.yaml: cannot be read: No such file"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    checkpoint: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(Path.cwd().iterdir())
    assert run(["import", *words]) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("mezzotint: error:") == 1
    assert "Traceback" not in complaint
    assert set(Path.cwd().iterdir()) == before


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["import", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "CompVis",
        "ermongroup/ddim",
        "Stable Diffusion v1",
        "--no-ema",
        "--config",
        "mezzotint import sd-v1",
    ):
        assert words in text


def test_commands_take_a_checkpoint_in_place_of_a_folder(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.yaml").rename("church.yaml")
    result = run_json(capsys, "inspect", str(checkpoint))
    assert result["model"] == "church.safetensors"
