"""The tensors of a network as a safetensors file: what is in it, what should be, and which one differs.

The header is read here and not by the safetensors package, because its errors ("HeaderTooLarge") do not name a tensor.

    file = length of the header (uint64) | header (JSON: name -> dtype, shape, [begin, end)) | tensors
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from mezzotint.errors import ArtifactError
from mezzotint.manifest import LeafRecord, tensor_bytes

DTYPES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
AGAIN = "fetch or write the artifact again"


class _HeaderEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int] = Field(description="first byte and the one after the last, counted from the header")


_HEADER = TypeAdapter(dict[str, _HeaderEntry])


def describe(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    """dtype in safetensors' words and shape."""
    return DTYPES[tensor.dtype], tuple(tensor.shape)


def leaf_records(state: Mapping[str, Tensor]) -> dict[str, LeafRecord]:
    """What the manifest says of every tensor of `state`."""
    records = {}
    for name, tensor in state.items():
        dtype, shape = describe(tensor)
        records[name] = LeafRecord(dtype=dtype, shape=shape, crc32=zlib.crc32(tensor_bytes(tensor)))
    return records


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """dtype and shape of every tensor in the safetensors file at `path`.

    Raises:
        ArtifactError: the header cannot be read, or a tensor lies outside the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise ArtifactError(f"{path}: truncated within its header, {size} bytes are left; {AGAIN}")
        header = file.read(length)
    entries = _parse_header(header, path)
    for name, entry in entries.items():
        end = 8 + length + entry.data_offsets[1]
        if end > size:
            raise ArtifactError(f"{path}: truncated: leaf {name} ends at byte {end}, the file has {size}; {AGAIN}")
    return {name: (entry.dtype, entry.shape) for name, entry in entries.items()}


def _parse_header(header: bytes, path: Path) -> dict[str, _HeaderEntry]:
    try:
        fields = json.loads(header)
        fields.pop("__metadata__", None)
        return _HEADER.validate_python(fields)
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError):
        raise ArtifactError(f"{path}: its header is no JSON table, so the file was altered; {AGAIN}") from None
    except ValidationError as error:
        leaf, *field = error.errors()[0]["loc"]
        raise ArtifactError(f"{path}: leaf {leaf}: its header entry was altered at {field}; {AGAIN}") from None


def compare_leaves(
    found: Mapping[str, tuple[str, tuple[int, ...]]], expected: Mapping[str, tuple[str, tuple[int, ...]]], path: Path
) -> None:
    """Raises ArtifactError, naming the first leaf that is missing, extra, or has another dtype or shape."""
    for name, (dtype, shape) in expected.items():
        if name not in found:
            raise ArtifactError(f"{path}: leaf {name} is missing; expected {dtype} {list(shape)}")
        found_dtype, found_shape = found[name]
        if found_dtype != dtype:
            raise ArtifactError(f"{path}: leaf {name}: expected dtype {dtype}, found {found_dtype}")
        if found_shape != shape:
            raise ArtifactError(f"{path}: leaf {name}: expected shape {list(shape)}, found {list(found_shape)}")
    for name in found:
        if name not in expected:
            raise ArtifactError(f"{path}: leaf {name} belongs to no layer of the network")


def find_damage(state: Mapping[str, Tensor], records: Mapping[str, LeafRecord], path: Path) -> ArtifactError:
    """The error for a file whose SHA-256 is wrong while every leaf is there: names the leaf whose bytes changed."""
    for name, record in records.items():
        if zlib.crc32(tensor_bytes(state[name])) != record.crc32:
            return ArtifactError(f"{path}: leaf {name}: its bytes were altered (checksum differs); {AGAIN}")
    return ArtifactError(f"{path}: altered outside its leaves (checksum differs); {AGAIN}")
