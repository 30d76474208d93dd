from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmark_rows import make_row
from mezzotint.benchmark.merging import merge
from mezzotint.benchmark.render import render
from mezzotint.benchmark.row import Row
from mezzotint.benchmark.rows import RowFile
from mezzotint.errors import ConfigError, OutputError


def pictures(folder: Path, row: Row) -> tuple[bytes, bytes]:
    assert row.sheets is not None
    return (folder / row.sheets.float_images).read_bytes(), (folder / row.sheets.quantized_images).read_bytes()


def bare(row: Row) -> Row:
    return row.model_copy(update={"sheets": None})


@pytest.fixture
def two(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A table, and another with one cell of it measured anew, one cell more, and other pictures of the same names."""
    other = tmp_path_factory.mktemp("other")
    first = RowFile(table).read()
    for row in (first[0].model_copy(update={"fd": 31.0}), first[1].model_copy(update={"seed": 7, "variant": "more"})):
        RowFile(other).append(row)
        for name in (row.sheets.float_images, row.sheets.quantized_images) if row.sheets else ():
            (other / name).parent.mkdir(exist_ok=True)
            (other / name).write_bytes((table / name).read_bytes() + b"other")
    RowFile(table).plan(row.key for row in first)
    RowFile(other).plan([{**first[0].key, "seed": 99}])
    return table, other


def test_every_cell_once_with_its_own_pictures(two: tuple[Path, Path], tmp_path: Path) -> None:
    table, other = two
    out = tmp_path / "out"
    rows = merge([table, other], out)
    assert RowFile(out).read() == rows
    before = RowFile(table).read()
    assert len(rows) == len(before) + 1
    assert rows[0].fd == 31.0
    assert [bare(row) for row in rows[1:-1]] == [bare(row) for row in before[1:]]
    sources = [other, *[table] * (len(before) - 1), other]
    originals = [RowFile(other).read()[0], *before[1:], RowFile(other).read()[1]]
    for row, folder, original in zip(rows, sources, originals, strict=True):
        assert pictures(out, row) == pictures(folder, original)
    assert len(RowFile(out).planned()) == len(before) + 1
    named = {name for row in rows if row.sheets for name in (row.sheets.float_images, row.sheets.quantized_images)}
    assert {f"images/{path.name}" for path in (out / "images").iterdir()} == named
    render(out)


def test_merging_again_changes_nothing(two: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = merge(two, out)
    files = sorted(path.name for path in (out / "images").iterdir())
    assert merge([two[1]], out) == rows
    assert sorted(path.name for path in (out / "images").iterdir()) == files


def test_a_folder_without_cells_and_a_missing_picture_are_errors(two: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: holds no finished cell"):
        merge([tmp_path / "nowhere"], tmp_path / "out")
    next((two[1] / "images").iterdir()).unlink()
    with pytest.raises(OutputError, match=r"a picture cannot be copied"):
        merge([two[1]], tmp_path / "out")
    assert not RowFile(tmp_path / "out").read()


def test_tables_that_were_kept_without_pictures_can_be_put_together(two: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.rmtree(two[1] / "images")
    rows = merge(two, tmp_path / "out")
    assert rows == RowFile(tmp_path / "out").read()
    assert [row.fd for row in rows if row.sheets is None] == [row.fd for row in RowFile(two[1]).read()]
    render(tmp_path / "out")


def test_lines_put_together_by_hand_count_the_same(two: tuple[Path, Path], tmp_path: Path) -> None:
    whole = "".join((folder / "rows.jsonl").read_text(encoding="utf-8") for folder in two)
    (tmp_path / "rows.jsonl").write_text(whole, encoding="utf-8")
    assert [row.fd for row in RowFile(tmp_path).read()] == [row.fd for row in merge(two, tmp_path / "out")]
    RowFile(tmp_path / "bare").append(make_row(fd=31.0))
    assert merge([tmp_path / "bare"], tmp_path / "bare-out")[0].sheets is None
