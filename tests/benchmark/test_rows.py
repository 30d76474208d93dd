from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmark_rows import make_row
from mezzotint.benchmark.plan import Plan, list_cells
from mezzotint.benchmark.row import USUAL_SOURCE, Row, Told
from mezzotint.benchmark.rows import ROWS, RowFile, finished
from mezzotint.errors import ResumeError


def test_rows_come_back_as_they_were(tmp_path: Path, rows: list[Row]) -> None:
    file = RowFile(tmp_path)
    rows[0] = rows[0].model_copy(update={"psnr_mean_db": math.inf})
    for row in rows:
        file.append(row)
    assert file.read() == rows
    assert RowFile(tmp_path / "nowhere").read() == []


def test_a_torn_last_line_is_cut_off_and_the_file_goes_on(
    tmp_path: Path, rows: list[Row], caplog: pytest.LogCaptureFixture
) -> None:
    file = RowFile(tmp_path)
    file.append(rows[0])
    whole = file.path.read_bytes()
    file.path.write_bytes(whole + whole[:100])
    assert file.read() == rows[:1]
    file.cut_torn_line()
    assert "the last line has no end" in caplog.text
    file.append(rows[1])
    assert file.read() == rows[:2]


def test_any_other_line_is_an_error_that_names_it(tmp_path: Path, rows: list[Row]) -> None:
    file = RowFile(tmp_path)
    file.append(rows[0])
    with file.path.open("a") as lines:
        lines.write('{"model": "x"}\n')
    with pytest.raises(ResumeError, match=rf"{ROWS}:2: no row of a table: recipe: Field required"):
        file.read()


def test_a_cell_that_is_there_twice_counts_once_the_later_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = RowFile(tmp_path)
    again = make_row(fd=9.0).model_copy(update={"told": Told(source=USUAL_SOURCE, count=2, sha256="ef" * 32)})
    for row in (make_row(fd=1.0), make_row(seed=2), make_row(seed=3), again, make_row(seed=3, fd=8.0)):
        file.append(row)
    assert [(row.seed, row.fd) for row in file.read()] == [(1, 9.0), (2, 1.25), (3, 8.0)]
    (line,) = caplog.messages
    assert "emoji w4a8 eda-dm seed 1 and 1 more occur more than once; the last row of a cell counts" in line


def test_rows_of_other_options_weights_or_prompts_are_other_cells(tmp_path: Path) -> None:
    file, row = RowFile(tmp_path), make_row()
    others = [
        make_row(iters=9),
        row.model_copy(update={"base": row.base and row.base.model_copy(update={"sha256": "cd" * 32})}),
        row.model_copy(update={"told": Told(source="coco.json", count=9, sha256="ef" * 32)}),
        row.model_copy(update={"samples": 6}),
        row.model_copy(update={"variant": "x"}),
    ]
    for each in (row, *others):
        file.append(each)
    assert file.read() == [row, *others]


def test_a_cell_is_finished_if_weights_images_and_config_are_the_same() -> None:
    changes = {"cache_gb": 1.0, "iters": 400, "calib_size": 32}
    (cell,) = list_cells(Plan("emoji", ("eda-dm",), seeds=(1,), samples=5000, changes=changes), "ddim")
    row = make_row()
    assert finished(cell, [row], "ab" * 32) is row
    assert finished(cell, [row], "cd" * 32) is None
    assert finished(cell, [row.model_copy(update={"samples": 6})], "ab" * 32) is None
    assert finished(cell, [make_row(seed=2)], "ab" * 32) is None
    older = {key: value for key, value in row.config.items() if key != "softmax_bits"}
    assert finished(cell, [row.model_copy(update={"config": older})], "ab" * 32) is not None
    told = Told(source="coco.json", count=9, sha256="ef" * 32)
    assert finished(cell, [row], "ab" * 32, told) is None
    assert finished(cell, [row], "ab" * 32, told.model_copy(update={"source": USUAL_SOURCE})) is row
    assert finished(cell, [row.model_copy(update={"told": told})], "ab" * 32) is None
    foreign = row.model_copy(update={"config": {**row.config, "no_such_option": 1}})
    assert finished(cell, [foreign], "ab" * 32) is None


def test_planned_cells_add_up(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "table")
    one, two = ([c.key for c in list_cells(Plan("m", (recipe,)), "ddim")] for recipe in ("nearest", "eda-dm"))
    file.plan(one)
    file.plan([*one, *two])
    assert file.planned() == [*one, *two]
    (tmp_path / "table" / "planned.json").write_text("[")
    with pytest.raises(ResumeError, match=r"planned\.json: is damaged"):
        file.planned()
