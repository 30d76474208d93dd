"""`mezzotint bench` on a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mezzotint
from mezzotint.cli.app import run
from tiny import tiny_pipeline

pytestmark = pytest.mark.usefixtures("traceable")

SMALL: dict[str, Any] = {"steps": 4, "calib_size": 4, "pilot_size": 4, "forward_batch": 4, "drift_trajectories": 0}


@pytest.mark.gpu
def test_an_artifact_against_its_float_twin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = mezzotint.make_config("nearest", "w8a8", **SMALL)
    mezzotint.save_quantized(mezzotint.quantize(tiny_pipeline(), config=config, device="cpu"), tmp_path / "int")
    assert run(["bench", str(tmp_path / "int"), "--device", "cuda", "--json", "--runs", "1", "--batch", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["variant"] for row in result["variants"]] == ["fp32-eager", "bf16-eager", "w8a8"]
    assert all(row["peak_bytes"] > 0 for row in result["variants"])
    assert "--compile" in result["verdict"]
    assert all(row["float_ms"] > 0 for row in result["layers"])
    assert {row["kernel"] for row in result["kernels"]} == {"triton", "flash"}
