"""Save a quantized pipeline, whole or not at all."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, ModelMixin
from safetensors.torch import save_file
from torch import Tensor

from mezzotint.artifact.atomic import atomic_folder
from mezzotint.artifact.card import write_card
from mezzotint.artifact.leaves import compare_leaves, describe, leaf_records
from mezzotint.artifact.load import file_record, weights_name
from mezzotint.artifact.skeleton import config_of, empty_quantized_network, save_config
from mezzotint.errors import ArtifactError, ModelError, OutputError
from mezzotint.manifest import DENOISER, MANIFEST_NAME, Manifest, PartRecord, write_manifest
from mezzotint.models.families import model_folder
from mezzotint.models.prompts import PROMPTS_FILE

CARD_NAME = "README.md"


def save_quantized(pipeline: DiffusionPipeline, folder: str | Path, overwrite: bool = False) -> Path:
    """Writes `pipeline`, whose network carries `.quantization`, to `folder` and returns that.

    Atomic: until the last rename the old artifact is untouched, and an interrupted save leaves nothing.

    Args:
        overwrite: replace an artifact that is there already. Anything else that is there is never replaced.

    Raises:
        ModelError: the network is not quantized, or could not be loaded again.
        OutputError: `folder` exists, or cannot be written.
    """
    folder = check_output(folder, overwrite)
    network = getattr(pipeline, DENOISER, None)
    manifest = getattr(network, "quantization", None)
    if not isinstance(network, ModelMixin) or not isinstance(manifest, Manifest):
        raise ModelError(f"{type(pipeline).__name__}.{DENOISER} is not quantized; run mezzotint.quantize first")
    states = {part: _checked_state(pipeline.components[part], record) for part, record in manifest.networks.items()}
    with atomic_folder(folder) as partial:
        _save_components(pipeline, partial, list(states))
        _copy_prompts(pipeline, partial)
        for part, state in states.items():
            save_file(state, partial / weights_name(part), metadata={"format": "pt"})
        files = {path.relative_to(partial).as_posix(): file_record(path) for path in _files_below(partial)}
        leaves = {part: leaf_records(state) for part, state in states.items()}
        parts = {part: record.model_copy(update={"leaves": leaves[part]}) for part, record in manifest.parts.items()}
        manifest = manifest.model_copy(update={"files": files, "leaves": leaves[DENOISER], "parts": parts})
        write_manifest(manifest, partial)
        write_card(manifest, network, partial / CARD_NAME, name=folder.name)
    return folder


def check_output(
    folder: str | Path, overwrite: bool = False, marker: str = MANIFEST_NAME, kind: str = "a quantized model"
) -> Path:
    """`folder` as a Path, if an artifact may be written there. To be called before hours of work, too.

    Args:
        marker, kind: the file by which a folder that may be replaced is known, and what such a folder is called.

    Raises:
        OutputError: something is there that must not be replaced, or the folder cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file; choose a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise OutputError(f"{folder}: exists already; choose another folder, or replace it with --overwrite")
        if not (folder / marker).is_file():
            raise OutputError(f"{folder}: holds something else than {kind}; it will not be replaced")
    parent = next(parent for parent in folder.parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: cannot write in {parent}; choose another folder")
    return folder


def _checked_state(network: Any, record: Manifest | PartRecord) -> dict[str, Tensor]:
    """The state of `network`, after comparing it with what `load_quantized` will expect of its record."""
    state = {name: leaf.detach().cpu().contiguous() for name, leaf in network.state_dict().items()}
    skeleton = empty_quantized_network(type(network).__name__, config_of(network), record.layers)
    expected = {name: describe(leaf) for name, leaf in skeleton.state_dict().items()}
    try:
        compare_leaves({name: describe(leaf) for name, leaf in state.items()}, expected, Path("quantized.safetensors"))
    except ArtifactError as error:
        raise ModelError(f"the network does not fit its manifest and could not be loaded again: {error}") from error
    return state


def _save_components(pipeline: DiffusionPipeline, folder: Path, quantized: list[str]) -> None:
    """Writes the parts as diffusers does, and of those that are `quantized` their configurations."""
    pipeline.save_config(folder)
    for name, component in pipeline.components.items():
        if component is None:
            continue
        if name in quantized:
            (folder / name).mkdir()
            save_config(component, folder / name)
        else:
            accepted = inspect.signature(component.save_pretrained).parameters
            options = {"safe_serialization": True} if "safe_serialization" in accepted else {}
            component.save_pretrained(folder / name, **options)
        for path in folder.glob(f"{name}/*config.json"):
            _forget_origin(path)
    _forget_origin(folder / "model_index.json")


def _copy_prompts(pipeline: DiffusionPipeline, folder: Path) -> None:
    """The prompts beside the float model go with what is made from it: they are what it can draw."""
    source = model_folder(pipeline)
    if source is not None and (source / PROMPTS_FILE).is_file():
        shutil.copyfile(source / PROMPTS_FILE, folder / PROMPTS_FILE)


def _forget_origin(path: Path) -> None:
    """Removes the path on this machine that diffusers notes in its JSON files."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    if fields.pop("_name_or_path", None) is not None:
        path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
