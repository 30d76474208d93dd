"""`mezzotint bench`: what it measures, and that the verdict is in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mezzotint
from integer_networks import fresh
from mezzotint import optimization, resident, speed
from mezzotint.cli.app import run
from mezzotint.cli.sample import compiled
from mezzotint.cli.verdicts import verdict
from mezzotint.errors import KernelError
from mezzotint.progress import NullProgress
from tiny import tiny_pipeline, tiny_unet

pytestmark = pytest.mark.usefixtures("traceable")

SMALL: dict[str, Any] = {"steps": 4, "calib_size": 4, "pilot_size": 4, "forward_batch": 4, "drift_trajectories": 0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A tiny float model and its artifact."""
    folder = tmp_path_factory.mktemp("bench")
    tiny_pipeline().save_pretrained(folder / "float")
    config = mezzotint.make_config("nearest", "w8a8", **SMALL)
    quick = config.model_copy(update={"ranges": config.ranges.model_copy(update={"candidates": 2})})
    quantized = mezzotint.quantize(mezzotint.load(folder / "float"), config=quick)
    mezzotint.save_quantized(quantized, folder / "int")
    return str(folder / "float"), str(folder / "int")


@pytest.fixture(autouse=True)
def peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak memory without the processes that measure it: 1 MB for the first variant, 2 MB for the next."""

    def count(model: str, variants: list[str], batch: int, threads: int) -> dict[str, int | None]:
        return {name: None if name == "bf16-eager" else n * 10**6 for n, name in enumerate(variants, 1)}

    monkeypatch.setattr(resident, "can_measure", lambda: True)
    monkeypatch.setattr(resident, "peak_bytes", count)


def bench(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert run(["bench", *words, "--json", "--runs", "1", "--batch", "2"]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_artifact_against_its_float_twin(folders: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    result = bench(capsys, folders[1])
    assert [row["variant"] for row in result["variants"]] == [*speed.FLOATS, "w8a8"]
    assert result["bytes"]["quantized"] < result["bytes"]["fp32"]
    assert "quantization" in result["verdict"]
    times = [row["ms"] for row in result["layers"]]
    assert times == sorted(times, reverse=True)
    assert {row["name"] for row in result["layers"]} >= {"conv_in", "conv_out"}
    assert all(row["float_ms"] for row in result["layers"] if "processor" not in row["name"])


def test_a_choice_of_attention_is_for_a_gpu(folders: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", folders[1], "--attention", "int8"]) != 0
    assert "on a CPU attention is always of codes" in " ".join(capsys.readouterr().err.split())


def test_a_float_model_says_how_to_go_on(folders: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    result = bench(capsys, folders[0])
    assert [row["variant"] for row in result["variants"]] == list(speed.FLOATS)
    assert [row.get("peak_bytes") for row in result["variants"]] == [1_000_000, 2_000_000, None]
    assert "mezzotint quantize" in result["verdict"]


def test_the_table_names_the_machine(folders: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", folders[1], "--runs", "1", "--batch", "1"]) == 0
    out = capsys.readouterr().out
    assert "Slowest layers" in out
    lines = [line for line in out.splitlines() if line.startswith(("│ fp32", "│ bf16", "│ w8a8"))]
    assert [line.split("│")[-2].strip() for line in lines] == ["1.00 MB", "2.00 MB", "not measured", "4.00 MB"]
    said = " ".join(out.replace("│", " ").split())
    assert "resident set at its highest in a step, in a process of its own" in said
    assert "of tensors; a file has a header besides" in said
    assert "verdict" in out


def row(name: str, ms: float, twin: float, kernel: str = "onednn") -> dict[str, Any]:
    return {"name": name, "ms": ms, "float_ms": twin, "kernel": kernel, "reason": "because"}


def test_verdicts() -> None:
    layers = [row("big", 1.0, 3.0), row("small", 0.2, 0.1)]
    good = verdict({"fp32-channels-last": 4.0, "bf16-eager": 2.0, "w8a8": 1.0}, "w8a8", layers)
    assert "pays here: w8a8 is 2.00x faster than bf16-eager" in good
    assert "1 of 2 layers are slower than in float32, most of all small (0.20 ms, float 0.10)" in good
    bad = verdict({"fp32-channels-last": 1.0, "w8a8": 2.0}, "w8a8", [row("slow", 2.0, 1.0, "exact-fp32")])
    assert "does not pay here: w8a8 is 2.00x slower than fp32-channels-last" in bad
    assert "no fast kernel: because" in bad
    assert "it saves memory only" in verdict({"fp32-eager": 1.0, "w8a8": 1.0}, "w8a8", [])


def test_variants_take_turns() -> None:
    order: list[str] = []
    calls = {name: (lambda *_, name=name: order.append(name)) for name in ("a", "b")}
    seconds = speed.take_turns(calls, [()], warmup=1, runs=2)
    assert order == ["a", "b"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_inputs_rotate_and_fit() -> None:
    sets = speed.input_sets(tiny_unet(), 3)
    assert len({int(t[0]) for _, t in sets}) == len(sets)
    assert all(x.shape == (3, 3, 16, 16) and x.is_contiguous(memory_format=torch.channels_last) for x, _ in sets)


def test_compiled_sampling_tells_what_it_prepares(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["sample", folders[1], "--seeds", "0..1", "--steps", "2", "-o", str(tmp_path / "a"), "--compile"]) == 0
    assert (tmp_path / "a" / "grid.png").is_file()
    told = [line.partition(" in ")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == ["loaded int", "prepared layers", "traced network", "sampled"]


@pytest.mark.parametrize(
    ("device", "wanted", "expected"),
    [("cuda", None, True), ("cuda:1", False, False), ("cpu", None, False), ("cpu", True, True)],
)
def test_a_gpu_draws_with_fast_kernels_unless_told_otherwise(
    device: str, wanted: bool | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimized: list[Any] = []
    monkeypatch.setattr(optimization, "optimize", lambda pipeline, progress: optimized.append(pipeline))
    quantized = tiny_pipeline()
    quantized.unet = fresh("pixels")
    with compiled(quantized, device, wanted, NullProgress()):
        assert bool(optimized) == expected
    with compiled(tiny_pipeline(), device, None, NullProgress()):  # nothing to optimize
        assert len(optimized) == expected


def test_an_error_of_lowering_nobody_asked_for_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimization, "optimize", lambda pipeline, progress: pipeline)
    quantized = tiny_pipeline()
    quantized.unet = fresh("pixels")
    for wanted, message in ((None, "negative step; --no-compile draws"), (True, "^negative step$")):
        with pytest.raises(KernelError, match=message), compiled(quantized, "cuda", wanted, NullProgress()):
            raise KernelError("negative step")
