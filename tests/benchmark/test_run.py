from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mezzotint.benchmark import measure as measuring
from mezzotint.benchmark.plan import Cell, Plan, list_cells
from mezzotint.benchmark.rows import UNFINISHED, Row, RowFile
from mezzotint.benchmark.run import run_cells
from mezzotint.errors import ConfigError
from tiny import tiny_pipeline

PLAN = Plan(
    "tiny",
    ("nearest", "eda-dm"),
    samples=4,
    changes={"steps": 3, "calib_size": 4, "pilot_size": 2, "iters": 1, "forward_batch": 8, "drift_trajectories": 0},
    settings={"ranges.candidates": 2},
)


@pytest.fixture
def cells() -> list[Cell]:
    return list_cells(PLAN, "ddim")


class Stopped(Exception):
    pass


def stop(_: Row) -> None:
    raise Stopped


def run(cells: list[Cell], folder: Path, **options: Any) -> Any:
    return run_cells(tiny_pipeline(), cells, folder, device="cpu", batch_size=2, **options)


def broken(*_: Any) -> None:
    raise Stopped


def test_a_stopped_run_goes_on_and_repeats_nothing(
    tmp_path: Path, cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped):  # after the first cell
        run(cells, tmp_path, on_row=stop)
    with monkeypatch.context() as patch:  # after the second was calibrated
        patch.setattr(measuring, "step_errors", broken)
        with pytest.raises(Stopped):
            run(cells, tmp_path)
    assert list((tmp_path / UNFINISHED).glob("*/unit-*.safetensors"))
    monkeypatch.setattr("mezzotint.reconstruction.reconstruct.learn_unit", broken)
    outcome = run(cells, tmp_path, command="mezzotint bench-quality")
    assert [row.recipe for row in outcome.found] == ["nearest"]
    assert [row.recipe for row in outcome.made] == ["eda-dm"]
    assert outcome.left == []
    assert not (tmp_path / UNFINISHED).exists()
    monkeypatch.setattr(measuring, "simulate", broken)
    assert run(cells, tmp_path).made == []

    nearest, ours = RowFile(tmp_path).read()
    assert (nearest.command, ours.command) == ("", "mezzotint bench-quality")
    assert ours.units
    assert not nearest.units
    for row in (nearest, ours):
        assert row.base is not None
        assert len(row.base.sha256) == 64
        assert row.sheets is not None
        assert (tmp_path / row.sheets.quantized_images).is_file()
        assert sum(row.counts) == 4
        assert {layer.name for layer in row.layers} >= {"conv_in", "mid_block.attentions.0.to_q"}
        assert [layer.sqnr_db for layer in row.layers] == sorted(layer.sqnr_db for layer in row.layers)


def test_no_cell_begins_that_would_not_end_in_time(tmp_path: Path, cells: list[Cell]) -> None:
    outcome = run(cells, tmp_path, budget=-1.0)
    assert outcome.left == cells
    assert RowFile(tmp_path).planned() == [cell.key for cell in cells]
    assert not RowFile(tmp_path).read()


def test_wrong_scores_are_refused_before_anything_is_calibrated(tmp_path: Path, cells: list[Cell]) -> None:
    with pytest.raises(ConfigError, match="metrics: expected some of fid"):
        run(cells, tmp_path, metrics=["fdi"])
    assert not RowFile(tmp_path).read()
