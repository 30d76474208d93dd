"""The command line: right words give results, wrong words give one line, and nothing is ever half written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DanceDiffusionPipeline, DDIMScheduler, UNet1DModel
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from mezzotint.cli import options
from mezzotint.cli.app import run
from mezzotint.cli.inputs import parse_seeds
from mezzotint.cli.output import size
from mezzotint.config import QuantizeConfig
from mezzotint.errors import ConfigError
from mezzotint.gpu.network import lower_network_, lowered_report
from mezzotint.loading import load
from mezzotint.models import zoo
from mezzotint.recipes.registry import PRESETS, RECIPES, make_config
from tiny import tiny_pipeline

SMALL = ["--recipe", "nearest", "--steps", "2", "--calib-size", "2"]
LEARN = ["--preset", "fast", "--steps", "2", "--calib-size", "4", "--iters", "2", "--batch-size", "2"]
COMMANDS = ["quantize", "sample", "compare", "inspect", "zoo"]


@pytest.fixture(scope="session", autouse=True)
def two_clip_thresholds() -> Iterator[None]:
    """Ranges are found among 2 clip thresholds, not 100: a run on the tiny model takes a second."""

    def quick(recipe: Callable[..., QuantizeConfig], *words: str) -> QuantizeConfig:
        config = recipe(*words)
        return config.model_copy(update={"ranges": config.ranges.model_copy(update={"candidates": 2})})

    with pytest.MonkeyPatch.context() as patch:
        for name, recipe in list(RECIPES.items()):
            patch.setitem(RECIPES, name, partial(quick, recipe))
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny float pipeline."""
    folder = tmp_path_factory.mktemp("float") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def artifact(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of its W4A8 artifact, made by the command."""
    folder = str(tmp_path_factory.mktemp("quantized") / "tiny-w4a8")
    assert run(["quantize", model, "-o", folder, "--json", *SMALL]) == 0
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in an empty folder, so that a stray file is seen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr; there must be nothing on stdout."""
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("loaded ")]
    assert len(lines) == 1, err
    return lines[0]


# Help


def test_help_comes_without_torch() -> None:
    code = (
        "import sys; from mezzotint.cli.app import run; assert run(['quantize', '--help']) == 0;"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage: mezzotint" in text
    assert command == "zoo" or ("Example" in text and "--json" in text and "--debug" in text)


def test_help_explains_every_recipe_and_preset(capsys: pytest.CaptureFixture[str]) -> None:
    run(["quantize", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in (*RECIPES, *PRESETS):
        assert f"{name}:" in text
    default = make_config()
    for number in (
        default.selection.calib_size,
        default.reconstruction.iters if default.reconstruction else None,
        default.sampler.steps,
        default.seed,
    ):
        assert str(number) in text


def test_flags_mean_the_same_everywhere() -> None:
    flags: dict[str, set[str]] = {}
    for command in COMMANDS[:-1]:
        done = subprocess.run(
            [sys.executable, "-c", f"from mezzotint.cli.app import run; run(['{command}', '--help'])"],
            capture_output=True,
            text=True,
            check=True,
        )
        flags[command] = {word for word in done.stdout.split() if word.startswith("--")}
    everywhere = {"--device", "--json", "--debug"}
    drawing = {"--steps", "--scheduler", "--spacing", "--eta", "--guidance", "--batch-size", "--overwrite", "--out"}
    assert all(everywhere <= found for found in flags.values())
    assert all(drawing <= flags[command] for command in ("quantize", "sample", "compare"))
    assert {"--recipe", "--preset", "--calib-size", "--iters", "--seed", "--resume", "--bits"} <= flags["quantize"]


def test_the_default_model_is_the_zoos() -> None:
    assert options.DEFAULT_MODEL == zoo.DEFAULT_MODEL


# The way through


def test_quantize_answers_in_json(model: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quantize", model, "-o", "small", "--bits", "w8a8", "--json", *SMALL]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["artifact"] == "small"
    assert (answer["bits"], answer["recipe"]) == ("w8a8", "nearest")
    assert answer["bytes"] < answer["float_bytes"]
    assert [path.name for path in elsewhere.iterdir()] == ["small"]


def test_quantize_names_its_folder_after_model_and_bits(model: str, elsewhere: Path) -> None:
    assert run(["quantize", model, "--bits", "W4A32", *SMALL]) == 0
    assert (elsewhere / "tiny-w4a32" / "manifest.json").is_file()


def test_sample_writes_an_image_for_every_seed(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sample", artifact, "-o", "images", "--seeds", "0..2,7", "--steps", "3", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("sampled in ")  # pixels need no decoding
    answer = json.loads(out)
    assert answer["seeds"] == [0, 1, 2, 7]
    names = {path.name for path in Path("images").iterdir()}
    assert names == {"seed-00000.png", "seed-00001.png", "seed-00002.png", "seed-00007.png", "grid.png"}
    with Image.open("images/seed-00007.png") as image:
        assert image.size == (16, 16)


def test_a_seed_draws_the_same_image_whatever_else_is_drawn(artifact: str) -> None:
    assert run(["sample", artifact, "-o", "some", "--seeds", "0..4", "--steps", "3", "--batch-size", "2"]) == 0
    assert run(["sample", artifact, "-o", "one", "--seeds", "3", "--steps", "3"]) == 0
    assert Path("some/seed-00003.png").read_bytes() == Path("one/seed-00003.png").read_bytes()


def test_sample_does_not_overwrite_unless_told(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", artifact, "-o", "images", "--seeds", "0", "--steps", "2"]
    assert run(words) == 0
    capsys.readouterr()
    assert run(words) == 2
    assert "seed-00000.png: exists already" in one_line(capsys)
    assert run([*words, "--overwrite"]) == 0


def test_compare_writes_a_report_and_says_where(model: str, artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", model, artifact, "--samples", "4", "--steps", "3", "-o", "report.html"]
    assert run(words) == 0
    text = capsys.readouterr().out
    assert "report.html" in text
    assert "PSNR, mean of images" in text
    assert Path("report.html").read_text().startswith("<!")
    assert run([*words, "--json", "--overwrite"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["report"], answer["bits"], answer["samples"]) == ("report.html", "w4a8", 4)


def test_inspect_lists_every_layer_of_an_artifact(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", artifact, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    manifest = json.loads((Path(artifact) / "manifest.json").read_text())
    assert [layer["name"] for layer in answer["layers"]] == list(manifest["layers"])
    assert all(layer["kernel"] and layer["reason"] for layer in answer["layers"])
    conv_in = next(layer for layer in answer["layers"] if layer["name"] == "conv_in")
    assert (conv_in["kind"], conv_in["weight_bits"], conv_in["shape"]) == ("conv2d", 8, [16, 3, 3, 3])
    weights = Path(artifact) / "unet" / "quantized.safetensors"
    assert answer["totals"]["bytes"] == weights.stat().st_size
    tensors = load_file(weights).values()
    assert answer["totals"]["tensor_bytes"] == sum(tensor.nbytes for tensor in tensors)
    assert run(["inspect", artifact]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "conv_in" in shown
    assert f"network takes {size(answer['totals']['tensor_bytes'])}, as tables and mezzotint bench count it" in shown


def test_inspect_for_a_gpu_tells_what_runs_there_once_optimized(
    artifact: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether or not one is here; the plain kernels are named as what runs otherwise."""
    assert run(["inspect", artifact, "--device", "cuda", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer["totals"]["kernels"]) == {"triton", "flash"}
    assert answer["device"] == "cuda"
    assert run(["inspect", artifact, "--device", "cuda"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Why these kernels, on a GPU after optimize()" in shown
    assert "a network that nothing optimized, plain ones: reference" in shown
    network = lower_network_(load(artifact).unet)
    reports = [lowered_report(network, layer["name"]) for layer in answer["layers"]]
    assert [(layer["kernel"], layer["reason"]) for layer in answer["layers"]] == reports


def test_inspect_says_what_would_become_of_a_float_model(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", model, "--bits", "w3a6", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {layer["weight_bits"] for layer in answer["layers"]} == {3, 8, None}
    assert {unit["kind"] for unit in answer["units"]} == {"resnet", "attention", "layer"}
    assert answer["split_shortcuts"]
    assert run(["inspect", model]) == 0
    assert "split shortcuts" in capsys.readouterr().out


def test_zoo_list_is_the_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["zoo", "list", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [found["name"] for found in answer["models"]] == [found.name for found in zoo.list_models()]


# Wrong words

BAD = {
    "no model": (["quantize", "ddim-emojy"], "no model called 'ddim-emojy'"),
    "no folder": (["inspect", "./nowhere/at/all"], "nowhere/at/all: no such folder"),
    "bits": (["quantize", "MODEL", "--bits", "w9a9"], "bits 'w9a9': weights take 2 to 8 bits"),
    "bits in words": (["quantize", "MODEL", "--bits", "int4"], "bits 'int4' cannot be read"),
    "recipe": (["quantize", "MODEL", "--recipe", "eda"], "no recipe 'eda' (did you mean 'eda-dm'?)"),
    "preset": (["quantize", "MODEL", "--preset", "slow"], "no preset 'slow'"),
    "dead option": (["quantize", "MODEL", "--recipe", "nearest", "--iters", "5"], "iters has no effect"),
    "scheduler": (["sample", "MODEL", "--scheduler", "euler"], "--scheduler: there is no 'euler'"),
    "scheduler of old": (
        ["sample", "MODEL", "--scheduler", "uniform"],
        "the spacing of the steps is --spacing uniform",
    ),
    "spacing": (["sample", "MODEL", "--spacing", "cubic"], "--spacing: there is no 'cubic'"),
    "plms": (["sample", "MODEL", "--scheduler", "plms", "--eta", "1"], "plms adds no noise: choose eta 0, not 1"),
    "prompt of none": (["sample", "MODEL", "--prompt", "an ant"], "--prompt: DDIMPipeline is unconditional"),
    "labels of none": (["compare", "MODEL", "ARTIFACT", "--labels", "1"], "--labels: DDIMPipeline is unconditional"),
    "guidance of none": (["sample", "MODEL", "--guidance", "2"], "--guidance: DDIMPipeline is unconditional"),
    "two prompts": (["sample", "MODEL", "--prompt", "a", "--labels", "1"], "--prompt and --labels: give one of them"),
    "labels": (["sample", "MODEL", "--labels", "a"], "--labels 'a' cannot be read at 'a'"),
    "no prompts": (["sample", "MODEL", "--prompts", "nowhere.txt"], "nowhere.txt: prompts cannot be read from it"),
    "eta": (["sample", "MODEL", "--eta", "2"], "--eta"),
    "steps": (["sample", "MODEL", "--steps", "0"], "Invalid value for '--steps'"),
    "seeds": (["sample", "MODEL", "--seeds", "a..b"], "--seeds 'a..b' cannot be read at 'a..b'"),
    "device": (["sample", "MODEL", "--device", "cuda:99"], "--device: cuda:99 is not there"),
    "device in words": (["sample", "MODEL", "--device", "abacus"], "--device: 'abacus' is no device"),
    "unwritable": (["quantize", "MODEL", "-o", "MODEL/model_index.json/x"], "cannot write in"),
    "a file is there": (["quantize", "MODEL", "-o", "MODEL/model_index.json"], "is a file; choose a folder"),
    "unwritable images": (["sample", "MODEL", "-o", "MODEL/model_index.json/x"], "cannot write in"),
    "report in a folder": (["compare", "MODEL", "ARTIFACT", "-o", "MODEL"], "is a folder; name a file"),
    "something is there": (["quantize", "MODEL", "-o", "MODEL"], "exists already"),
    "foreign folder": (["quantize", "MODEL", "-o", "MODEL", "--overwrite"], "holds something else"),
    "quantized twice": (["quantize", "ARTIFACT"], "is quantized already"),
    "compare backwards": (["compare", "ARTIFACT", "MODEL"], "is quantized already"),
    "compare floats": (["compare", "MODEL", "MODEL"], "is not quantized; make a quantized one with"),
    "no such option": (["quantize", "--bitz", "w4a8"], "No such option: --bitz"),
    "no such command": (["quantise"], "No such command 'quantise'"),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], message: str, model: str, artifact: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    words = [word.replace("MODEL", model).replace("ARTIFACT", artifact) for word in words]
    before = sorted(Path(model).rglob("*"))
    assert run(words) == 2
    assert message in one_line(capsys)
    assert list(elsewhere.iterdir()) == []
    assert sorted(Path(model).rglob("*")) == before


def test_a_network_that_is_no_denoiser(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = UNet1DModel(block_out_channels=(8, 8, 8), extra_in_channels=16)
    DanceDiffusionPipeline(unet=sound, scheduler=DDIMScheduler()).save_pretrained(elsewhere / "sound")
    capsys.readouterr()
    assert run(["quantize", "sound", "-o", "out"]) == 2
    assert "denoiser" in one_line(capsys)
    assert not (elsewhere / "out").exists()


def test_a_damaged_artifact_is_named(artifact: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    shutil.copytree(artifact, "damaged")
    path = elsewhere / "damaged" / "unet" / "quantized.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert run(["sample", "damaged"]) == 2
    assert "quantized.safetensors: truncated: leaf" in one_line(capsys)


# What goes wrong on the way

OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("Tried to allocate 20.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"),
]


def breaking(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_says_what_to_make_smaller(
    error: Exception, model: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(import_module("mezzotint.pipeline"), "simulate", breaking(error))
    assert run(["quantize", model, "-o", "out"]) == 2
    assert "out of memory; make --batch-size or --calib-size smaller" in one_line(capsys)
    assert list(elsewhere.iterdir()) == []


def test_a_bug_is_one_line_and_a_traceback_with_debug(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(import_module("mezzotint.pipeline"), "simulate", breaking(ZeroDivisionError("of no use")))
    assert run(["quantize", model, "-o", "out"]) == 1
    assert "unexpected ZeroDivisionError: of no use; this is a bug" in one_line(capsys)
    assert run(["quantize", model, "-o", "out", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["quantize"], ["sample"], ["inspect"]])
def test_ctrl_c_is_one_line_and_exit_code_130(
    command: list[str], model: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mezzotint.loading.load", breaking(KeyboardInterrupt()))
    assert run([*command, model]) == 130
    assert "interrupted" in one_line(capsys)
    assert list(elsewhere.iterdir()) == []


def interrupt_second_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the run stop, as by Ctrl-C, when the second unit is about to be learned."""
    from mezzotint.reconstruction import reconstruct

    real, calls = reconstruct._reconstruct_unit, []

    def stop(*words: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*words, **options)

    monkeypatch.setattr(reconstruct, "_reconstruct_unit", stop)


def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_stopped(
    model: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt_second_unit(patch)
        assert run(["quantize", model, "-o", "stopped", *LEARN]) == 130
    assert "kept in stopped.resume; the same command with --resume goes on" in capsys.readouterr().err
    assert [path.name for path in elsewhere.iterdir()] == ["stopped.resume"]

    assert run(["quantize", model, "-o", "stopped", *LEARN]) == 2
    assert "holds a run that was stopped; go on with --resume, or start again with --overwrite" in one_line(capsys)
    assert run(["quantize", model, "-o", "stopped", *LEARN, "--resume", "--seed", "5"]) == 2
    assert "checkpoints of another run" in one_line(capsys)

    assert run(["quantize", model, "-o", "stopped", *LEARN, "--resume"]) == 0
    assert run(["quantize", model, "-o", "straight", *LEARN]) == 0
    assert sorted(path.name for path in elsewhere.iterdir()) == ["stopped", "straight"]
    stopped = load_file("stopped/unet/quantized.safetensors")
    for name, leaf in load_file("straight/unet/quantized.safetensors").items():
        assert_close(stopped[name], leaf, rtol=0, atol=0)


def test_overwrite_starts_a_stopped_run_again(model: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_second_unit(patch)
        assert run(["quantize", model, "-o", "out", *LEARN]) == 130
    assert run(["quantize", model, "-o", "out", *SMALL, "--overwrite"]) == 0
    assert [path.name for path in elsewhere.iterdir()] == ["out"]


# Small languages and pictures


@given(st.lists(st.integers(0, 10**6), min_size=1, unique=True))
def test_seeds_are_read_as_they_are_written(seeds: list[int]) -> None:
    assert parse_seeds(",".join(map(str, seeds))) == seeds


@given(st.integers(0, 1000), st.integers(0, 100))
def test_both_ends_of_a_range_belong_to_it(first: int, more: int) -> None:
    assert parse_seeds(f"{first}..{first + more}") == list(range(first, first + more + 1))


@pytest.mark.parametrize("text", ["", "1..", "..2", "1-3", "-1", "1,,2", "3..1", "1,1", "0..3,2", "1.5"])
def test_other_seeds_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (19_670_000, "19.67 MB"), (2.5e12, "2500.00 GB")]
)
def test_sizes_are_in_powers_of_a_thousand(count: float, text: str) -> None:
    assert size(count) == text
