"""From a checkpoint file to named tensors, without running anything that the file says.

    format                              what the file holds
    safetensors                         the tensors
    torch zip or legacy torch file      {"state_dict": tensors, ...} (CompVis), tensors (ermongroup/ddim), or
                                        [model, optimizer, epoch, step, ema] (training states of ermongroup/ddim)

Pickles are read by torch's restricted unpickler (`weights_only=True`), which makes tensors and containers and nothing
else. CompVis files remember the state of a training callback under its *class*; for that name an inert class of ours
stands in. A file that needs any other class is refused.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mezzotint.errors import ModelError

State = dict[str, Tensor]

DDIM_TRAINING_STATES = (4, 5)  # model, optimizer, epoch, step and, with EMA, its shadow


@dataclass(frozen=True)
class Entries:
    """What a file holds.

    Attributes:
        tensors: by name, on the CPU and in the dtype of the file.
        averaged: whether they are the EMA half of a training state of ermongroup/ddim. CompVis files have both halves
            among their entries, under different names.
    """

    tensors: State
    averaged: bool = False


class _Inert:
    """Stands for the class of a training callback; nothing is ever called on it."""


_STAND_INS: list[Any] = [
    (_Inert, f"{package}.callbacks.model_checkpoint.ModelCheckpoint") for package in ("pytorch_lightning", "lightning")
]


def read_entries(path: Path, *, use_ema: bool = True) -> Entries:
    """The entries of the checkpoint at `path`.

    Args:
        use_ema: which half of a training state of ermongroup/ddim.

    Raises:
        ModelError: the file is truncated, needs code to be read, or holds no tensors.
    """
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    averaged = False
    if isinstance(content, list) and len(content) in DDIM_TRAINING_STATES:
        averaged = use_ema and len(content) == max(DDIM_TRAINING_STATES)
        content = content[4] if averaged else content[0]
    return Entries(_tensors(content, path), averaged)


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: no whole safetensors file ({_first_line(error)}); fetch it again") from error


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error)) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{path}: no whole torch checkpoint ({_first_line(error)}); fetch it again") from error


def _refusal(path: Path, said: str) -> ModelError:
    """What to say when the restricted unpickler gave up: it names what it was asked to make, or this is no pickle."""
    wanted = re.search(r"GLOBAL (\S+)", said)
    if wanted is None:
        return ModelError(f"{path}: no torch checkpoint, or a truncated one; fetch it again")
    return ModelError(
        f"{path}: asks for {wanted[1]} when it is read, and files that bring code are refused; "
        f"save its state_dict as safetensors where you trust it, and import that"
    )


def _tensors(content: Any, path: Path) -> State:
    """The named tensors within what the file held."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise ModelError(f"{path}: expected a state dict, it holds a {type(content).__name__}")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if tensors and others:
        raise ModelError(f"{path}: expected tensors only, but {others[0]} is none ({len(others)} such entries)")
    if not tensors:
        raise ModelError(f"{path}: holds no named tensors; expected the state dict of a diffusion model")
    wrapper = "module."  # of DataParallel
    if all(name.startswith(wrapper) for name in tensors):
        tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    return tensors


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
