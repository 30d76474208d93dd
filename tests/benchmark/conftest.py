"""A table as a run would have written it, without running anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmark_rows import make_row
from mezzotint.benchmark.row import Row, Sheets
from mezzotint.benchmark.rows import IMAGES, RowFile
from mezzotint.evaluation.pictures import contact_sheet, write_png


@pytest.fixture
def rows() -> list[Row]:
    """Two bit settings, three seeds of two recipes at the lower one, and what ours becomes when changed."""
    found = [make_row("nearest", "w8a8", fd=30.0), make_row("eda-dm", "w8a8", fd=0.5)]
    for seed, (nearest, ours) in enumerate(((64.0, 1.2), (65.0, 1.3), (63.0, 1.4)), 1):
        found += [make_row("nearest", seed=seed, fd=nearest), make_row(seed=seed, fd=ours)]
    found += [
        make_row("eda-dm-official", fd=18.0),
        make_row(fd=2.5, variant="symmetric", kind="difference", note="has symmetric ranges"),
        make_row(fd=1.1, variant="no FBR", kind="ablation", note="block losses alone"),
    ]
    return found


@pytest.fixture
def table(tmp_path: Path, rows: list[Row]) -> Path:
    """A folder with these rows and their pictures."""
    (tmp_path / IMAGES).mkdir()
    generator = torch.Generator().manual_seed(0)
    file = RowFile(tmp_path)
    for number, row in enumerate(rows):
        images = torch.rand((16, 3, 8, 8), generator=generator) * 2 - 1
        sheet, names = contact_sheet(images), (f"{IMAGES}/float.png", f"{IMAGES}/{number}.png")
        for name in names:
            write_png(sheet.picture, tmp_path / name)
        sheets = Sheets(
            float_images=names[0], quantized_images=names[1], count=sheet.count, columns=sheet.columns, side=(8, 8)
        )
        file.append(row.model_copy(update={"sheets": sheets}))
    return tmp_path
