from __future__ import annotations

import math
import re

from benchmark_rows import make_cost, make_row
from mezzotint.benchmark.changes import Change
from mezzotint.benchmark.fields import effect_field, number_text, stat_field, stat_text
from mezzotint.benchmark.markup import latex, markdown, tex
from mezzotint.benchmark.names import missing_cells
from mezzotint.benchmark.row import Row
from mezzotint.benchmark.table import Stat
from mezzotint.benchmark.text import tables


def test_markdown_has_a_rectangle_of_fields_for_every_table(rows: list[Row]) -> None:
    text = markdown(tables(rows), [])
    assert text.count("\n## ") + 1 == 4
    for part in text.split("## ")[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        assert len({line.count(" | ") for line in lines}) == 1
    assert "| W4A8 | eda-dm |" in text
    assert "**1.30 ± 0.10**" in text
    assert "| W4A8 | symmetric | has symmetric ranges |" in text
    assert "| W4A8 | eda-dm | the whole method | 29.00 ± 0.00 |" in text
    assert "**2.50 (+1.30 ± 0.14)**" in text  # against the same seed of the whole recipe, 1.20
    assert f" 1.10 ({chr(0x2212)}0.10 ± 0.14) " in text
    assert "| float | – | – | – | – | – | – | 70.00 | – |" in text


def test_latex_is_balanced_and_escaped(rows: list[Row]) -> None:
    long = "takes the layer losses from a second quantized pass"
    rows = [row.model_copy(update={"model": "a_b & 50% {x}", "note": row.note and long}) for row in rows]
    text = latex(tables(rows), ["m w4a8 nearest seed 3"])
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 4
    assert r"a\_b \& 50\% \{x\}" in text
    assert r"\textbf{1.30 $\pm$ 0.10}" in text
    assert "% not run: m w4a8 nearest seed 3" in text
    assert text.isascii()
    assert "p{5cm}" in text  # sentences break
    for table in re.findall(r"\\begin\{tabular\}\{(.*?)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL):
        ends = [line for line in table[1].splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in ends} == {len(table[0].replace("p{5cm}", "l"))}


def test_iterations_are_a_column_only_where_they_differ(rows: list[Row]) -> None:
    assert "iterations" not in tables(rows)[0].header
    assert "iterations" in tables([*rows, make_row(iters=9)])[0].header


def test_figures() -> None:
    assert stat_text(None, 2) == "–"
    assert stat_text(Stat(1234.5, None, 1, None), 1) == "1,234.5"
    assert stat_text(Stat(-1.0, 0.25, 2, None), 2) == "\u22121.00 ± 0.25"
    assert stat_field(Stat(math.inf, None, 1, (math.inf, math.inf)), 2).whole == "∞"
    assert stat_field(Stat(1.5, None, 1, (1.0, 2.0)), 1).whole == "1.5 [1.0, 2.0]"
    assert number_text(math.nan, 1) == "–"
    assert effect_field(Stat(2.0, 0.1, 3, None), Change(-1.0, 0.25, 0.5), 2).whole == "2.00 ± 0.10 (\u22121.00 ± 0.25)"
    assert effect_field(Stat(2.0, None, 1, (1.0, 3.0)), Change(0.5, None, None), 1).whole == "2.0 (+0.5)"
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
    table, _ = tables([make_row(scores=[score], warnings=["few"])])
    assert "FID: 5,000 images, pool3, 299 px, tf1" in table.notes
    assert table.notes[-2:] == ["warning: few", "warning: 5,000 images, the protocol takes 50,000"]


def test_costs_are_a_table_with_a_line_for_all_recipes_that_cost_the_same() -> None:
    rows = [make_row("nearest", "w8a8"), make_row("eda-dm", "w8a8"), make_row("eda-dm", "w4a8")]
    other = make_row("tfmq-dm", "w8a8", cost=make_cost(300_000))
    older = make_row("ptq4dm", "w8a8", cost=None, calls=None)
    table = tables([*rows, other, older])[1]
    assert table.title == "emoji: cost"
    texts = [[field.text for field in row] for section in table.sections for row in section]
    assert texts == [
        ["float", "float32", "1.00", "1.00×", "0.50×", "2.05", "0.205", "1.00×", "0.25×"],
        ["float", "float16, bfloat16", "0.50", "2.00×", "1.00×", "0.512", "0.0512", "4.00×", "1.00×"],
        ["W8A8", "nearest, eda-dm", "0.25", "4.00×", "2.00×", "0.128", "0.0128", "16.00×", "4.00×"],
        ["W8A8", "tfmq-dm", "0.30", "3.33×", "1.67×", "0.128", "0.0128", "16.00×", "4.00×"],
        ["W4A8", "eda-dm", "0.25", "4.00×", "2.00×", "0.128", "0.0128", "16.00×", "4.00×"],
    ]
    assert "an image takes 100 calls" in table.caption
    assert len(set(table.header)) == len(table.header)
    assert "bytes are those of the stored tensors, codes packed; a file has a header besides" in table.notes[0]


def test_a_pipeline_of_several_networks_has_its_bytes_beside() -> None:
    (_, table) = tables([make_row(cost=make_cost(250_000, beside=1_000_000)), make_row("nearest", calls=51)])
    assert table.header[2:7] == ["calls", "network, MB", "network vs fp32", "network vs fp16", "pipeline, MB"]
    assert len(set(table.header)) == len(table.header)
    last = [field.text for field in table.sections[-1][-1]]
    assert last[:7] == ["W4A8", "eda-dm", "100", "0.25", "4.00×", "2.00×", "1.25"]


def test_rows_without_costs_make_no_table_of_them(rows: list[Row]) -> None:
    older = [row.model_copy(update={"cost": None}) for row in rows]
    assert [table.title for table in tables(older)][:2] == [
        "emoji",
        "emoji: from eda-dm to eda-dm-official, one difference at a time",
    ]


def test_it_is_said_where_a_quantized_model_is_ahead_of_the_float_model() -> None:
    assert not any("no merit" in note for note in tables([make_row()])[0].notes)
    assert any(
        note.startswith("FD to the training images: where") for note in tables([make_row(fd_train=60.0)])[0].notes
    )


def test_what_was_scored_alike_is_said_once() -> None:
    """Whatever the number of images, and against whichever images."""
    same = {"low": None, "high": None, "features": "zoo net", "resize": "64 px"}
    scores = [{"name": name, "value": 1.0, **same} for name in ("FD-zoo", "FD-zoo to float")]
    rows = [make_row(samples=n, scores=[{**score, "count": n} for score in scores]) for n in (5000, 2048)]
    table = tables(rows)[0]
    about = [note for note in table.notes if "zoo net" in note]
    assert about == ["FD-zoo, FD-zoo to float: 2,048 or 5,000 images, zoo net, 64 px"]
    assert table.caption.startswith("2,048 or 5,000 images, ")


def test_sqnr_says_that_it_is_not_of_the_integers_that_drew_the_images() -> None:
    rows = [make_row(sampler_sqnr_db=27.0), make_row("nearest", sampler_sqnr_db=20.0)]
    plain = ["SQNR of eps, dB ↑", "SQNR in the sampler, dB ↑"]
    assert tables(rows)[0].header[2:4] == plain
    drawn = [row.model_copy(update={"arithmetic": "deployed", "attention": "bf16"}) for row in rows]
    changed = drawn[0].model_copy(update={"variant": "no FBR", "kind": "ablation"})
    wanted = ["SQNR of eps (simulated), dB ↑", "SQNR in the sampler (simulated), dB ↑"]
    recipes, _, ablations = tables([*drawn, changed])
    assert recipes.header[2:4] == ablations.header[3:5] == wanted


def test_the_float_model_has_one_row_where_it_is_the_same_in_all_settings() -> None:
    rows = [make_row(), make_row(arithmetic="deployed", attention="bf16")]
    (section, *_) = tables(rows)[0].sections
    assert [[field.text for field in row[:3]] for row in section] == [["float", "–", "–"]]
    other = make_row(samples=2048, fd_train_float=72.0)
    (section, *_) = tables([*rows, other])[0].sections
    assert [row[2].text for row in section] == [
        "2,048 images, as defined",
        "5,000 images, as defined; 5,000 images, deployed",
    ]


def test_the_largest_group_of_recipes_that_cost_alike_is_not_listed() -> None:
    rows = [make_row(name) for name in ("nearest", "ptq4dm", "q-diffusion")]
    (*_, alike, other) = tables([*rows, make_row("tfmq-dm", cost=make_cost(300_000))])[1].sections[-1]
    assert (alike[1].text, other[1].text) == ("every other recipe", "tfmq-dm")


def test_names_in_brackets_are_explained() -> None:
    """Those of the tables of changes by their sentences, a user's by the options in which it differs."""
    config = {**make_row().config, "drift_trajectories": 0}
    rows = [make_row(), make_row(variant="nodrift", config=config)]
    assert "eda-dm (nodrift): drift_trajectories 0" in tables(rows)[0].notes
    variants = ("no FBR", "second-pass", "nodrift", "nodrift, no FBR", "riddle")
    planned = [{**rows[0].key, "seed": 9, "variant": name} for name in variants]
    assert missing_cells(planned, rows) == [
        "emoji w4a8 eda-dm seed 9 (no FBR): block losses alone (gamma 0)",
        "emoji w4a8 eda-dm seed 9 (second-pass): the released code takes the layer losses from a second quantized "
        "pass, which has other masks where QDrop is on",
        "emoji w4a8 eda-dm seed 9 (nodrift): drift_trajectories 0",
        "emoji w4a8 eda-dm seed 9 (nodrift, no FBR): block losses alone (gamma 0); beside the options of 'nodrift'",
        "emoji w4a8 eda-dm seed 9 (riddle): named with --variant; no finished cell says what it changes",
    ]
