"""Load a float pipeline: by its name in the zoo, from a folder, an original checkpoint, or the Hugging Face hub.

A model is data. Folders hold safetensors, original checkpoints are read without running code (`models/importing`), and
a pipeline that brings code of its own is refused: the classes that a folder may name are those of diffusers and
transformers and the few of this package, looked up in literal tables. What comes back is frozen, in eval mode, float32
on the CPU unless told otherwise.

A string is, in this order: a name of the zoo, an existing folder or file, a hub id `owner/name`. A `Path` is always a
folder or a file.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import pipelines
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from safetensors import SafetensorError
from torch import nn

from mezzotint.errors import ConfigError, ModelError
from mezzotint.models import pipelines as own_pipelines
from mezzotint.models import unets as own_unets
from mezzotint.models.denoiser import DENOISERS, network_of
from mezzotint.models.importing import import_checkpoint
from mezzotint.models.quiet import quiet_diffusers
from mezzotint.models.zoo import DEFAULT_MODEL, PIPELINE_INDEX, model_folders

HUB_TIMEOUT = 5.0  # seconds until the hub counts as out of reach
ARTIFACT_MANIFEST = "manifest.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

_LIBRARIES = ("diffusers", "transformers")  # beside the modules of diffusers.pipelines
OWN_CLASSES: dict[str, dict[str, Any]] = {  # what a folder may name of this package: {module: {class name: class}}
    own_pipelines.__name__: {**own_pipelines.OWN_PARTS},
    own_unets.__name__: {**own_unets.NETWORK_CLASSES},
}

# What diffusers raises for a folder it cannot use.
_LOADING_ERRORS = (OSError, ValueError, RuntimeError, AttributeError, ImportError, KeyError, TypeError, SafetensorError)


def load(
    model: str | Path | None = None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> DiffusionPipeline:
    """The float pipeline `model`; None is the default model of the zoo.

    Raises:
        ModelError: there is no such model, the hub cannot be reached, or what is there is no pipeline with a denoiser.
        ConfigError: there is no such device.
        MissingExtraError: a checkpoint with a text encoder, and the package that holds its vocabulary is missing.
    """
    device = check_device(device)
    folder = local_folder(model)
    if folder is None and model is not None and (path := Path(model).expanduser()).is_file():
        pipeline = _load_checkpoint(path, device, dtype)
    else:
        pipeline = _load_folder(folder or _hub_folder(str(model)), device, dtype)
    network_of(pipeline)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    return pipeline


def local_folder(model: str | Path | None) -> Path | None:
    """The folder on this disk that `model` means, or None if it is a file or a hub id. ModelError if it is neither."""
    known = model_folders()
    if model is None:
        model = DEFAULT_MODEL
    if isinstance(model, str) and model in known:
        return known[model]
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        return None
    if isinstance(model, str) and _HUB_ID.fullmatch(model):
        return None
    if isinstance(model, Path) or re.search(r"[/\\]", model):
        raise ModelError(f"{model}: no such folder")
    close = difflib.get_close_matches(model, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ModelError(
        f"no model called {model!r}: {hint}the zoo has {', '.join(sorted(known)) or 'no models'}; "
        f"anything else is a folder, a checkpoint file or a hub id such as google/ddpm-cifar10-32"
    )


def check_device(device: str | torch.device) -> torch.device:
    """`device` if torch can use it here, else ConfigError."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {str(device)!r} cannot be used here: {_first_line(error)}") from error


def _load_checkpoint(path: Path, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    """An original checkpoint, its EMA weights where it has any, with the YAML beside it or a published one."""
    pipeline = import_checkpoint(path).pipeline
    pipeline.register_to_config(_name_or_path=path.name)  # as diffusers notes where a pipeline is from
    with quiet_diffusers():
        return pipeline.to(device, dtype)


def _load_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    if (folder / ARTIFACT_MANIFEST).is_file():
        raise ModelError(f"{folder}: a quantized model, not a float one; load it with mezzotint.load")
    return _read_pipeline(folder, _read_index(folder), device, dtype)


def _read_index(folder: Path) -> dict[str, Any]:
    """The index of a pipeline, {part: [library, class]}. ModelError if it asks for other code than theirs."""
    index = folder / PIPELINE_INDEX
    if not index.is_file():
        bare = " (a bare network? give the folder of its pipeline)" if (folder / "config.json").is_file() else ""
        raise ModelError(f"{folder}: no diffusers pipeline, there is no {PIPELINE_INDEX} in it{bare}")
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{index}: no JSON ({error})") from error
    if not isinstance(parts, dict) or not isinstance(parts.get("_class_name"), str):
        raise ModelError(f"{index}: expected _class_name to name a class of diffusers; own code is refused")
    for name, value in parts.items():
        library = value[0] if isinstance(value, list) and value else None
        if not isinstance(library, str):
            continue
        own = any((folder / place / f"{library}.py").exists() for place in (name, "."))
        known = library in _LIBRARIES or hasattr(pipelines, library) or str(value[-1]) in OWN_CLASSES.get(library, {})
        if own or not known:
            raise ModelError(f"{folder}: {name} asks for code of its own ({library}); such models are refused")
    return parts


def _read_pipeline(folder: Path, parts: dict[str, Any], device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    denoiser = _denoiser_class(folder, parts)
    kind = own_pipelines.OWN_PIPELINES.get(parts["_class_name"], DiffusionPipeline)
    given: dict[str, Any] = {name: None for name, value in parts.items() if value == [None, None]}  # has to be said
    try:
        with quiet_diffusers():
            given["unet"] = _read_network(folder, denoiser)
            pipeline = kind.from_pretrained(folder, **given, use_safetensors=True, local_files_only=True)
            return pipeline.to(device, dtype)
    except _LOADING_ERRORS as error:
        raise ModelError(f"{folder}: cannot be loaded: {_first_line(error)}") from error


def _denoiser_class(folder: Path, parts: dict[str, Any]) -> Any:
    """The class of the denoiser of the pipeline in `folder`. ModelError if it lists none that is supported."""
    pairs = {name: value for name, value in parts.items() if isinstance(value, list) and len(value) == 2}
    listed = {name: kind for name, (_, kind) in pairs.items() if kind is not None}
    found = own_unets.NETWORK_CLASSES.get(listed.get("unet", ""))
    if found is None:
        expected = " or ".join(denoiser.__name__ for denoiser in DENOISERS)
        has = ", ".join(f"{name} ({kind})" for name, kind in sorted(listed.items())) or "nothing"
        missing = f"a {parts['_class_name']} without a supported denoiser"
        raise ModelError(f"{folder}: {missing}: expected a unet ({expected}), it lists {has}")
    return found


def _read_network(folder: Path, denoiser: Any) -> nn.Module:
    """The denoiser, read on its own: a pipeline does not tell which weights were missing and got random values."""
    network, report = denoiser.from_pretrained(
        folder, subfolder="unet", use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(f"{folder / 'unet'}: weights are missing: {len(missing)}, the first is {missing[0]}")
    return network


def _hub_folder(model: str) -> Path:
    """The local copy of the hub's `model`, fetched if it is not there."""
    trouble = _hub_trouble(model)
    try:
        with quiet_diffusers():
            return Path(DiffusionPipeline.download(model, use_safetensors=True, local_files_only=trouble is not None))
    except _LOADING_ERRORS as error:
        reason = f"the hub cannot be reached ({trouble})" if trouble else _first_line(error)
        raise ModelError(f"{model}: no such folder or copy on this disk, and {reason}") from error


def _hub_trouble(model: str) -> str | None:
    """Why the hub cannot be asked for `model`, or None if it can. ModelError if the hub has no such model."""
    try:
        HfApi().model_info(model, timeout=HUB_TIMEOUT)
    except RepositoryNotFoundError as error:
        raise ModelError(f"{model}: the hub has no such model, or it is private and no token is set") from error
    except HfHubHTTPError as error:
        return _first_line(error)
    except Exception as error:  # noqa: BLE001 - the hub client's network errors have no common base that is public
        return _first_line(error)
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
