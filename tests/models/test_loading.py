"""One `load`: folders with a manifest go to the artifact loader, everything else to the float one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mezzotint.errors import ConfigError
from mezzotint.loading import load
from tiny import tiny_pipeline


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def quantized_loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Any]]:
    """Calls of a stand-in for `artifact.load_quantized`."""
    calls: list[tuple[Path, Any]] = []
    artifact: Any = ModuleType("mezzotint.artifact")
    artifact.pipeline = tiny_pipeline()
    artifact.load_quantized = lambda folder, device: calls.append((folder, device)) or artifact.pipeline
    monkeypatch.setitem(sys.modules, "mezzotint.artifact", artifact)
    return calls


def test_folders_with_a_manifest_are_quantized_models(folder: Path, quantized_loads: list[tuple[Path, Any]]) -> None:
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a quantized model and computes in float32, got torch.float16"):
        load(folder, dtype=torch.float16)
    assert load(str(folder)) is sys.modules["mezzotint.artifact"].pipeline
    assert quantized_loads == [(folder, torch.device("cpu"))]


def test_other_folders_are_float_models(folder: Path, quantized_loads: list[tuple[Path, Any]]) -> None:
    assert load(folder, dtype=torch.bfloat16).unet.dtype == torch.bfloat16
    assert quantized_loads == []
