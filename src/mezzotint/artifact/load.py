"""Load an artifact: verify, build empty, compare leaf by leaf, fill."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mezzotint.artifact.leaves import AGAIN, compare_leaves, describe, find_damage, read_header
from mezzotint.artifact.skeleton import empty_quantized_network
from mezzotint.errors import ArtifactError, ModelError
from mezzotint.manifest import MANIFEST_NAME, FileRecord, Manifest, read_manifest
from mezzotint.models.load import _quiet_diffusers

NETWORK = "unet"
WEIGHTS_NAME = f"{NETWORK}/quantized.safetensors"
CONFIG_NAME = f"{NETWORK}/config.json"
INDEX_NAME = "model_index.json"
LIBRARIES = (None, "diffusers", "transformers")


def load_quantized(folder: str | Path, device: str | torch.device = "cpu") -> DiffusionPipeline:
    """The pipeline saved in `folder`, its network on integers and carrying `.quantization`, its Manifest.

    Raises:
        ArtifactError: a file is missing, truncated, altered, foreign or from a later version; the message names the
            file and, where one is to blame, the leaf.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, record in manifest.files.items():
        if name != WEIGHTS_NAME:
            _check_file(folder, name, record)
    network = _empty_network(folder, manifest)
    _fill_(network, folder / WEIGHTS_NAME, manifest)
    network.quantization = manifest
    try:
        with _quiet_diffusers():
            pipeline = DiffusionPipeline.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, **{NETWORK: network}
            )
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        raise ArtifactError(f"{folder / INDEX_NAME}: diffusers cannot load the pipeline: {error}") from error
    return pipeline.to(device)


def file_record(path: Path) -> FileRecord:
    """Size and SHA-256 of the file at `path`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(bytes=path.stat().st_size, sha256=digest)


def _check_file(folder: Path, name: str, record: FileRecord) -> None:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise ArtifactError(f"{folder / MANIFEST_NAME}: files: {name!r} lies outside the artifact")
    path = folder / name
    if not path.is_file():
        raise ArtifactError(f"{path}: the file is missing; {AGAIN}")
    found = file_record(path)
    if found.bytes != record.bytes:
        raise ArtifactError(f"{path}: {found.bytes} bytes, the manifest says {record.bytes}; {AGAIN}")
    if found != record:
        raise ArtifactError(f"{path}: altered after it was written (checksum differs); {AGAIN}")


def _empty_network(folder: Path, manifest: Manifest) -> ModelMixin:
    for name in (INDEX_NAME, CONFIG_NAME, WEIGHTS_NAME):
        if name not in manifest.files:
            raise ArtifactError(f"{folder / MANIFEST_NAME}: files: {name} is not listed, so it cannot be trusted")
    index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
    _refuse_foreign_code(index, folder / INDEX_NAME)
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    try:
        return empty_quantized_network(index[NETWORK][1], config, manifest.layers)
    except ModelError as error:
        raise ArtifactError(f"{folder / CONFIG_NAME}: {error} (diffusers {diffusers.__version__})") from error


def _refuse_foreign_code(index: dict[str, Any], path: Path) -> None:
    """A pipeline may name classes of libraries only; diffusers would run a module that lies in the folder."""
    for name, value in index.items():
        library = value[0] if isinstance(value, list) else None
        if library not in LIBRARIES:
            raise ArtifactError(f"{path}: {name} is of {library!r}, only {', '.join(LIBRARIES[1:])} are loaded")


def _fill_(network: nn.Module, path: Path, manifest: Manifest) -> None:
    """Puts the tensors of the file at `path` in the empty `network`, after comparing every one."""
    if not path.is_file():
        raise ArtifactError(f"{path}: the file is missing; {AGAIN}")
    expected = {name: describe(leaf) for name, leaf in network.state_dict().items()}
    compare_leaves(read_header(path), expected, path)
    try:
        state: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ArtifactError(f"{path}: {error}; the file was altered, {AGAIN}") from error
    if file_record(path) != manifest.files[WEIGHTS_NAME]:
        raise find_damage(state, manifest.leaves, path)
    network.load_state_dict(state, strict=True, assign=True)
    network.requires_grad_(False).eval()
    for name, leaf in (*network.named_parameters(), *network.named_buffers()):
        if leaf.is_meta:
            raise ArtifactError(f"{path}: leaf {name} is not stored, and the network cannot compute without it")
