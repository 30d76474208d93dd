"""The cells of a table, one after the other. A killed run goes on where it was.

A finished cell is a line in the file of rows and is not run again; a cell that was being calibrated goes on from the
checkpoints in `unfinished`, which also keeps the float model's images until every planned cell is there.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from mezzotint.benchmark.bench import Bench, digest, slug
from mezzotint.benchmark.measure import measure
from mezzotint.benchmark.plan import Cell
from mezzotint.benchmark.row import USUAL_SOURCE, Row
from mezzotint.benchmark.rows import UNFINISHED, RowFile, finished
from mezzotint.calibration.parts import wanted_parts
from mezzotint.errors import ConfigError
from mezzotint.evaluation.cost import device_name
from mezzotint.models.conditioning import Inputs
from mezzotint.progress import NullProgress, Progress


@dataclass(frozen=True)
class Outcome:
    """What became of the cells: rows that this run made, rows that were there, cells for which no time was left."""

    made: list[Row]
    found: list[Row]
    left: list[Cell]


def run_cells(
    pipeline: DiffusionPipeline,
    cells: Sequence[Cell],
    folder: Path,
    *,
    device: str,
    batch_size: int = 256,
    metrics: Sequence[str] | None = (),
    reference: str | None = None,
    inputs: Inputs | None = None,
    source: str = USUAL_SOURCE,
    budget: float | None = None,
    command: str = "",
    progress: Progress | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> Outcome:
    """Runs those of `cells` that `folder` does not hold yet, and keeps each row as soon as it is there.

    Args:
        batch_size: images drawn at once.
        metrics, reference, inputs, source: distribution scores, and what is drawn, see `bench.Bench.of`.
        budget: seconds; no cell begins that would not end in time, as `expected_seconds` has it.
        command: what the user typed, for the rows.
        on_row: called with every new row.
    """
    started = time.perf_counter()
    file = RowFile(folder)
    file.check_place()
    for cell in cells:
        wanted_parts(pipeline, cell.config)  # refuses before hours of work
    samples = {cell.samples for cell in cells}
    if len(samples) != 1:
        raise ConfigError(f"cells of one run draw the same images, these draw {sorted(samples)}")
    drawing: dict[str, Any] = {"samples": samples.pop(), "device": device, "batch_size": batch_size}
    shown: dict[str, Any] = {"inputs": inputs, "source": source}
    bench = Bench.of(pipeline, folder, **drawing, **shown, metrics=metrics, reference=reference)
    file.cut_torn_line()
    file.plan(cell.key for cell in cells)
    outcome, rows = Outcome([], [], []), file.read()
    for cell in cells:
        row = finished(cell, rows, bench.base.sha256, bench.told)
        if row is not None:
            outcome.found.append(row)
            continue
        expected = expected_seconds(cell, outcome.made, rows, device_name(torch.device(device)))
        if budget is not None and time.perf_counter() - started + expected > budget:
            outcome.left.append(cell)
            continue
        kept = folder / UNFINISHED / _checkpoint_name(cell)
        row = measure(bench, cell, progress or NullProgress(), kept).model_copy(update={"command": command})
        file.append(row)
        shutil.rmtree(kept, ignore_errors=True)
        rows.append(row)
        outcome.made.append(row)
        if on_row is not None:
            on_row(row)
    if not file.missing():
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    return outcome


def expected_seconds(cell: Cell, made: Sequence[Row], rows: Sequence[Row], device: str) -> float:
    """How long the longest cell took that is like `cell`: as many iterations and images, the same arithmetic.

    Cells that this run made count, or else those in the table from the same device. Where none is like it, the longest
    that this run made, 0 if it made none.
    """
    key = cell.key
    alike = ("model", "samples", "iters", "arithmetic")
    for known in (made, [row for row in rows if row.device == device]):
        found = [row.elapsed for row in known if all(getattr(row, name) == key[name] for name in alike)]
        if found:
            return max(found)
    return max((row.elapsed for row in made), default=0.0)


def _checkpoint_name(cell: Cell) -> str:
    """Another for every config, so that a changed option never meets checkpoints that it cannot use."""
    return f"{slug(cell.label)}-{digest(cell.config.model_dump_json())}"
