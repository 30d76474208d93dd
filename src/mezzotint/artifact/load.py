"""Load an artifact: verify, build empty, compare leaf by leaf, fill."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mezzotint.artifact.leaves import AGAIN, compare_leaves, describe, find_damage, read_header
from mezzotint.artifact.skeleton import empty_quantized_network
from mezzotint.errors import ArtifactError, ModelError
from mezzotint.layers.float_attention import OutputShift, shift_output_
from mezzotint.manifest import DENOISER, MANIFEST_NAME, FileRecord, Manifest, read_manifest
from mezzotint.models.load import OWN_CLASSES
from mezzotint.models.pipelines import OWN_PIPELINES
from mezzotint.models.quiet import quiet_diffusers
from mezzotint.sampling.correction import NoiseCorrection, correct_

INDEX_NAME = "model_index.json"
_CORRECTION = "results.output_correction"
LIBRARIES = (None, "diffusers", "transformers")


def load_quantized(folder: str | Path, device: str | torch.device = "cpu") -> DiffusionPipeline:
    """The pipeline saved in `folder`, its network on integers and carrying `.quantization`, its Manifest.

    Raises:
        ArtifactError: a file is missing, truncated, altered, foreign or from a later version; the message names the
            file and, where one is to blame, the leaf.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    weights = {weights_name(part) for part in manifest.networks}
    for name, record in manifest.files.items():
        if name not in weights:
            _check_file(folder, name, record)
    index = _read_index(folder, manifest)
    networks: dict[str, Any] = {part: _read_network(folder, index, part, manifest) for part in manifest.networks}
    networks[DENOISER].quantization = manifest
    if "noise_correction" in manifest.results:
        correct_(networks[DENOISER], _noise_correction(manifest, folder))
    _shift_output_(networks[DENOISER], manifest, folder)
    given: dict[str, Any] = {name: None for name, value in index.items() if value == [None, None]}  # has to be said
    kind = OWN_PIPELINES.get(index["_class_name"], DiffusionPipeline)
    try:
        with quiet_diffusers():
            pipeline = kind.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, **{**given, **networks}
            )
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        raise ArtifactError(f"{folder / INDEX_NAME}: diffusers cannot load the pipeline: {error}") from error
    for part in pipeline.components.values():
        if isinstance(part, nn.Module) and part not in networks.values():
            _own_(part)
    return pipeline.to(device)


def _noise_correction(manifest: Manifest, folder: Path) -> NoiseCorrection:
    try:
        return NoiseCorrection.model_validate(manifest.results["noise_correction"])
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ArtifactError(f"{folder / MANIFEST_NAME}: results.noise_correction.{where}: {AGAIN}") from None


def _shift_output_(network: nn.Module, manifest: Manifest, folder: Path) -> None:
    """Gives `network` the shift that the output correction measured, where it has one."""
    correction, where = manifest.results.get("output_correction", {}), f"{folder / MANIFEST_NAME}: {_CORRECTION}"
    if not isinstance(correction, dict):
        raise ArtifactError(f"{where}: expected a table, got {type(correction).__name__}; {AGAIN}")
    if "output_shift" not in correction:
        return
    where = f"{where}.output_shift"
    try:
        shift = OutputShift.model_validate(correction["output_shift"])
    except ValidationError as error:
        [first, *_] = error.errors()
        raise ArtifactError(f"{'.'.join(map(str, (where, *first['loc'])))}: {first['msg']}; {AGAIN}") from None
    bias = dict(network.named_buffers()).get(f"{shift.layer}.bias")
    if bias is None or len(bias) != len(shift.values):
        channels = "has no bias" if bias is None else f"has {len(bias)} channels, not {len(shift.values)}"
        raise ArtifactError(f"{where}: layer {shift.layer!r} {channels}; {AGAIN}")
    shift_output_(network, shift)


def _own_(part: nn.Module) -> None:
    """Freezes a float part and moves its tensors out of the mapped file, where they are not aligned.

    Kernels choose the order of their sums by alignment: without this a part gives other last bits than the one saved.
    """
    part.requires_grad_(False).eval()
    for leaf in (*part.parameters(), *part.buffers()):
        leaf.data = leaf.data.clone()


def weights_name(part: str) -> str:
    """File of the integers of a part of the pipeline, in the artifact."""
    return f"{part}/quantized.safetensors"


def config_name(part: str) -> str:
    """File of the configuration of a part of the pipeline, in the artifact."""
    return f"{part}/config.json"


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


def _read_index(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The index of the pipeline, {part: [library, class]}; names no code but ours and that of known libraries."""
    needed = [name for part in manifest.networks for name in (config_name(part), weights_name(part))]
    for name in (INDEX_NAME, *needed):
        if name not in manifest.files:
            raise ArtifactError(f"{folder / MANIFEST_NAME}: files: {name} is not listed, so it cannot be trusted")
    index: dict[str, Any] = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
    _refuse_foreign_code(index, folder / INDEX_NAME)
    return index


def _read_network(folder: Path, index: dict[str, Any], part: str, manifest: Manifest) -> nn.Module:
    """One quantized network of the artifact, verified and filled."""
    path = folder / config_name(part)
    config = json.loads(path.read_text(encoding="utf-8"))
    _, kind = index.get(part, [None, None])
    if kind is None:
        raise ArtifactError(f"{folder / INDEX_NAME}: lists no {part}, which {MANIFEST_NAME} says is quantized; {AGAIN}")
    try:
        network = empty_quantized_network(kind, config, manifest.networks[part].layers)
    except ModelError as error:
        raise ArtifactError(f"{path}: {error} (diffusers {diffusers.__version__})") from error
    _fill_(network, folder, part, manifest)
    return network


def _refuse_foreign_code(index: dict[str, Any], path: Path) -> None:
    """A pipeline may name classes of libraries only; diffusers would run a module that lies in the folder."""
    for name, value in index.items():
        library, kind = value if isinstance(value, list) and len(value) == 2 else (None, None)
        if library not in LIBRARIES and kind not in OWN_CLASSES.get(library, {}):
            raise ArtifactError(f"{path}: {name} is of {library!r}, only {', '.join(LIBRARIES[1:])} are loaded")


def _fill_(network: nn.Module, folder: Path, part: str, manifest: Manifest) -> None:
    """Puts the tensors of the file of `part` in the empty `network`, after comparing every one."""
    path = folder / weights_name(part)
    if not path.is_file():
        raise ArtifactError(f"{path}: the file is missing; {AGAIN}")
    expected = {name: describe(leaf) for name, leaf in network.state_dict().items()}
    compare_leaves(read_header(path), expected, path)
    try:
        state: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ArtifactError(f"{path}: {error}; the file was altered, {AGAIN}") from error
    if file_record(path) != manifest.files[weights_name(part)]:
        raise find_damage(state, manifest.networks[part].leaves, path)
    network.load_state_dict(state, strict=True, assign=True)
    network.requires_grad_(False).eval()
    for name, leaf in (*network.named_parameters(), *network.named_buffers()):
        if leaf.is_meta:
            raise ArtifactError(f"{path}: leaf {name} is not stored, and the network cannot compute without it")
