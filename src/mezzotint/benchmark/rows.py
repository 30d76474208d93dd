"""The rows of a table and the folder they are kept in.

    DIR/rows.jsonl      one finished cell a line, in the order in which they finished
    DIR/planned.json    names of the cells that were asked for, so that a table can say which did not run
    DIR/images/*.png    the first images of each cell and of the float model, for the report
    DIR/unfinished/     checkpoints of the cells that are being calibrated, and the float model's images; kept until
                        every planned cell is there

A line is written by one call and flushed to the disk. A process killed in the middle of it leaves a line without an
end, which the next run cuts off; any other line that cannot be read is an error. A cell that has two lines counts
once, the later line, and a log line says so. So lines of several machines may be put together with `cat`; `merging`
does that, with their pictures.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mezzotint.benchmark.plan import SPENDING, Arithmetic, Cell, Kind, label, same_work
from mezzotint.config import QuantizeConfig
from mezzotint.errors import OutputError, ResumeError
from mezzotint.evaluation.cost import FixedCost
from mezzotint.evaluation.layers import LayerSqnr
from mezzotint.evaluation.pages import settings
from mezzotint.evaluation.result import Versions
from mezzotint.evaluation.steps import StepSqnr
from mezzotint.manifest import BaseInfo

ROWS, PLANNED, IMAGES, UNFINISHED = "rows.jsonl", "planned.json", "images", "unfinished"
USUAL_SOURCE = "evaluation split"
KEY = ("model", "recipe", "bits", "iters", "calib_size", "samples", "seed", "variant", "arithmetic")
ELAPSED = ("calibrate", "sample", "sqnr", "compare", "score")  # parts of a cell's time that add up to it

logger = logging.getLogger("mezzotint")


class Sheets(BaseModel):
    """The first images of the float model and of the quantized one, as two pictures of one size.

    Attributes:
        float_images, quantized_images: files in the folder of the table.
        count: images in each, `columns` in a line, from seed 0 on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    float_images: str
    quantized_images: str
    count: int
    columns: int
    side: tuple[int, int]


class Told(BaseModel):
    """What the images of a conditional model show.

    Attributes:
        source: "evaluation split", or where the user took them from.
        count: of different prompts or classes.
        sha256: of all of them in the order of the images, a line each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    count: int
    sha256: str


class Row(BaseModel):
    """One finished cell: its name, its figures, and all that made them.

    Attributes:
        model ... arithmetic: the cell's name (`plan.Cell.key`); `seed` is the calibration's, `arithmetic` that of the
            network that drew the images.
        attention: how that network, on integers, multiplied in attention: "int8" of codes, or "bf16"; "" of a
            simulated one.
        refused: why no integer network drew them where one was asked for; "" otherwise.
        kind, note: as in `plan.Cell`.
        sqnr_db: mean over ten evenly chosen steps of the float trajectory; both networks get the same rows.
        sampler_sqnr_db: the same of eps as the sampler uses it, guided and corrected.
        sqnr_steps_db, steps: these ten values; with their steps and times.
        psnr_pooled_db: one mean squared error over all images, [-1, 1].
        psnr_mean_db: mean over images of each image's PSNR.
        psnr_interval_db: of psnr_mean_db, as `evaluation.intervals`.
        lpips: mean over images, where the weights of its network are on the disk.
        fd, fd_interval: Frechet distance to the float model's images in `features`.
        fd_train, fd_train_float: the same to the training images; what the float model's images have.
        intervals: of other figures, by their names here.
        scores, float_scores: distribution scores of this cell and of the float model, as `scoring` takes them.
        warnings: what a reader must know before quoting a figure.
        counts, selection: calibration samples of each step; how they came about.
        units: every unit with its losses.
        layers: SQNR of single layers on the float network's inputs.
        undecided: mean share of soft roundings that were undecided when made hard.
        seconds: by part. Where the calibration set was that of an earlier cell, "record", "select" and "calibrate" hold
            what it took there, and "shared" how much that was.
        cost: bytes and bit operations of this very plan of layers. calls: network rows that one image takes.
        parts: bits and SQNR of the other networks, where they are quantized too.
        config: every option. base: name and hash of the float weights. image_seeds: first and last.
        told: prompts or classes of the images; None for unconditional models.
        command: what was typed, "" if nothing was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    model: str
    recipe: str
    bits: str
    iters: int
    calib_size: int
    samples: int
    seed: int
    variant: str
    arithmetic: Arithmetic = "simulated"
    attention: str = ""
    refused: str = ""
    kind: Kind = "recipe"
    note: str = ""

    sqnr_db: float
    sampler_sqnr_db: float | None = None
    sqnr_steps_db: list[float]
    steps: list[StepSqnr] = []
    psnr_pooled_db: float
    psnr_mean_db: float
    psnr_interval_db: tuple[float, float] | None = None
    ssim: float | None
    lpips: float | None = None
    fd: float
    fd_interval: tuple[float, float]
    fd_train: float | None
    fd_train_float: float | None
    features: str
    intervals: dict[str, tuple[float, float]] = {}
    scores: list[dict[str, Any]] = []
    float_scores: list[dict[str, Any]] = []
    warnings: list[str] = []

    counts: list[int]
    selection: dict[str, Any] | None = None
    units: list[dict[str, Any]]
    layers: list[LayerSqnr] = []
    undecided: float | None
    ms_per_iteration: float | None
    seconds: dict[str, float]
    sheets: Sheets | None = None
    cost: FixedCost | None = None
    calls: int | None = None
    parts: dict[str, dict[str, Any]] = {}

    device: str
    config: dict[str, Any]
    base: BaseInfo | None = None
    image_seeds: tuple[int, int] | None = None
    told: Told | None = None
    versions: Versions | None = None
    created: str | None = None
    command: str = ""

    @property
    def key(self) -> dict[str, Any]:
        """What names the cell."""
        return {name: getattr(self, name) for name in KEY}

    @property
    def drawn(self) -> str:
        """What drew the images, in words."""
        if self.arithmetic == "simulated":
            return "simulated networks"
        return f"integer networks (attention {'on int8 codes' if self.attention == 'int8' else f'in {self.attention}'})"

    @property
    def elapsed(self) -> float:
        """Seconds of the whole cell, a shared calibration set counted as if it had been its own."""
        return sum(self.seconds.get(part, 0.0) for part in ELAPSED)

    @property
    def weights(self) -> str:
        """Hash of the float weights, "" in rows of before it was recorded."""
        return "" if self.base is None else self.base.sha256

    @property
    def options(self) -> dict[str, str]:
        """What the cell computed: every option but `SPENDING` by its dotted name, with the default where the row is
        older than the option."""
        return dict(_options(json.dumps(self.config)))

    @property
    def shown(self) -> str:
        """Hash of what the images show, "" for the evaluation split, which rows do not say that are older."""
        return "" if self.told is None or self.told.source == USUAL_SOURCE else self.told.sha256

    @property
    def identity(self) -> tuple[str, ...]:
        """Equal for two rows of one cell."""
        drawn = (self.arithmetic, self.attention)
        return (self.model, self.weights, self.variant, str(self.samples), self.shown, *drawn, str(self.options))


class RowFile:
    """The folder of a table, read and written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / ROWS

    def read(self) -> list[Row]:
        """All finished rows, each cell once; none if there is no file. ResumeError for a line that cannot be read."""
        if not self.path.is_file():
            return []
        whole = self.path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline has no end
        rows = [self._parse(line, number) for number, line in enumerate(whole, 1) if line.strip()]
        return latest(rows, str(self.path))

    def _parse(self, line: str, number: int) -> Row:
        try:
            return Row.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the line"
            raise ResumeError(
                f"{self.path}:{number}: no row of a table: {where}: {first['msg']}; remove it to run its cell again"
            ) from error

    def append(self, row: Row) -> None:
        """Adds a row. OutputError if it cannot be written."""
        line = row.model_dump_json() + "\n"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                file.write(line.encode())
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path}: cannot write the row: {error.strerror}; choose another folder") from error

    def cut_torn_line(self) -> None:
        """Removes a last line that a killed process left without its end."""
        if not self.path.is_file():
            return
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            logger.warning("%s: the last line has no end; its cell runs again", self.path)
            os.truncate(self.path, end)

    def plan(self, cells: Iterable[Mapping[str, Any]]) -> None:
        """Adds the names of cells (`Cell.key`) to those that were asked for."""
        names = [*self.planned(), *map(dict, cells)]
        unique = list({json.dumps(name): name for name in names}.values())
        write_whole(self.folder / PLANNED, json.dumps(unique, indent=1) + "\n")

    def planned(self) -> list[dict[str, Any]]:
        """Names of the cells that were asked for."""
        path = self.folder / PLANNED
        if not path.is_file():
            return []
        try:
            found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ResumeError(f"{path}: is damaged ({error}); delete it, it only lists what did not run") from error
        return [{**name, "arithmetic": name.get("arithmetic", "simulated")} for name in found]

    def missing(self) -> list[dict[str, Any]]:
        """Names of the cells that were asked for and are not there."""
        return missing(self.planned(), self.read())


def missing(planned: Iterable[Mapping[str, Any]], rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Those of the names `planned` that are of none of `rows`."""
    names = [key for row in rows for key in (row.key, *([{**row.key, "arithmetic": "integer"}] if row.refused else []))]
    return [dict(key) for key in planned if dict(key) not in names]


@functools.lru_cache(maxsize=1024)
def _options(config: str) -> tuple[tuple[str, str], ...]:
    """`Row.options` of a config as JSON."""
    data = json.loads(config)
    with contextlib.suppress(ValidationError):  # written by a version whose options were others
        data = QuantizeConfig.model_validate(data).model_dump(mode="json")
    return tuple(settings({key: value for key, value in data.items() if key not in SPENDING}))


@functools.cache
def _say(line: str) -> None:
    """Logs a line, the first time that it comes up."""
    logger.warning(line)


def latest(rows: Iterable[Row], where: str) -> list[Row]:
    """The rows with the last of each cell alone, in the place of its first; one log line if any was there twice."""
    found: dict[tuple[str, ...], Row] = {}
    twice: dict[str, None] = {}
    for row in rows:
        if row.identity in found:
            twice[label(row.key)] = None
        found[row.identity] = row
    if twice:
        first, count = next(iter(twice)), len(twice)
        others = "" if count == 1 else f" and {count - 1} more"
        _say(f"{where}: {first}{others} occur more than once; the last row of a cell counts")
    return list(found.values())


def finished(cell: Cell, rows: Iterable[Row], sha256: str, told: Told | None = None) -> Row | None:
    """The row of `cell` among `rows`: the same weights, images, arithmetic and config; None if there is none.

    Of a cell on integers also the row that a simulated network drew because no integer network could.
    A config written before an option existed is taken to have had the option's default. Rows without the hash of the
    weights are compared by the model's name; rows that do not say what they show, show the evaluation split.
    """
    for row in rows:
        same_model = row.model == cell.model and (row.base is None or row.base.sha256 == sha256)
        if not same_model or row.samples != cell.samples or row.variant != cell.variant:
            continue
        if row.arithmetic != cell.arithmetic and not (cell.arithmetic == "integer" and row.refused):
            continue
        if row.told is None and told is not None and told.source != USUAL_SOURCE:
            continue
        if row.told is not None and (told is None or told.sha256 != row.told.sha256):
            continue
        try:
            config = QuantizeConfig.model_validate(row.config)
        except ValidationError:  # written by a version whose options were others: another cell
            continue
        if same_work(config, cell.config):
            return row
    return None


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file that appears whole or not at all. OutputError if it cannot be written."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(beside, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot write there: {error.strerror}; choose another folder") from error
