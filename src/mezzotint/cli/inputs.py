"""From the words of the command line to things: seeds, samplers, devices, models, places to write to.

Every function raises an error of `mezzotint.errors` that names the option, before any long work begins.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mezzotint.errors import ConfigError, ModelError, OutputError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from mezzotint.progress import Progress
    from mezzotint.sampling.config import SamplerConfig


def parse_seeds(text: str) -> list[int]:
    """`0..3,8` -> [0, 1, 2, 3, 8]. Both ends of a range belong to it. Raises ConfigError for anything else."""
    seeds: list[int] = []
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", part)
        if match is None:
            raise ConfigError(f"--seeds {text!r} cannot be read at {part!r}; write them as in 0..15 or 3,7,10..12")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ConfigError(f"--seeds {text!r}: {part} ends before it begins; write {last}..{first}")
        seeds.extend(range(first, last + 1))
    repeated = len(seeds) - len(set(seeds))
    if repeated:
        raise ConfigError(f"--seeds {text!r}: {repeated} of them are named twice; the same seed gives the same image")
    return seeds


def sampler_config(steps: int | None, scheduler: str | None, eta: float | None) -> SamplerConfig:
    """The sampler that the three options describe; None is its default. Raises ConfigError for an unknown spacing."""
    from pydantic import ValidationError

    from mezzotint.sampling.config import SamplerConfig

    given = {"steps": steps, "spacing": check_spacing(scheduler), "eta": eta}
    try:
        return SamplerConfig(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{first['loc'][0]}: {first['msg']} (got {first['input']!r})") from error


def check_spacing(scheduler: str | None) -> str | None:
    """`scheduler` if it names a spacing of time steps, or None. Raises ConfigError otherwise."""
    from mezzotint.sampling.schedulers import SPACINGS

    if scheduler is not None and scheduler not in SPACINGS:
        raise ConfigError(f"--scheduler: there is no {scheduler!r}; choose one of {', '.join(SPACINGS)}")
    return scheduler


def find_device(name: str) -> str:
    """`name` if such a device is there, with `auto` resolved. Raises ConfigError otherwise."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device: {name!r} is no device; choose auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device: {name} is not there, torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device: {name} is not supported; choose auto, cpu, cuda or cuda:N")
    return name


def load_model(model: str, device: str, progress: Progress) -> DiffusionPipeline:
    """The pipeline called `model` on `device`, float or quantized; its network is known to be a denoiser."""
    from mezzotint.loading import load
    from mezzotint.models.denoiser import network_of

    progress.start(f"load {Path(model).name}", 1)
    pipeline = load(model, device=device)
    network_of(pipeline)
    progress.advance()
    progress.finish()
    return pipeline


def load_float(model: str, device: str, progress: Progress) -> DiffusionPipeline:
    """As `load_model`. Raises ModelError if the model is quantized."""
    pipeline = load_model(model, device, progress)
    if hasattr(pipeline.unet, "quantization"):
        raise ModelError(f"{model}: is quantized already; name the float model it was made from")
    return pipeline


def load_artifact(folder: str, device: str, progress: Progress) -> DiffusionPipeline:
    """As `load_model`. Raises ModelError if the model is not quantized."""
    pipeline = load_model(folder, device, progress)
    if not hasattr(pipeline.unet, "quantization"):
        raise ModelError(f"{folder}: is not quantized; make a quantized one with: mezzotint quantize {folder}")
    return pipeline


def check_writable(path: Path, overwrite: bool) -> None:
    """Checks that a file may be written at `path`; for before the work whose result goes there.

    Raises:
        OutputError: it exists and `overwrite` is off, it is a folder, or the folder above it cannot be written.
    """
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name a file")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; choose another name, or replace it with --overwrite")
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: cannot write in {parent}; choose another place")
