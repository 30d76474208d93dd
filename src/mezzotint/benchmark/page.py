"""The report about a table: one HTML file, made of the rows and of the pictures beside them.

It shares frame, look, charts and slider with the report about one artifact (`evaluation.pages`). The slider compares
any two of the float model and the recipes; curves and layers stand side by side, allocations and units recipe by
recipe. Where a recipe ran with several seeds, pictures, curves and units are those of its first.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import cycle, groupby
from pathlib import Path
from typing import Any

from PIL import Image

from mezzotint.benchmark.columns import FD, PSNR
from mezzotint.benchmark.fields import TextTable, number_text
from mezzotint.benchmark.plan import OURS
from mezzotint.benchmark.row import Row
from mezzotint.benchmark.rows import IMAGES
from mezzotint.benchmark.table import Block, Line, recipe_blocks
from mezzotint.benchmark.verdict import verdict
from mezzotint.errors import OutputError
from mezzotint.evaluation import charts
from mezzotint.evaluation.pages import render_page, settings, two_widths, unit_summary
from mezzotint.evaluation.report import SMALL_IMAGE

TEMPLATE = "benchmark.html.j2"
PLATE_SIDE = 3  # images in a row of the picture at the top
WORST_LAYERS = 5  # of each recipe
OUR_HUE = 3  # the look of our recipe's curves: the page's accent


def render_report(rows: Sequence[Row], tables: Sequence[TextTable], missing: Sequence[str], folder: Path) -> str:
    """The page as text; pictures are read from `folder`. Rows that came without that folder's `images` have none."""
    if not (folder / IMAGES).is_dir():
        rows = [row.model_copy(update={"sheets": None}) for row in rows]
    blocks = recipe_blocks(rows)
    line = _featured([line for block in blocks for line in block.lines])
    featured = line.first
    return render_page(
        TEMPLATE,
        {
            "verdict": verdict(rows),
            "title": ", ".join(dict.fromkeys(row.model for row in rows)),
            "tables": tables,
            "missing": missing,
            "featured": featured,
            "lead": {"fd": line.stat(FD), "psnr": line.stat(PSNR)},
            "count": len(rows),
            "several_sizes": len({row.samples for row in rows}) > 1,
            "plate": _plate(folder, featured),
            "sheets": [_sheets(folder, model, list(group)) for model, group in groupby(blocks, lambda b: b.model)],
            "simulated": any(row.arithmetic != "simulated" for row in rows),
            "trajectories": [_trajectories(block) for block in blocks],
            "allocations": [allocation for block in blocks for allocation in _allocations(block)],
            "units": [_units(block, line) for block in blocks for line in block.lines if line.first.units],
            "layers": [_layers(block) for block in blocks if any(line.first.layers for line in block.lines)],
            "configs": _configs(featured, rows),
            "cells": [_cell(row) for row in rows],
            "provenance": _provenance(rows),
        },
    )


def _featured(lines: Sequence[Line]) -> Line:
    """The line to show first: ours with 4-bit weights and 8-bit activations, or what comes closest to that."""
    return min(lines, key=lambda line: (line.name != OURS, line.first.bits != "w4a8"))


def _plate(folder: Path, row: Row) -> dict[str, Any] | None:
    """The first images of a row as a square."""
    if row.sheets is None:
        return None
    height, width = row.sheets.side
    count = min(PLATE_SIDE, row.sheets.columns, row.sheets.count // row.sheets.columns)
    with _picture(folder / row.sheets.quantized_images) as sheet:
        buffer = io.BytesIO()
        sheet.crop((0, 0, count * width, count * height)).save(buffer, format="PNG")
    return {"source": _uri(buffer.getvalue()), "pixelated": max(height, width) <= SMALL_IMAGE}


def _sheets(folder: Path, model: str, blocks: list[Block]) -> dict[str, Any] | None:
    """The contact sheets of a model: of the float model first, then of each recipe and bit setting."""
    shown = [(block.setting, line) for block in blocks for line in block.lines if line.first.sheets is not None]
    pictured = [line for _, line in shown]
    if not pictured:
        return None
    found: dict[str, str] = {}
    for setting, line in shown:
        row = line.first
        assert row.sheets is not None
        steps = f", {row.config['sampler']['steps']} steps"
        several = len({other.first.config["sampler"]["steps"] for other in pictured}) > 1
        found.setdefault(f"float{steps if several else ''}", row.sheets.float_images)
        found[f"{', '.join(filter(None, (row.bits.upper(), setting)))} {line.name}"] = row.sheets.quantized_images
    first = pictured[0].first.sheets
    assert first is not None
    with _picture(folder / first.float_images) as sheet:
        width, height = sheet.size
    pictures = [{"name": name, "source": _uri((folder / path).read_bytes())} for name, path in found.items()]
    leading = _featured(pictured).first.sheets
    assert leading is not None
    return {
        "model": model,
        "pictures": pictures,
        "right": list(found.values()).index(leading.quantized_images),
        "width": width,
        "height": height,
        "count": first.count,
        "pixelated": max(first.side) <= SMALL_IMAGE,
    }


def _trajectories(block: Block) -> dict[str, Any]:
    """SQNR over steps, a curve for every recipe: of the network, or, where a recipe corrects eps, in the sampler."""
    steps = [step for line in block.lines for step in line.first.steps]
    corrected = any(line.first.options.get("correction", "none") != "none" for line in block.lines)
    sampler = corrected and all(step.sampler_db is not None for step in steps)
    others = cycle(hue for hue in range(charts.HUES) if hue != OUR_HUE)
    series = [
        {
            "name": line.name,
            "rows": [
                {"step": step.step, "t": step.t, "sqnr_db": step.sampler_db if sampler else step.sqnr_db}
                for step in line.first.steps
            ],
            "hue": OUR_HUE if line.name == OURS else next(others),
        }
        for line in block.lines
        if line.first.steps
    ]
    curves = two_widths(charts.curves_chart, series)
    return {"title": _title(block), "charts": curves, "series": series, "sampler": sampler}


def _allocations(block: Block) -> list[dict[str, Any]]:
    """The different ways in which the recipes of a block share out calibration samples."""
    found: dict[str, dict[str, Any]] = {}
    for line in block.lines:
        selection = line.first.selection
        if selection is None:
            continue
        same = found.setdefault(str(selection["counts"]), {"names": [], "selection": selection, "title": _title(block)})
        same["names"].append(line.name)
        if len(selection["score"]) > len(same["selection"]["score"]):
            same["selection"] = selection
    return [{**entry, "charts": two_widths(charts.selection_chart, entry["selection"])} for entry in found.values()]


def _units(block: Block, line: Line) -> dict[str, Any]:
    units = line.first.units
    return {
        "title": f"{_title(block)}, {line.name}",
        "charts": two_widths(charts.units_chart, units),
        "summary": unit_summary(units),
        "count": len(units),
    }


def _layers(block: Block) -> dict[str, Any]:
    """The worst layers of every recipe of a block, side by side, worst in ours (or in the first) first."""
    lines = [line for line in block.lines if line.first.layers]
    figures = [{layer.name: layer.sqnr_db for layer in line.first.layers} for line in lines]
    names = {layer.name for line in lines for layer in line.first.layers[:WORST_LAYERS]}
    leading = next((n for n, line in enumerate(lines) if line.name == OURS), 0)
    order = sorted(names, key=lambda name: figures[leading].get(name, float("inf")))
    return {
        "title": _title(block),
        "names": [line.name for line in lines],
        "rows": [{"name": name, "figures": [column.get(name) for column in figures]} for name in order],
    }


def _configs(featured: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """Every option of the featured row, and of each other line the options that differ from it."""
    whole = settings(featured.config)
    others: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        name = f"{row.model} {row.bits.upper()} {row.recipe}{f' ({row.variant})' if row.variant else ''}"
        different = [pair for pair in settings(row.config) if pair not in whole and pair[0] != "seed"]
        others.setdefault(name, different)
    name = f"{featured.model} {featured.bits.upper()} {featured.recipe}"
    others.pop(name, None)
    return {"name": name, "whole": whole, "others": others}


def _cell(row: Row) -> list[str]:
    """Where the figures of a row come from, as the fields of a table."""
    variant = f" ({row.variant})" if row.variant else ""
    drawn = "" if row.arithmetic == "simulated" else f", {row.arithmetic}"
    seconds = number_text(row.elapsed, 0)
    return [
        f"{row.model} {row.bits.upper()} {row.recipe}{variant}{drawn}",
        str(row.seed),
        row.created or "–",
        row.device,
        seconds,
    ]


def _provenance(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What one needs to make the table again."""
    bases = {row.model: row.base for row in rows if row.base is not None}
    versions = {str(row.versions.model_dump()): row.versions for row in rows if row.versions is not None}
    seeds = sorted({row.image_seeds for row in rows if row.image_seeds is not None})
    found: list[tuple[str, str]] = []
    for model, base in bases.items():
        found += [(f"{model} weights sha256", base.sha256), (f"{model} licence", base.licence or "not recorded")]
    found += [("image seeds", ", ".join(f"{first} to {last}" for first, last in seeds) or "not recorded")]
    found += [("devices", ", ".join(dict.fromkeys(row.device for row in rows)))]
    for used in versions.values():
        found.append(("versions", ", ".join(f"{name} {text}" for name, text in used.model_dump().items())))
    return found + [("command", command) for command in dict.fromkeys(row.command for row in rows) if command]


def _title(block: Block) -> str:
    return ", ".join(filter(None, (block.model, block.bits.upper(), block.setting)))


def _picture(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except OSError as error:
        raise OutputError(f"{path}: a picture of the report cannot be read ({error}); run its cell again") from error


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
