"""Checkpoints of a run: calibration set, fitted ranges, every finished unit. A killed run goes on from them.

Everything is safetensors or JSON. A folder belongs to one run: its fingerprint (config, base weights) is written
first, and a run with another fingerprint is refused. Files appear whole or not at all (written beside, then renamed).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mezzotint.errors import OutputError, ResumeError

FINGERPRINT = "run.json"


class Checkpoints:
    """The checkpoints of one run in `folder`, or nowhere if `folder` is None.

    Raises:
        ResumeError: the folder belongs to another run.
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path | None, fingerprint: dict[str, Any]) -> None:
        self.folder = folder
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{folder}: cannot keep checkpoints here ({error.strerror}); choose another folder"
            ) from error
        path = folder / FINGERPRINT
        if path.exists():
            self._check(path, fingerprint)
        else:
            _write_text(path, json.dumps(fingerprint, indent=1, sort_keys=True))

    def _check(self, path: Path, fingerprint: dict[str, Any]) -> None:
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise ResumeError(f"{path} is damaged; delete the folder to start again") from error
        if found != json.loads(json.dumps(fingerprint)):
            different = [key for key in fingerprint if found.get(key) != json.loads(json.dumps(fingerprint[key]))]
            raise ResumeError(
                f"{path.parent} holds the checkpoints of another run (different {', '.join(different) or 'fields'}); "
                "use the same options, or another folder"
            )

    def load(self, name: str) -> dict[str, Tensor] | None:
        """Tensors saved as `name`, or None."""
        path = self._path(name, ".safetensors")
        if path is None or not path.exists():
            return None
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ResumeError(f"{path} is damaged ({error}); delete it to compute it again") from error

    def load_json(self, name: str) -> dict[str, Any] | None:
        path = self._path(name, ".json")
        if path is None or not path.exists():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise ResumeError(f"{path} is damaged ({error}); delete it to compute it again") from error
        return found

    def save(self, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Saves `facts` and then `tensors`; `load` finds them only when both are there."""
        tensor_path, facts_path = self._path(name, ".safetensors"), self._path(name, ".json")
        if tensor_path is None or facts_path is None:
            return
        _write_text(facts_path, json.dumps(facts))
        beside = tensor_path.with_suffix(".partial")
        save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, beside)
        os.replace(beside, tensor_path)

    def _path(self, name: str, suffix: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}{suffix}"


def grid_state(module: nn.Module) -> dict[str, Tensor]:
    """Scales, zero points and codes below `module`: its buffers, without the float weights."""
    return {name: tensor.detach().clone() for name, tensor in module.named_buffers()}


def load_grid_state_(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Puts `state` back; raises ResumeError where a name or a shape differs."""
    buffers = dict(module.named_buffers())
    if buffers.keys() != state.keys():
        odd = sorted(buffers.keys() ^ state.keys())[:3]
        raise ResumeError(f"a checkpoint does not fit this network: {', '.join(odd)} on one side only")
    for name, buffer in buffers.items():
        if buffer.shape != state[name].shape:
            raise ResumeError(f"{name}: the checkpoint has {tuple(state[name].shape)}, expected {tuple(buffer.shape)}")
        buffer.copy_(state[name])


def _write_text(path: Path, text: str) -> None:
    beside = path.with_suffix(".partial")
    beside.write_text(text)
    os.replace(beside, path)
