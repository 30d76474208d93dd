"""The tables of a benchmark as cells of text: recipes, what they cost, differences, ablations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from mezzotint.benchmark.changes import change
from mezzotint.benchmark.columns import FD, LPIPS, PSNR, SAMPLER, SQNR, SSIM, Column, columns_of
from mezzotint.benchmark.costs import cost_tables
from mezzotint.benchmark.fields import MISSING, Field, TextTable, effect_field, heading, number_text, stat_field
from mezzotint.benchmark.names import variant_notes
from mezzotint.benchmark.plan import OURS, RELEASED
from mezzotint.benchmark.row import Row
from mezzotint.benchmark.table import Block, Line, effect_blocks, recipe_blocks

EFFECTS = (SQNR, SAMPLER, PSNR, LPIPS, FD)  # columns of the tables of changes, beside scores
WEIGHTIEST = (FD, PSNR, SQNR, SSIM, SAMPLER)  # the last that a narrow place leaves out; then what a score says
WHOLE = "the whole method"
WARNING = "warning: "  # how such a note begins
INTEGER_NOTE = (
    "the images are those of the integer networks named above; SQNR, of eps and of layers, is that of the "
    "simulated networks that they were made from"
)


def tables(rows: Sequence[Row]) -> list[TextTable]:
    """Every table that the rows hold: recipes of each model and what they cost, then differences, then ablations."""
    found = []
    for model, group in groupby(recipe_blocks(rows), key=lambda block: block.model):
        blocks = list(group)
        found += [_recipes(model, blocks), *cost_tables(model, blocks)]
    titles = {
        "difference": (f"from {OURS} to {RELEASED}, one difference at a time", "the released code ..."),
        "ablation": (f"{OURS} with one part changed", "what it does"),
    }
    for kind, (title, what) in titles.items():
        effects = effect_blocks(rows, kind)  # type: ignore[arg-type]  # a key of `titles` is a Kind
        for model, group in groupby(effects, key=lambda block: block.model):
            found.append(_effects(f"{model}: {title}", what, list(group)))
    return found


def _recipes(model: str, blocks: list[Block]) -> TextTable:
    rows = [row for block in blocks for line in block.lines for row in line.rows]
    columns = columns_of(rows)
    spent = len({line.first.iters for block in blocks for line in block.lines} - {0}) > 1
    settings = any(block.setting for block in blocks)
    words = ["bits", "recipe", *(["setting"] if settings else []), *(["iterations"] if spent else [])]
    sections = _float_section(blocks, columns, words)
    for block in blocks:
        standings = [block.standings(column) for column in columns]
        section = []
        for index, line in enumerate(block.lines):
            fields = [Field(block.bits.upper()), Field(line.name), *([Field(block.setting)] if settings else [])]
            fields += [Field(str(line.first.iters or MISSING))] if spent else []
            for column, standing in zip(columns, standings, strict=True):
                fields.append(stat_field(line.stat(column), column.digits, standing[index]))
            section.append(fields)
        sections.append(section)
    notes = _column_notes(rows, columns) + _float_notes(blocks, columns) + _score_notes(rows)
    notes += variant_notes(rows) + _warnings(rows)
    header = words + _headings(columns, rows)
    return TextTable(model, effort(rows), header, len(words), sections, notes, _ranked(columns, len(words)))


def _headings(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """Titles of the columns. Beside images that integers drew, those of SQNR say that it is not of integers."""
    drawn = any(row.arithmetic != "simulated" for row in rows)
    told = [replace(c, title=f"{c.title} (simulated)") if drawn and c in (SQNR, SAMPLER) else c for c in columns]
    return [heading(column) for column in told]


def _float_section(blocks: list[Block], columns: list[Column], words: list[str]) -> list[list[list[Field]]]:
    """What the float model itself has, for figures that do not compare with it: a row for all settings where it has the
    same."""
    found: dict[tuple[str, ...], list[str]] = {}
    for setting, group in groupby(sorted(blocks, key=lambda block: block.setting), key=lambda block: block.setting):
        rows = [row for block in group for line in block.lines for row in line.rows]
        floats = [next((v for row in rows if (v := column.floating(row)) is not None), None) for column in columns]
        if any(value is not None for value in floats):
            figures = (
                MISSING if value is None else number_text(value, column.digits)
                for value, column in zip(floats, columns, strict=True)
            )
            found.setdefault(tuple(figures), []).append(setting)
    section = []
    for numbers, settings in found.items():
        named = {"bits": "float", "setting": "; ".join(settings) if len(found) > 1 else MISSING}
        section.append([Field(text) for text in (*(named.get(word, MISSING) for word in words), *numbers)])
    return [section] if section else []


def _ranked(columns: Sequence[Column], offset: int) -> list[int]:
    """Indices of the columns, those that matter most first."""
    known = [columns.index(column) for column in WEIGHTIEST if column in columns]
    others = [index for index in range(len(columns)) if index not in known]
    return [offset + index for index in (*known, *others)]


def _effects(title: str, what: str, blocks: list[Block]) -> TextTable:
    rows = [row for block in blocks for line in block.lines for row in line.rows]
    columns = [column for column in columns_of(rows) if column in EFFECTS or column.key.startswith("score-")]
    settings = any(block.setting for block in blocks)
    sections = [
        [
            [
                Field(block.bits.upper()),
                *map(Field, _change(block, line)),
                *([Field(block.setting)] if settings else []),
            ]
            + [_effect(block, line, column) for column in columns]
            for line in block.lines
        ]
        for block in blocks
    ]
    words = ["bits", "change", what, *(["setting"] if settings else [])]
    header = [*words, *_headings(columns, rows)]
    how = (
        f"in brackets: the change against {OURS} of the same seeds, ± the deviation of that over the seeds, or for one "
        f"seed the bootstrap intervals of both figures together; bold: beyond what luck explains (a 95 % confidence "
        f"interval with the deviation pooled over the rows, or beyond those bootstrap intervals; of twenty changes "
        f"that do nothing one is)"
    )
    notes, rank = [how, *_warnings(rows)], _ranked(columns, len(words))
    return TextTable(title, effort(rows), header, len(words), sections, notes, rank, sentences=words.index(what))


def _change(block: Block, line: Line) -> tuple[str, str]:
    """What a line of a table of changes is called, and its sentence."""
    row = line.first
    if row.kind == "recipe":
        return (row.recipe, WHOLE) if line is block.lines[0] else (row.recipe, "all of them at once")
    name = row.variant.rpartition(", ")[2]
    return f"{name} ({line.apart})" if line.apart else name, row.note


def _effect(block: Block, line: Line, column: Column) -> Field:
    """A figure, and what the change does to it: the mean over the seeds that both have, or of the means."""
    stat, moved = line.stat(column), None if line is block.lines[0] else change(block, line, column)
    if stat is None or moved is None:
        return stat_field(stat, column.digits)
    return effect_field(stat, moved, column.digits)


def effort(rows: Sequence[Row]) -> str:
    """How the rows were made, on one line."""

    def several(values: Sequence[Any]) -> str:
        return ", ".join(str(value) for value in dict.fromkeys(values))

    steps = several([row.config["sampler"]["steps"] for row in rows])
    iterations = several([row.iters for row in rows if row.iters])
    learned = f"units learned in {iterations} iterations" if iterations else "nothing learned"
    return (
        f"{' or '.join(dict.fromkeys(f'{row.samples:,}' for row in rows))} images, {steps} steps, drawn by the "
        f"{several([row.drawn for row in rows])}; calibrated on "
        f"{several([row.calib_size for row in rows])} samples, {learned}; "
        f"calibration seeds {several(sorted({row.seed for row in rows}))}; {several([row.device for row in rows])}"
    )


def _column_notes(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """What the paired measures are made of."""
    found = [f"FD is in {words}; it is no Inception FID" for words in dict.fromkeys(row.features for row in rows)]
    if SAMPLER in columns:
        found.insert(
            0,
            "SQNR of eps is that of the network; in the sampler, of the eps that a step uses: guided, and corrected "
            "where the recipe corrects it (ptqd; what that does to the sampler's noise, the images alone show)",
        )
    if any(row.arithmetic != "simulated" for row in rows):
        found.insert(0, INTEGER_NOTE)
    return [*found, *(["LPIPS is that of AlexNet"] if LPIPS in columns else [])]


def _float_notes(blocks: Sequence[Block], columns: Sequence[Column]) -> list[str]:
    """A word of caution for figures by which a quantized model comes out ahead of its float model."""
    found = []
    for column in columns:
        sign = -1 if column.better == "lower" else 1
        for line in (line for block in blocks for line in block.lines):
            stat, floating = line.stat(column), column.floating(line.first)
            if stat is not None and floating is not None and sign * (stat.mean - floating) > 0:
                found.append(column.title)
                break
    if not found:
        return []
    return [
        f"{', '.join(found)}: where a quantized model is ahead of the float model, that is no merit of quantization; "
        f"what it changed, the distances to the float model say"
    ]


def _score_notes(rows: Sequence[Row]) -> list[str]:
    """What stands beside every score: how many images, which features, how they were resized; alike ones at once."""
    made: dict[str, tuple[dict[str, None], set[int]]] = {}
    for score in (score for row in rows for score in row.scores):
        resized = f", {score['resize']}" if score.get("resize") else ""
        names, counts = made.setdefault(f"{score['features']}{resized}", ({}, set()))
        names[score["name"]] = None
        counts.add(score["count"])
    return [
        f"{', '.join(names)}: {' or '.join(f'{count:,}' for count in sorted(counts))} images, {how}"
        for how, (names, counts) in made.items()
    ]


def _warnings(rows: Sequence[Row]) -> list[str]:
    words = [word for row in rows for word in row.warnings]
    words += [score["warning"] for row in rows for score in row.scores if score.get("warning")]
    words += [
        f"{row.recipe} at {row.bits.upper()} was drawn by the simulated network, not on integers: {row.refused}"
        for row in rows
        if row.refused
    ]
    return [f"{WARNING}{word}" for word in dict.fromkeys(words)]
