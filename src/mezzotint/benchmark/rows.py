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

import functools
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mezzotint.benchmark.plan import Cell, label, same_work
from mezzotint.benchmark.row import USUAL_SOURCE, Row, Told
from mezzotint.config import QuantizeConfig
from mezzotint.errors import OutputError, ResumeError

REFUSABLE = ("integer", "deployed")  # arithmetics for which a simulated row may stand
ROWS, PLANNED, IMAGES, UNFINISHED = "rows.jsonl", "planned.json", "images", "unfinished"

logger = logging.getLogger("mezzotint")


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

    def check_place(self) -> None:
        """OutputError where the folder holds other things and no table."""
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise OutputError(f"{self.folder}: is a file; name a folder for the table")
        names = {path.name for path in self.folder.iterdir()}
        if names and not names & {ROWS, PLANNED, UNFINISHED}:
            raise OutputError(f"{self.folder}: holds other files and no table; name a new folder, or one of a table")

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
    names = [{**row.key, "arithmetic": kind} for row in rows for kind in (REFUSABLE if row.refused else ())]
    names += [row.key for row in rows]
    return [dict(key) for key in planned if dict(key) not in names]


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
        if row.arithmetic != cell.arithmetic and not (cell.arithmetic in REFUSABLE and row.refused):
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
