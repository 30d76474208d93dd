"""Cells drawn on integers: near to the simulated ones, never taken for them."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark_rows import make_row
from measures import decibels
from mezzotint.benchmark import measure as measuring
from mezzotint.benchmark.bench import Bench
from mezzotint.benchmark.measure import draw
from mezzotint.benchmark.merging import merge
from mezzotint.benchmark.names import missing_cells
from mezzotint.benchmark.page import render_report
from mezzotint.benchmark.plan import Cell, Plan, list_cells
from mezzotint.benchmark.row import Row
from mezzotint.benchmark.rows import RowFile, finished
from mezzotint.benchmark.run import run_cells
from mezzotint.benchmark.table import recipe_blocks
from mezzotint.benchmark.text import tables
from mezzotint.errors import ModelError
from mezzotint.layers.int_base import IntLayer
from mezzotint.models.denoiser import network_of
from mezzotint.pipeline import simulate, with_network
from mezzotint.sampling.correction import NoiseCorrection, correct_, correction_of
from phases import Told
from tiny import tiny_pipeline

PLAN = Plan(
    "tiny",
    ("nearest",),
    ("w8a8",),
    samples=3,
    changes={"steps": 3, "calib_size": 4, "forward_batch": 8},
    settings={"ranges.candidates": 2, "drift_trajectories": 0},
)
NARROW: dict[str, Any] = {"block_out_channels": (16,), "down_block_types": ("AttnDownBlock2D",), "sample_size": 8}
MARGIN_DB = 6  # integers are so much nearer to the simulation than the simulation is to the float model


def narrow_pipeline() -> Any:
    """One level: half the time to trace."""
    return tiny_pipeline(**NARROW, up_block_types=("AttnUpBlock2D",))


def cell_of(arithmetic: Any) -> Cell:
    (cell,) = list_cells(replace(PLAN, arithmetic=arithmetic), "ddim")
    return cell


def run(cell: Cell, folder: Path, **options: Any) -> Any:
    return run_cells(narrow_pipeline(), [cell], folder, device="cpu", batch_size=2, **options)


def deployed_row(**changes: Any) -> Row:
    return make_row(arithmetic="deployed", attention="bf16", **changes)


@pytest.mark.parametrize(
    ("arithmetic", "device", "coded", "attention", "activations"),
    [
        ("integer", "cuda:1", True, "int8", "fp32"),
        ("integer", "cuda", False, "bf16", "fp32"),
        ("deployed", "cuda", True, "bf16", "bf16"),
        ("deployed", "cpu", True, "int8", "fp32"),
    ],
)
def test_integer_is_as_defined_and_deployed_as_users_get_it(
    arithmetic: Any, device: str, coded: bool, attention: str, activations: str
) -> None:
    assert measuring._how(arithmetic, device, coded) == {"attention": attention, "activations": activations}


@pytest.mark.usefixtures("traceable")
def test_integers_draw_what_the_simulation_draws_with_its_correction(tmp_path: Path) -> None:
    cell, pipeline = cell_of("integer"), narrow_pipeline()
    bench = Bench.of(pipeline, tmp_path, samples=3, device="cpu", batch_size=2)
    network = simulate(pipeline, cell.config, device="cpu").network
    quantized, sampler = with_network(pipeline, network), cell.config.sampler
    times, bias = (800, 400, 0), ((0.5,) * 3,) * 3
    correct_(network, NoiseCorrection(times=times, gain=(1.5,) * 3, bias=bias, variance=(0.0,) * 3, guidance_scale=1.0))
    simulated, said = draw(bench, cell_of("simulated"), quantized)
    assert said == {"arithmetic": "simulated", "refused": ""}
    integer, said = draw(bench, cell, quantized)
    assert said == {"arithmetic": "integer", "attention": "int8"}
    assert not torch.equal(integer, simulated)
    assert decibels(simulated, integer) > decibels(bench.images(pipeline, sampler), simulated) + MARGIN_DB
    assert correction_of(network) is not None
    assert not any(isinstance(module, IntLayer) for module in network.modules())


def test_both_arithmetics_have_a_row_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "optimize", lambda pipeline, **_: pipeline)  # tracing takes seconds
    simulated, integer = cell_of("simulated"), cell_of("integer")
    made = [*run(simulated, tmp_path).made, *run(integer, tmp_path).made]
    assert [row.arithmetic for row in made] == ["simulated", "integer"]
    assert run(integer, tmp_path).found == made[1:]
    assert run(simulated, tmp_path).found == made[:1]
    assert made[1].sqnr_steps_db == made[0].sqnr_steps_db  # of the simulated network
    assert made[1].fd == pytest.approx(made[0].fd, rel=0.1)
    assert [row.sheets.float_images for row in made if row.sheets][1:] == [
        made[0].sheets and made[0].sheets.float_images
    ]
    assert len({row.sheets.quantized_images for row in made if row.sheets}) == 2


def test_where_no_integer_network_can_be_made_the_row_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ModelError("time_embedding.linear_1: no form on a GPU")

    monkeypatch.setattr(measuring, "optimize", refuse)
    cell = cell_of("integer")
    with caplog.at_level(logging.WARNING, logger="mezzotint"):
        (row,) = run(cell, tmp_path).made
    assert "tiny w8a8 nearest seed 1234 integer: drawn by the simulated network: time_embedding" in caplog.text
    assert (row.arithmetic, row.attention) == ("simulated", "")
    assert run(cell, tmp_path).found == [row]  # and is not run again
    assert run(cell_of("simulated"), tmp_path).found == [row]
    assert RowFile(tmp_path).missing() == []
    warning = "warning: nearest at W8A8 was drawn by the simulated network, not on integers: time_embedding.linear_1"
    assert any(note.startswith(warning) for note in tables([row])[0].notes)


def test_a_network_that_is_refused_in_its_first_call_leaves_no_phase_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulated network's drawing is then a phase of its own, not one within the drawing that was given up."""

    def refuse(module: torch.nn.Module, args: Any) -> None:
        raise ModelError("time_embedding.linear_1: no form on a GPU")

    def optimized(pipeline: Any, **_: Any) -> Any:
        network_of(pipeline).register_forward_pre_hook(refuse)
        return pipeline

    monkeypatch.setattr(measuring, "optimize", optimized)
    told = Told()
    (row,) = run(cell_of("integer"), tmp_path, progress=told).made
    assert row.refused
    names = [word[0] for word in told.words if isinstance(word, tuple)]
    assert names.count("draw: quantized model") == 2
    depth, depths = 0, dict[str, list[int]]()
    for word in told.words:
        depth += 1 if isinstance(word, tuple) else -1 if word == "end" else 0
        if isinstance(word, tuple):
            depths.setdefault(word[0], []).append(depth)
    assert depth == 0
    assert depths["draw: quantized model"] == [1, 1]


def test_rows_of_both_are_neither_averaged_nor_compared(tmp_path: Path) -> None:
    rows = [make_row(seed=1, fd=1.0), make_row("nearest", fd=3.0), deployed_row(seed=2, fd=9.0), deployed_row(seed=3)]
    blocks = recipe_blocks(rows)
    assert [(block.setting, [len(line.rows) for line in block.lines]) for block in blocks] == [
        ("as defined", [1, 1]),
        ("deployed", [2]),
    ]
    table, *_ = tables(rows)
    assert "drawn by the simulated networks, networks as deployed (attention in bf16);" in table.caption
    assert any(note.endswith("the simulated networks that they were made from") for note in table.notes)
    assert "W4A8 eda-dm, deployed" in render_report(rows, [table], [], tmp_path)


def test_the_integer_network_as_defined_is_compared_with_the_simulated_but_not_averaged() -> None:
    integer: dict[str, Any] = {"arithmetic": "integer", "attention": "int8"}
    rows = [make_row("nearest", fd=3.0, refused="negative step"), make_row(fd=1.0, **integer), make_row(seed=2, fd=9.0)]
    (block,) = recipe_blocks(rows)
    assert [(line.first.recipe, line.apart, len(line.rows)) for line in block.lines] == [
        ("nearest", "", 1),
        ("eda-dm", "integer", 1),
        ("eda-dm", "simulated", 1),
    ]
    assert block.setting == ""


def test_a_cell_of_both_is_two_cells_in_files_too(tmp_path: Path) -> None:
    rows = [make_row(), deployed_row(), deployed_row().model_copy(update={"attention": "int8"})]
    for row in rows:
        RowFile(tmp_path / "one").append(row)
    assert merge([tmp_path / "one"], tmp_path / "both") == rows
    planned = [rows[0].key, deployed_row(seed=5).key]
    assert missing_cells(planned, rows) == ["emoji w4a8 eda-dm seed 5 deployed"]
    changes = {"iters": 400, "calib_size": 32}
    plan = Plan("emoji", ("eda-dm",), seeds=(1,), samples=5000, changes=changes, arithmetic="deployed")
    (cell,) = list_cells(plan, "ddim")
    assert finished(cell, rows[:1], "ab" * 32) is None
    assert finished(cell, rows, "ab" * 32) is rows[1]


def test_names_planned_before_there_were_two_are_simulated(tmp_path: Path) -> None:
    key = make_row().key
    RowFile(tmp_path).plan([{name: value for name, value in key.items() if name != "arithmetic"}])
    assert RowFile(tmp_path).planned() == [key]
