"""Tables of several machines as one.

Rows, pictures and planned cells of every folder go to one. A cell that more than one folder has counts once: that of
the folder named last. A picture whose name is taken by another picture gets a name of its own.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from mezzotint.benchmark.row import Row, Sheets
from mezzotint.benchmark.rows import IMAGES, ROWS, RowFile, latest, write_whole
from mezzotint.errors import ConfigError, OutputError


def merge(folders: Sequence[Path], out: Path) -> list[Row]:
    """Puts `folders` together in `out`, after what `out` holds; returns all rows that it holds then.

    Raises:
        ConfigError: a folder that holds no finished cell.
        OutputError: a picture that cannot be read, or `out` that cannot be written.
    """
    rows, planned = RowFile(out).read(), RowFile(out).planned()
    origins = dict.fromkeys((row.identity for row in rows), out)
    for folder in folders:
        file = RowFile(folder)
        found = file.read()
        if not found:
            raise ConfigError(f"{folder}: holds no finished cell ({ROWS}); name folders that bench-quality wrote")
        rows += found
        origins |= dict.fromkeys((row.identity for row in found), folder)
        planned += file.planned()
    rows = [_with_pictures(row, origins[row.identity], out) for row in latest(rows, str(out))]
    write_whole(out / ROWS, "".join(row.model_dump_json() + "\n" for row in rows))
    if planned:
        RowFile(out).plan(planned)
    return rows


def _with_pictures(row: Row, folder: Path, out: Path) -> Row:
    """The row with its pictures in `out`; without any where its folder was kept without pictures."""
    if row.sheets is None:
        return row
    if not (folder / IMAGES).is_dir():
        return row.model_copy(update={"sheets": None})
    names = {name: _copied(folder, getattr(row.sheets, name), out) for name in ("float_images", "quantized_images")}
    return row.model_copy(update={"sheets": Sheets(**{**row.sheets.model_dump(), **names})})


def _copied(folder: Path, name: str, out: Path) -> str:
    """Copies a picture and returns its name in `out`: its own, or one with a digest where that is taken by another."""
    source, target = folder / name, out / name
    try:
        content = source.read_bytes()
        if target.is_file() and target.read_bytes() != content:
            target = target.with_stem(f"{target.stem}-{hashlib.sha256(content).hexdigest()[:8]}")
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    except OSError as error:
        raise OutputError(f"{source}: a picture cannot be copied to {out / IMAGES}: {error.strerror}") from error
    return str(target.relative_to(out))
