"""What an exported folder says about itself: export.json, as data.

    part       says
    format     that this is ours, and which version of the layout; checked before anything else is read
    target     onnx or openvino
    family     which of the paper's families the pipeline belongs to
    base       which float model it was made from, under which licence
    graphs     file, inputs, bits and configuration of every network
    scheduler  class and configuration; the class is looked up among those of diffusers
    sampler    what the artifact was calibrated with, or the family's usual one
    conditions the prompts or labels that a run was given to calibrate with
    files      size and SHA-256 of every file
    digest     SHA-256 of this record itself, written without the digest

Nothing in it is executed. The digest guards against accidents, not against an attacker, who could compute it anew.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from mezzotint.errors import ArtifactError
from mezzotint.manifest import BaseInfo, FileRecord
from mezzotint.models.families import Family
from mezzotint.version import __version__

RECORD_NAME = "export.json"
FORMAT_VERSION = 1
AGAIN = "export it again"

Target = Literal["onnx", "openvino"]
TARGETS: tuple[str, ...] = get_args(Target)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class GraphRecord(_Record):
    """One network.

    Attributes:
        file: its graph, relative to the folder.
        kind: class of the network it was made from.
        bits: such as "w4a8"; None for a float network.
        inputs, output: names in the graph, in order.
        config: configuration of the network: sizes, scaling factor.
    """

    file: str
    kind: str
    bits: str | None
    inputs: tuple[str, ...]
    output: str
    config: dict[str, Any]


class SchedulerRecord(_Record):
    """Class and configuration of the pipeline's scheduler."""

    kind: str
    config: dict[str, Any]


class ExportRecord(_Record):
    """export.json; see the module's docstring."""

    format: Literal["mezzotint-export"] = "mezzotint-export"
    format_version: Literal[1] = 1
    mezzotint_version: str = __version__
    target: Target
    opset: int
    family: Family
    base: BaseInfo
    graphs: dict[str, GraphRecord]
    scheduler: SchedulerRecord
    sampler: dict[str, Any]
    conditions: tuple[str, ...] | tuple[int, ...] = ()
    files: dict[str, FileRecord]
    digest: str = ""


def write_record(record: ExportRecord, folder: Path) -> None:
    """Writes `folder`/export.json with its digest."""
    record = record.model_copy(update={"digest": _digest(record)})
    (folder / RECORD_NAME).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_record(folder: Path) -> ExportRecord:
    """The record of the exported `folder`.

    Raises:
        ArtifactError: there is none, it is not ours, it comes from a later version, or it was altered.
    """
    path = folder / RECORD_NAME
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{folder}: no {RECORD_NAME} there, so it is no export; make one: mezzotint export ARTIFACT -o {folder}"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path}: truncated or altered, it is no JSON ({error}); {AGAIN}") from None
    if not isinstance(fields, dict) or fields.get("format") != "mezzotint-export":
        raise ArtifactError(f'{path}: a file of something else (no "format": "mezzotint-export" in it)')
    version = fields.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: format version {version} was written by mezzotint {fields.get('mezzotint_version', '?')}, "
            f"this is {__version__} and reads up to version {FORMAT_VERSION}; run: pip install --upgrade mezzotint"
        )
    try:
        record = ExportRecord.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {field}: {first['msg']}; the file was altered, {AGAIN}") from None
    if record.digest != _digest(record):
        raise ArtifactError(f"{path}: digest: the file was altered after it was written; {AGAIN}")
    return record


def _digest(record: ExportRecord) -> str:
    return hashlib.sha256(record.model_copy(update={"digest": ""}).model_dump_json().encode()).hexdigest()
