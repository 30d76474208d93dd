from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmark_rows import make_row
from families import tiny_ldm_class
from mezzotint.benchmark import measure as measuring
from mezzotint.benchmark.plan import Cell, Plan, list_cells
from mezzotint.benchmark.row import USUAL_SOURCE, Row
from mezzotint.benchmark.rows import UNFINISHED, RowFile
from mezzotint.benchmark.run import expected_seconds, run_cells
from mezzotint.config import with_settings
from mezzotint.errors import ConfigError, OutputError
from mezzotint.evaluation.cost import FixedCost
from mezzotint.evaluation.evaluate import measure_cost
from mezzotint.pipeline import quantize
from tiny import tiny_pipeline

PLAN = Plan(
    "tiny",
    ("nearest", "eda-dm"),
    samples=4,
    changes={"steps": 3, "calib_size": 4, "pilot_size": 2, "iters": 1, "forward_batch": 8, "drift_trajectories": 0},
    settings={"ranges.candidates": 2},
)


GUIDED = Plan(
    "tiny",
    ("nearest",),
    samples=2,
    changes={"steps": 2, "calib_size": 2, "forward_batch": 8, "guidance_scale": 3.0},
    settings={"ranges.candidates": 2, "vae_bits": "w8a8", "drift_trajectories": 2},
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


def test_a_cell_is_expected_to_take_what_cells_like_it_took() -> None:
    changes = {"iters": 400, "calib_size": 32}
    nearest, ours = list_cells(Plan("emoji", ("nearest", "eda-dm"), samples=5000, changes=changes), "ddim")
    made = [make_row("nearest", seconds={"calibrate": 3.0, "sample": 2.0})]
    rows = [make_row(seconds={"calibrate": 30.0, "score": 1.0}), make_row(seconds={"calibrate": 70.0}, device="other")]
    rows.append(make_row("nearest", seconds={"calibrate": 9.0}))
    assert expected_seconds(nearest, made, rows, "TEST GPU") == 5.0
    assert expected_seconds(ours, made, rows, "TEST GPU") == 31.0
    assert expected_seconds(replace(ours, arithmetic="integer"), made, rows, "TEST GPU") == 5.0  # nothing is like it
    assert expected_seconds(ours, [], [], "TEST GPU") == 0.0


def test_wrong_scores_are_refused_before_anything_is_calibrated(tmp_path: Path, cells: list[Cell]) -> None:
    with pytest.raises(ConfigError, match="metrics: expected some of fid"):
        run(cells, tmp_path, metrics=["fdi"])
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, cells: list[Cell]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="holds other files and no table"):
        run(cells, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_row_says_what_its_integers_cost_and_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mezzotint.calibration.parts.PART_ROWS", 2)
    pipeline, (cell,) = tiny_ldm_class(), list_cells(GUIDED, "ldm-class")
    (row,) = run_cells(pipeline, [cell], tmp_path, device="cpu").made
    artifact = quantize(pipeline, config=cell.config, device="cpu")
    assert row.cost is not None
    assert row.cost == FixedCost(**measure_cost(pipeline, artifact).model_dump(exclude={"latency"}))
    assert row.calls == 4  # two steps of two rows
    assert row.parts["vqvae"]["bits"] == "w8a8"
    assert row.sampler_sqnr_db is not None
    assert row.sampler_sqnr_db < row.sqnr_db  # guidance multiplies errors
    assert set(row.intervals) >= {"psnr_pooled_db", "ssim"}
    assert row.told is not None
    assert (row.told.source, row.told.count) == (USUAL_SOURCE, 2)


def test_other_inputs_make_another_cell(tmp_path: Path) -> None:
    plan = replace(GUIDED, settings={"ranges.candidates": 2, "drift_trajectories": 0})
    pipeline, cells = tiny_ldm_class(), list_cells(plan, "ldm-class")
    usual = run_cells(pipeline, cells, tmp_path, device="cpu").made
    named = run_cells(pipeline, cells, tmp_path, device="cpu", inputs=[3], source="--labels 3").made
    assert [row.told.source for row in (*usual, *named) if row.told] == [USUAL_SOURCE, "--labels 3"]
    assert named[0].told is not None
    assert named[0].told.count == 1
    assert usual[0].sheets is not None
    assert named[0].sheets is not None
    assert not set(usual[0].sheets.model_dump().values()) & {
        named[0].sheets.float_images,
        named[0].sheets.quantized_images,
    }
    assert len(run_cells(pipeline, cells, tmp_path, device="cpu", inputs=[3], source="--labels 3").found) == 1


def test_parts_that_are_not_there_are_refused_before_anything_is_calibrated(tmp_path: Path, cells: list[Cell]) -> None:
    cell = replace(cells[0], config=with_settings(cells[0].config, {"vae_bits": "w8a8"}))
    with pytest.raises(ConfigError, match="vae_bits: .* has no first stage"):
        run([cell], tmp_path)
