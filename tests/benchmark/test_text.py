from __future__ import annotations

import math
import re

from benchmark_rows import make_row
from mezzotint.benchmark.rows import Row
from mezzotint.benchmark.table import Stat
from mezzotint.benchmark.text import latex, markdown, missing_cells, number_text, stat_text, tables, tex


def test_markdown_has_a_rectangle_of_fields_for_every_table(rows: list[Row]) -> None:
    text = markdown(tables(rows), [])
    assert text.count("\n## ") + 1 == 3
    for part in text.split("## ")[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        assert len({line.count(" | ") for line in lines}) == 1
    assert "| W4A8 | eda-dm |" in text
    assert "**1.30 ± 0.10**" in text
    assert "| W4A8 | symmetric: has symmetric ranges |" in text
    assert "| W4A8 | eda-dm | 29.00 ± 0.00 |" in text
    assert "2.50 (+1.30)" in text  # against the same seed of the whole recipe, 1.20
    assert f"1.10 ({chr(0x2212)}0.10)" in text
    assert "FD to the training images: the float model has 70.00" in text


def test_latex_is_balanced_and_escaped(rows: list[Row]) -> None:
    rows = [row.model_copy(update={"model": "a_b & 50% {x}"}) for row in rows]
    text = latex(tables(rows), ["m w4a8 nearest seed 3"])
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 3
    assert r"a\_b \& 50\% \{x\}" in text
    assert r"\textbf{1.30 $\pm$ 0.10}" in text
    assert "% not run: m w4a8 nearest seed 3" in text
    assert text.isascii()
    for table in re.findall(r"\\begin\{tabular\}\{(.*?)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        ends = [line for line in table[1].splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in ends} == {len(table[0])}


def test_iterations_are_a_column_only_where_they_differ(rows: list[Row]) -> None:
    assert "iterations" not in tables(rows)[0].header
    assert "iterations" in tables([*rows, make_row(iters=9)])[0].header


def test_figures() -> None:
    assert stat_text(None, 2) == "–"
    assert stat_text(Stat(1234.5, None, 1, None), 1) == "1,234.5"
    assert stat_text(Stat(-1.0, 0.25, 2, None), 2) == "\u22121.00 ± 0.25"
    assert stat_text(Stat(math.inf, None, 1, (math.inf, math.inf)), 2) == "∞"
    assert number_text(math.nan, 1) == "–"
    assert tex("~^\\") == r"\textasciitilde{}\textasciicircum{}\textbackslash{}"


def test_what_did_not_run_is_said(rows: list[Row]) -> None:
    planned = [row.key for row in rows]
    planned.append({**planned[0], "recipe": "q-diffusion"})
    (missing,) = missing_cells(planned, rows)
    assert missing == "emoji w8a8 q-diffusion seed 1"
    assert "## Not run\n\n- emoji w8a8 q-diffusion seed 1" in markdown(tables(rows), [missing])


def test_warnings_and_what_scores_are_made_of_stand_below() -> None:
    score = {"name": "FID", "value": 9.0, "low": 8.0, "high": 10.0, "count": 5000, "resize": "299 px, tf1"}
    score |= {"features": "pool3", "warning": "5,000 images, the protocol takes 50,000"}
    (table,) = tables([make_row(scores=[score], warnings=["few"])])
    assert "FID: 5,000 images, pool3, 299 px, tf1" in table.notes
    assert table.notes[-2:] == ["warning: few", "warning: 5,000 images, the protocol takes 50,000"]
