"""From the words of the command line to things: seeds, samplers, devices, models, places to write to.

Every function raises an error of `mezzotint.errors` that names the option, before any long work begins.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mezzotint.errors import ConfigError, ModelError, OutputError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from mezzotint.progress import Progress
    from mezzotint.sampling.config import SamplerConfig


EXPORT_RECORD = "export.json"  # by which an exported folder is known, without importing what reads it


def parse_seeds(text: str) -> list[int]:
    """`0..3,8` -> [0, 1, 2, 3, 8]. Both ends of a range belong to it. Raises ConfigError for anything else."""
    seeds = parse_numbers(text, "--seeds")
    repeated = len(seeds) - len(set(seeds))
    if repeated:
        raise ConfigError(f"--seeds {text!r}: {repeated} of them are named twice; the same seed gives the same image")
    return seeds


def parse_numbers(text: str, option: str) -> list[int]:
    """As `parse_seeds`, for any option; numbers may be named twice."""
    numbers: list[int] = []
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", part)
        if match is None:
            raise ConfigError(f"{option} {text!r} cannot be read at {part!r}; write them as in 0..15 or 3,7,10..12")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ConfigError(f"{option} {text!r}: {part} ends before it begins; write {last}..{first}")
        numbers.extend(range(first, last + 1))
    return numbers


@dataclass(frozen=True)
class SamplerWords:
    """What the sampling options say, checked as far as that goes without a model; None is the model's own."""

    kind: str | None = None
    steps: int | None = None
    spacing: str | None = None
    eta: float | None = None
    guidance_scale: float | None = None


def sampler_words(
    steps: int | None, scheduler: str | None, spacing: str | None, eta: float | None, guidance: float | None
) -> SamplerWords:
    """The five sampling options. Raises ConfigError for an unknown scheduler or spacing."""
    return SamplerWords(check_scheduler(scheduler), steps, check_spacing(spacing), eta, guidance)


def sampler_config(pipeline: DiffusionPipeline, words: SamplerWords) -> SamplerConfig:
    """The usual sampler of `pipeline` with what the options change; plms brings its own spacing and eta.

    Raises:
        ConfigError: options that do not go together, or guidance for an unconditional model.
    """
    from pydantic import ValidationError

    from mezzotint.evaluation.drawing import usual_sampler
    from mezzotint.models.conditioning import conditioning_kind
    from mezzotint.sampling.config import SamplerConfig
    from mezzotint.sampling.schedulers import sampler_complaint

    if words.guidance_scale is not None and conditioning_kind(pipeline) == "none":
        raise ConfigError(f"--guidance: {type(pipeline).__name__} is unconditional, there is nothing to guide it by")
    given = {name: value for name, value in asdict(words).items() if value is not None}
    plms = {"spacing": "uniform", "eta": 0.0} if words.kind == "plms" else {}
    try:
        return SamplerConfig(**{**usual_sampler(pipeline).model_dump(), **plms, **given})
    except ValidationError as error:
        raise ConfigError(sampler_complaint(error, "--")) from error


def check_scheduler(scheduler: str | None) -> str | None:
    """`scheduler` if it names a sampler, or None. Raises ConfigError otherwise."""
    from mezzotint.sampling.schedulers import SCHEDULERS
    from mezzotint.sampling.spacings import SPACINGS

    if scheduler is not None and scheduler not in SCHEDULERS:
        hint = f" (the spacing of the steps is --spacing {scheduler})" if scheduler in SPACINGS else ""
        raise ConfigError(f"--scheduler: there is no {scheduler!r}; choose one of {', '.join(SCHEDULERS)}{hint}")
    return scheduler


def check_spacing(spacing: str | None) -> str | None:
    """`spacing` if it names a spacing of time steps, or None. Raises ConfigError otherwise."""
    from mezzotint.sampling.spacings import SPACINGS

    if spacing is not None and spacing not in SPACINGS:
        raise ConfigError(f"--spacing: there is no {spacing!r}; choose one of {', '.join(SPACINGS)}")
    return spacing


@dataclass(frozen=True)
class Told:
    """What the user wants drawn: prompts or labels, and the option that said so; without values, whatever is usual."""

    option: str = ""
    values: list[str] | list[int] | None = None


def read_told(prompt: list[str] | None, prompts: Path | None, labels: str | None) -> Told:
    """The prompts or labels of the options. Raises ConfigError if two of them are given, or one cannot be read."""
    from mezzotint.models.prompts import read_prompts

    given = [name for name, value in (("--prompt", prompt), ("--prompts", prompts), ("--labels", labels)) if value]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)}: give one of them")
    if prompt:
        return Told("--prompt", list(prompt))
    if prompts is not None:
        return Told("--prompts", read_prompts(prompts))
    return Told("--labels", parse_numbers(labels, "--labels")) if labels is not None else Told()


def check_told(pipeline: DiffusionPipeline, told: Told) -> list[str] | list[int] | None:
    """The prompts or labels, or None if none were given. Raises ConfigError if the model takes no such thing."""
    from mezzotint.models.conditioning import check_inputs, conditioning_kind

    if told.values is None:
        return None
    kind, name = conditioning_kind(pipeline), type(pipeline).__name__
    if kind == "none":
        raise ConfigError(f"{told.option}: {name} is unconditional, it takes no prompts and no labels")
    if (kind == "class") != (told.option == "--labels"):
        takes, use = ("class labels", "--labels") if kind == "class" else ("prompts", "--prompt or --prompts")
        raise ConfigError(f"{told.option}: {name} takes {takes}; use {use}")
    check_inputs(pipeline, kind, told.values)
    return told.values


def find_device(name: str, runtime: str | None = None, *, needed: bool = True) -> str:
    """`name` if such a device is there, with `auto` resolved. Raises ConfigError otherwise.

    Args:
        runtime: of an exported model; those run on the CPU.
        needed: False takes a CUDA device that is not there, to talk about it.
    """
    import torch

    if runtime is not None and name not in ("auto", "cpu"):
        raise ConfigError(f"--device {name}: --runtime {runtime} runs on the CPU; leave one of the two out")
    if runtime is not None:
        return "cpu"
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device: {name!r} is no device; choose auto, cpu, cuda or cuda:N") from None
    if needed and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
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


def load_runnable(model: str, device: str, runtime: str | None, progress: Progress) -> DiffusionPipeline:
    """As `load_model`; with a `runtime`, the exported folder `model`. ConfigError if one goes without the other."""
    if runtime is None:
        if (Path(model) / EXPORT_RECORD).is_file():
            raise ConfigError(f"{model}: is an exported model; say what runs it: --runtime ort or --runtime openvino")
        return load_model(model, device, progress)
    from mezzotint.export import load_exported

    progress.start(f"load {Path(model).name}", 1)
    pipeline = load_exported(model, runtime)
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
