"""Checkpoint files: the containers people have, and one line for what is no checkpoint. No code in a file is run."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mezzotint.errors import ModelError
from mezzotint.models.importing.reading import Entries, read_entries

WEIGHTS = {"a.weight": torch.arange(600.0).reshape(20, 30), "b.bias": torch.ones(2, dtype=torch.float16)}
EMA = {name: value + 1 for name, value in WEIGHTS.items()}


def assert_same(entries: Entries, expected: dict[str, Any]) -> None:
    read = entries.tensors
    assert entries.averaged == (expected is EMA)
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in expected.items())


CONTAINERS: dict[str, tuple[Any, Any, Any]] = {
    "tensors": (WEIGHTS, WEIGHTS, WEIGHTS),
    "compvis": ({"state_dict": WEIGHTS, "global_step": 3, "callbacks": {}}, WEIGHTS, WEIGHTS),
    "data parallel": ({f"module.{name}": value for name, value in WEIGHTS.items()}, WEIGHTS, WEIGHTS),
    "training, ema": ([WEIGHTS, {}, 3, 7, EMA], EMA, WEIGHTS),
    "training": ([WEIGHTS, {}, 3, 7], WEIGHTS, WEIGHTS),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", list(CONTAINERS))
def test_containers(name: str, legacy: bool, tmp_path: Path) -> None:
    content, with_ema, without = CONTAINERS[name]
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=not legacy)
    assert_same(read_entries(tmp_path / "x.ckpt"), with_ema)
    assert_same(read_entries(tmp_path / "x.ckpt", use_ema=False), without)


def test_safetensors(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "x.safetensors")
    assert_same(read_entries(tmp_path / "x.safetensors"), WEIGHTS)


def test_a_training_callback_that_is_only_named_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CompVis files key a callback's state by its class, which nobody has to have installed."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module: Any = ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    with monkeypatch.context() as patch:
        for part in (name, name.rpartition(".")[0], name.partition(".")[0]):
            patch.setitem(sys.modules, part, module)
        content = {"state_dict": WEIGHTS, "callbacks": {module.ModelCheckpoint: {"best_model_path": "x"}}}
        torch.save(content, tmp_path / "x.ckpt")
    assert_same(read_entries(tmp_path / "x.ckpt"), WEIGHTS)


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_with_code_are_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    content = {"state_dict": WEIGHTS, "extra": Bomb(tmp_path / "boom")}
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        ModelError, match=r"x.ckpt: asks for \S+ when it is read, and files that bring code are refused"
    ):
        read_entries(tmp_path / "x.ckpt")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("kept", [0, 10, 1500, -20])
@pytest.mark.parametrize("kind", ["ckpt", "legacy.ckpt", "safetensors"])
def test_truncated_files(tmp_path: Path, kind: str, kept: int) -> None:
    path = tmp_path / f"x.{kind}"
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=kind == "ckpt")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match="fetch it again") as raised:
        read_entries(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(2), "expected a state dict, it holds a Tensor"),
        ([1, 2], "expected a state dict, it holds a list"),
        ({}, "holds no named tensors"),
        ({"epoch": 3}, "holds no named tensors"),
        ({"w": torch.ones(2), "epoch": 3}, r"expected tensors only, but epoch is none \(1 such entries\)"),
    ],
)
def test_files_without_a_state_dict(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ModelError, match=message):
        read_entries(tmp_path / "x.pt")
