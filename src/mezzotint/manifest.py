"""What an artifact says about itself: manifest.json, as data.

    part        says
    format      that this is ours, and which version of the layout; checked before anything else is read
    base        which float model it was made from (a hash of its weights), under which licence, whom to credit
    layers      the grids of every integer layer, enough to build the network empty
    parts       the same for the first stage and the text encoder, where they are quantized too
    config      the whole QuantizeConfig, so that the run can be repeated; sampler and seeds likewise
    results     what the run measured: chosen time steps, losses of every unit, seconds
    files       size and SHA-256 of every file that loading reads
    leaves      dtype, shape and CRC-32 of every tensor, so that a damaged file can be named down to the tensor
    digest      of manifest.json itself, see `records`

A checksum for every tensor beside the one of the file costs some 100 bytes each and is what turns "the file is damaged"
into "weight_packed of mid_block.resnets.0.conv1 is damaged". CRC-32 is enough for that, since SHA-256 guards the file.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from mezzotint.layers.spec import LayerSpec
from mezzotint.records import Record, SignedRecord, parse_record, read_record, write_record

MANIFEST_NAME = "manifest.json"
DENOISER = "unet"
_WORDS = {"name": "a manifest", "again": "fetch it again"}


class BaseInfo(Record):
    """The float model an artifact was made from.

    Attributes:
        name: zoo name, hub id or folder name; never a path of a machine.
        sha256: `weights_sha256` of its network.
        licence: SPDX identifier of the weights, "" if the model does not say.
        credits: whom the licence asks to name, as plain text.
    """

    name: str
    sha256: str
    licence: str = ""
    credits: str = ""


class FileRecord(Record):
    """Size and SHA-256 of one file."""

    bytes: int = Field(ge=0)
    sha256: str


class LeafRecord(Record):
    """One tensor of a safetensors file; `dtype` in safetensors' words, such as "U8"."""

    dtype: str
    shape: tuple[int, ...]
    crc32: int = Field(ge=0, lt=1 << 32)


class PartRecord(Record):
    """A quantized part of the pipeline beside the denoiser: first stage or text encoder.

    Attributes:
        bits: weights and activations, such as "w8a8".
        layers, float_modules, leaves: as of the manifest, for this part.
        results: what quantizing it cost on its calibration rows.
    """

    bits: str
    layers: dict[str, LayerSpec]
    float_modules: list[str]
    results: dict[str, Any] = Field(default_factory=dict)
    leaves: dict[str, LeafRecord] = Field(default_factory=dict)


class Manifest(SignedRecord):
    """manifest.json; see the module's docstring. `files` and `leaves` are filled in by `save_quantized`."""

    format: Literal["mezzotint"] = "mezzotint"
    format_version: Literal[1] = 1
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    base: BaseInfo
    bits: str
    layers: dict[str, LayerSpec]
    parts: dict[str, PartRecord] = {}
    float_modules: list[str] = []
    config: dict[str, Any] = {}
    sampler: dict[str, Any] = {}
    seeds: dict[str, int] = {}
    results: dict[str, Any] = {}
    files: dict[str, FileRecord] = {}
    leaves: dict[str, LeafRecord] = {}

    @property
    def networks(self) -> dict[str, Manifest | PartRecord]:
        """What is quantized, by its name in the pipeline; the denoiser's own record is the manifest."""
        return {DENOISER: self, **self.parts}


def weights_sha256(network: nn.Module) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of the state of `network`, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of `tensor` in row-major order, without a copy where it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    array: np.ndarray = flat.view(torch.uint8).numpy()
    return array.data


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Writes `folder`/manifest.json with its digest."""
    write_record(manifest, folder / MANIFEST_NAME)


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of the artifact in `folder`.

    Raises:
        ArtifactError: there is none, it is not ours, it comes from a later version, or it was altered.
    """
    absent = "this is no quantized model of mezzotint"
    return read_record(Path(folder) / MANIFEST_NAME, Manifest, absent=absent, **_WORDS)


def parse_manifest(text: str, path: Path) -> Manifest:
    """The manifest that `text` holds; `path` is only for the error messages. Raises as `read_manifest`."""
    return parse_record(text, path, Manifest, **_WORDS)
