"""The tables of a benchmark as cells of text, and these as Markdown and as LaTeX.

figure, several seeds    1.28 ± 0.05      mean and standard deviation
figure, one seed         1.28 [1.15, 1.41]   with its interval where it has one
best of its bits         bold; what lies within the spread of the best is in italics
effect of a change       2.61 (+1.33)     with the difference to the whole recipe
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from mezzotint.benchmark.plan import OURS, RELEASED, label
from mezzotint.benchmark.rows import Row
from mezzotint.benchmark.table import Block, Column, Line, Stat, columns_of, effect_blocks, recipe_blocks

MINUS = "\u2212"
MISSING = "–"
EFFECTS = ("sqnr_db", "psnr_mean_db", "fd")  # columns of the tables of changes, beside scores


@dataclass(frozen=True)
class Field:
    """One field of a table: its text, and "best", "within" (the spread of the best) or ""."""

    text: str
    standing: str = ""


@dataclass(frozen=True)
class TextTable:
    """A table ready to be set.

    Attributes:
        words: how many columns at the left are words; the rest are numbers.
        sections: rows in groups that a rule divides, one a bit setting.
    """

    title: str
    caption: str
    header: list[str]
    words: int
    sections: list[list[list[Field]]]
    notes: list[str] = field(default_factory=list)


def tables(rows: Sequence[Row]) -> list[TextTable]:
    """Every table that the rows hold: recipes of each model, then differences, then ablations."""
    found = []
    for model, group in groupby(recipe_blocks(rows), key=lambda block: block.model):
        found.append(_recipes(model, list(group)))
    titles = {
        "difference": f"from {OURS} to {RELEASED}, one difference at a time",
        "ablation": f"{OURS} with one part changed",
    }
    for kind, title in titles.items():
        blocks = effect_blocks(rows, kind)  # type: ignore[arg-type]  # a key of `titles` is a Kind
        for model, group in groupby(blocks, key=lambda block: block.model):
            found.append(_effects(f"{model}: {title}", list(group)))
    return found


def _recipes(model: str, blocks: list[Block]) -> TextTable:
    rows = [row for block in blocks for line in block.lines for row in line.rows]
    columns = columns_of(rows)
    spent = len({line.first.iters for block in blocks for line in block.lines} - {0}) > 1
    words = ["bits", "recipe", *(["iterations"] if spent else [])]
    sections = []
    for block in blocks:
        standings = [block.standings(column) for column in columns]
        section = []
        for index, line in enumerate(block.lines):
            fields = [Field(block.bits.upper()), Field(line.name)]
            fields += [Field(str(line.first.iters or MISSING))] if spent else []
            for column, standing in zip(columns, standings, strict=True):
                fields.append(Field(stat_text(line.stat(column), column.digits), standing[index]))
            section.append(fields)
        sections.append(section)
    notes = _reference_notes(rows, columns) + _score_notes(rows) + _warnings(rows)
    return TextTable(model, effort(rows), words + [heading(column) for column in columns], len(words), sections, notes)


def _effects(title: str, blocks: list[Block]) -> TextTable:
    rows = [row for block in blocks for line in block.lines for row in line.rows]
    columns = [column for column in columns_of(rows) if column.key in EFFECTS or column.key.startswith("score-")]
    sections = [
        [
            [Field(block.bits.upper()), Field(_change(block, line))]
            + [Field(_effect_text(line, block.lines[0], column)) for column in columns]
            for line in block.lines
        ]
        for block in blocks
    ]
    header = ["bits", "change", *(heading(column) for column in columns)]
    return TextTable(title, effort(rows), header, 2, sections, _warnings(rows))


def _change(block: Block, line: Line) -> str:
    """What a line of a table of changes is called: the whole recipe, or the change and its sentence."""
    row = line.first
    if row.kind == "recipe":
        return row.recipe if line is block.lines[0] else f"{row.recipe}: all of them"
    name = row.variant.rpartition(", ")[2]
    return f"{name}: {row.note}" if row.note else name


def _effect_text(line: Line, whole: Line, column: Column) -> str:
    """A figure, and what the change does to it: the mean over the seeds that both have, or of the means."""
    stat, effect = line.stat(column), None if line is whole else line.change_from(whole, column)
    if stat is None or effect is None:
        return stat_text(stat, column.digits)
    spread = "" if stat.spread is None else f" ± {number_text(stat.spread, column.digits)}"
    sign = "+" if effect >= 0 else MINUS
    return f"{number_text(stat.mean, column.digits)}{spread} ({sign}{number_text(abs(effect), column.digits)})"


def heading(column: Column) -> str:
    """Title of a column with its unit and the direction that is better."""
    arrow = {"higher": " ↑", "lower": " ↓", "": ""}[column.better]
    return f"{column.title}{f', {column.unit}' if column.unit else ''}{arrow}"


def stat_text(stat: Stat | None, digits: int) -> str:
    """A figure with its spread, or else with its interval."""
    if stat is None:
        return MISSING
    mean = number_text(stat.mean, digits)
    if stat.spread is not None and digits:  # whole numbers are seconds, whose spread says nothing of a recipe
        return f"{mean} ± {number_text(stat.spread, digits)}"
    if stat.interval is not None and all(map(math.isfinite, stat.interval)):
        return f"{mean} [{number_text(stat.interval[0], digits)}, {number_text(stat.interval[1], digits)}]"
    return mean


def number_text(value: float, digits: int) -> str:
    """A number with a true minus and commas between thousands."""
    if not math.isfinite(value):
        return "∞" if value > 0 else f"{MINUS}∞" if value < 0 else MISSING
    return f"{value:,.{digits}f}".replace("-", MINUS)


def effort(rows: Sequence[Row]) -> str:
    """How the rows were made, on one line."""

    def several(values: Sequence[Any]) -> str:
        return ", ".join(str(value) for value in dict.fromkeys(values))

    steps = several([row.config["sampler"]["steps"] for row in rows])
    iterations = several([row.iters for row in rows if row.iters])
    learned = f"units learned in {iterations} iterations" if iterations else "nothing learned"
    return (
        f"{several([f'{row.samples:,}' for row in rows])} images, {steps} steps; calibrated on "
        f"{several([row.calib_size for row in rows])} samples, {learned}; "
        f"calibration seeds {several(sorted({row.seed for row in rows}))}; {several([row.device for row in rows])}"
    )


def _reference_notes(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """What the float model itself has, for figures that do not compare with it."""
    found = []
    for column in columns:
        value = next((value for row in rows if (value := column.floating(row)) is not None), None)
        if value is not None:
            found.append(f"{column.title}: the float model has {number_text(value, column.digits)}")
    features = dict.fromkeys(row.features for row in rows)
    return [*found, *(f"FD is in {words}; it is no Inception FID" for words in features)]


def _score_notes(rows: Sequence[Row]) -> list[str]:
    """What stands beside every score: how many images, which features, how they were resized."""
    notes: dict[str, None] = {}
    for score in (score for row in rows for score in row.scores):
        resized = f", {score['resize']}" if score.get("resize") else ""
        notes[f"{score['name']}: {score['count']:,} images, {score['features']}{resized}"] = None
    return list(notes)


def _warnings(rows: Sequence[Row]) -> list[str]:
    words = [word for row in rows for word in row.warnings]
    words += [score["warning"] for row in rows for score in row.scores if score.get("warning")]
    return [f"warning: {word}" for word in dict.fromkeys(words)]


def missing_cells(planned: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> list[str]:
    """The cells that were asked for and did not run, one line each."""
    names = [row.key for row in rows]
    return [label(key) for key in planned if dict(key) not in names]


def markdown(tables: Sequence[TextTable], missing: Sequence[str]) -> str:
    """All tables as Markdown."""
    marks = {"best": "**", "within": "*", "": ""}
    parts = []
    for table in tables:
        lines = [f"## {table.title}", "", f"{table.caption}.", ""]
        align = ["---"] * table.words + ["---:"] * (len(table.header) - table.words)
        lines += [_row(map(_plain, table.header)), _row(align)]
        for section in table.sections:
            for row in section:
                lines.append(_row(f"{marks[f.standing]}{_plain(f.text)}{marks[f.standing]}" for f in row))
        parts.append("\n".join([*lines, "", *(f"- {note}" for note in table.notes)]).rstrip())
    if missing:
        parts.append("\n".join(["## Not run", "", *(f"- {name}" for name in missing)]))
    return "\n\n".join(parts) + "\n"


def _row(fields: Any) -> str:
    return "| " + " | ".join(fields) + " |"


def _plain(text: str) -> str:
    """Text that Markdown leaves alone inside a table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


def latex(tables: Sequence[TextTable], missing: Sequence[str]) -> str:
    """All tables as LaTeX, each a `table` with the rules of booktabs."""
    marks = {"best": r"\textbf{%s}", "within": r"\textit{%s}", "": "%s"}
    parts = [r"% needs \usepackage{booktabs}"]
    for table in tables:
        columns = "l" * table.words + "r" * (len(table.header) - table.words)
        lines = [r"\begin{table}", r"\centering", r"\begin{tabular}{" + columns + "}", r"\toprule"]
        lines += [" & ".join(map(tex, table.header)) + r" \\"]
        for section in table.sections:
            lines.append(r"\midrule")
            lines += [" & ".join(marks[f.standing] % tex(f.text) for f in row) + r" \\" for row in section]
        notes = " ".join(f"{note[:1].upper()}{note[1:]}." for note in table.notes)
        caption = f"{table.title}. {table.caption}. {notes}".strip()
        lines += [r"\bottomrule", r"\end{tabular}", r"\caption{" + tex(caption) + "}", r"\end{table}"]
        parts.append("\n".join(lines))
    parts += [f"% not run: {name}" for name in missing]
    return "\n\n".join(parts) + "\n"


TEX = {
    "\\": r"\textbackslash{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "∞": r"$\infty$",
    MINUS: "$-$",
    "–": "--",
    "é": r"\'e",
    "×": r"$\times$",
}


def tex(text: str) -> str:
    """Text as LaTeX sets it."""
    return "".join(TEX.get(char, char) for char in text)
