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
noise_correction   what samplers take out of every step, where it was measured
files      size and SHA-256 of every file
digest     of export.json itself, see `records`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from mezzotint import records
from mezzotint.manifest import BaseInfo, FileRecord
from mezzotint.models.families import Family
from mezzotint.records import Record, SignedRecord
from mezzotint.sampling.correction import NoiseCorrection

RECORD_NAME = "export.json"
AGAIN = "export it again"

Target = Literal["onnx", "openvino"]
TARGETS: tuple[str, ...] = get_args(Target)


class GraphRecord(Record):
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


class SchedulerRecord(Record):
    """Class and configuration of the pipeline's scheduler."""

    kind: str
    config: dict[str, Any]


class ExportRecord(SignedRecord):
    """export.json; see the module's docstring."""

    format: Literal["mezzotint-export"] = "mezzotint-export"
    format_version: Literal[1] = 1
    target: Target
    opset: int
    family: Family
    base: BaseInfo
    graphs: dict[str, GraphRecord]
    scheduler: SchedulerRecord
    sampler: dict[str, Any]
    conditions: tuple[str, ...] | tuple[int, ...] = ()
    noise_correction: NoiseCorrection | None = None
    files: dict[str, FileRecord]


def write_record(record: ExportRecord, folder: Path) -> None:
    """Writes `folder`/export.json with its digest."""
    records.write_record(record, folder / RECORD_NAME)


def read_record(folder: Path) -> ExportRecord:
    """The record of the exported `folder`.

    Raises:
        ArtifactError: there is none, it is not ours, it comes from a later version, or it was altered.
    """
    absent = f"it is no export; make one: mezzotint export ARTIFACT -o {folder}"
    return records.read_record(folder / RECORD_NAME, ExportRecord, name="a file", absent=absent, again=AGAIN)
