from __future__ import annotations

import math
from typing import Any

import pytest

from benchmark_rows import make_row
from mezzotint.benchmark.changes import Change, change, student
from mezzotint.benchmark.columns import FD, PSNR, SAMPLER, SECONDS, SSIM, columns_of, score_column
from mezzotint.benchmark.row import USUAL_SOURCE, Row, Told
from mezzotint.benchmark.table import Stat, effect_blocks, recipe_blocks, within_spread
from mezzotint.benchmark.verdict import verdict


def with_options(row: Row, **changes: object) -> Row:
    """A row whose config has other values; options of the sampler are found by their names."""
    config = dict(row.config)
    for name, value in changes.items():
        part = {"steps": "sampler", "radius": "selection"}[name]
        config[part] = {**config[part], name: value}
    return row.model_copy(update={"config": config})


def score(name: str, value: float) -> dict[str, object]:
    return {"name": name, "value": value, "low": value - 1, "high": value + 1, "count": 5000, "features": "f"}


def test_seeds_become_mean_and_spread(rows: list[Row]) -> None:
    block = next(block for block in recipe_blocks(rows) if block.bits == "w4a8")
    assert [line.name for line in block.lines] == ["nearest", "eda-dm-official", "eda-dm"]
    stat = block.lines[2].stat(FD)
    assert stat is not None
    assert (stat.count, stat.interval) == (3, None)
    assert stat.mean == pytest.approx(1.3)
    assert stat.spread == pytest.approx(math.sqrt((0.01 + 0 + 0.01) / 2))
    alone = block.lines[1].stat(FD)
    assert alone == Stat(18.0, None, 1, (17.9, 18.1))


def test_settings_run_from_many_bits_to_few(rows: list[Row]) -> None:
    more = [make_row(bits=bits) for bits in ("w4a4", "w4a32", "w8a8")]
    assert [block.bits for block in recipe_blocks([*more, *rows])] == ["w8a8", "w4a32", "w4a8", "w4a4"]


def test_cells_of_another_effort_are_other_lines() -> None:
    rows = [make_row(seed=1), make_row(seed=2), make_row(iters=9), make_row(seed=1, samples=6)]
    blocks = recipe_blocks(rows)
    assert [len(block.lines) for block in blocks] == [1, 2]
    assert sorted(len(line.rows) for block in blocks for line in block.lines) == [1, 1, 2]


def test_rows_that_differ_in_more_than_the_seed_are_not_averaged() -> None:
    rows = [make_row(seed=1), with_options(make_row(seed=2), radius=0.5)]
    (block,) = recipe_blocks(rows)
    assert [line.name for line in block.lines] == ["eda-dm (radius null)", "eda-dm (radius 0.5)"]


def test_only_what_was_judged_on_the_same_images_is_compared() -> None:
    told = Told(source="coco.json", count=9, sha256="ef" * 32)
    rows = [make_row(), with_options(make_row(), steps=50), make_row(told=told)]
    assert sorted(block.setting for block in recipe_blocks(rows)) == [
        "steps 100, coco.json",
        "steps 100, evaluation split",
        "steps 50, evaluation split",
    ]
    usual = told.model_copy(update={"source": "evaluation split"})
    (block,) = recipe_blocks([make_row(seed=1), make_row(seed=2, told=usual)])
    assert (len(block.lines), block.setting) == (1, "")


def test_other_numbers_of_images_stand_apart_and_say_so() -> None:
    few, many = make_row(samples=2048, fd=1.0), make_row("nearest", fd=2.0)
    blocks = recipe_blocks([few, many])
    assert [(block.setting, len(block.lines)) for block in blocks] == [("2,048 images", 1), ("5,000 images", 1)]


def test_best_and_within_the_spread(rows: list[Row]) -> None:
    block = next(block for block in recipe_blocks(rows) if block.bits == "w4a8")
    assert block.standings(FD) == ["", "", "best"]
    assert block.standings(PSNR).count("best") == 1
    assert block.standings(SECONDS) == ["", "", ""]


def test_within_spread_needs_a_spread_or_an_interval() -> None:
    assert within_spread(Stat(1.0, 0.3, 3, None), Stat(1.2, 0.1, 3, None))
    assert not within_spread(Stat(1.0, 0.1, 3, None), Stat(1.2, 0.1, 3, None))
    assert within_spread(Stat(1.0, None, 1, (0.7, 1.3)), Stat(1.2, None, 1, None))
    assert within_spread(Stat(1.2, None, 1, None), Stat(1.0, None, 1, (0.7, 1.3)))
    assert not within_spread(Stat(1.0, None, 1, None), Stat(1.0001, None, 1, None))


def test_scores_become_columns_that_know_what_is_better() -> None:
    rows = [
        make_row("nearest", scores=[score("FID", 9.0), score("FID to float", 4.0)], float_scores=[score("FID", 8.0)]),
        make_row("eda-dm", scores=[score("FID", 7.0), score("precision", 0.5)]),
    ]
    titles = [column.title for column in columns_of(rows)]
    assert titles[-4:] == ["FID", "FID to float", "precision", "calibration"]
    fid, precision = score_column("FID"), score_column("precision")
    assert (fid.better, score_column("FID to float").better, precision.better) == ("lower", "lower", "higher")
    (block,) = recipe_blocks(rows)
    assert block.best(fid) == 1
    assert block.best(precision) is None  # one line alone has it
    assert fid.floating(rows[0]) == 8.0


def test_changes_stand_under_the_whole_recipe(rows: list[Row]) -> None:
    (block,) = effect_blocks(rows, "difference")
    assert [line.name for line in block.lines] == ["eda-dm", "eda-dm (symmetric)", "eda-dm-official"]
    (block,) = effect_blocks(rows, "ablation")
    assert [line.name for line in block.lines] == ["eda-dm", "eda-dm (no FBR)"]
    assert effect_blocks([row for row in rows if row.recipe != "eda-dm" or row.variant], "ablation") == []


def test_a_change_is_taken_seed_by_seed() -> None:
    rows = [make_row(seed=1, fd=1.0), make_row(seed=2, fd=3.0)]
    changed = [make_row(seed=s, fd=fd, variant="no FBR", kind="ablation") for s, fd in ((1, 1.5), (2, 3.7), (3, 99.0))]
    (block,) = effect_blocks([*rows, *changed], "ablation")
    moved = change(block, block.lines[1], FD)
    assert moved is not None
    assert (moved.mean, moved.spread) == (pytest.approx(0.6), pytest.approx(math.sqrt(2 * 0.1**2)))
    assert not moved.clear  # two seeds of one line: t is 12.7


def test_a_seed_without_the_figure_is_not_compared() -> None:
    """Of two seeds one has it on one side alone: the change is that of the other."""
    rows = [make_row(seed=1, ssim=0.5), make_row(seed=2, ssim=0.9)]
    changed = [make_row(seed=s, ssim=x, variant="x", kind="ablation") for s, x in ((1, 0.6), (2, None))]
    (block,) = effect_blocks([*rows, *changed], "ablation")
    moved = change(block, block.lines[1], SSIM)
    assert moved is not None
    assert moved.mean == pytest.approx(0.1)


def test_lines_share_what_is_known_of_luck() -> None:
    """Ten changes by nothing but luck say how large luck is; an eleventh that is larger is clear."""
    rows = [make_row(seed=1, fd=5.0), make_row(seed=2, fd=5.0)]
    for number in range(10):
        sign = (-1) ** number
        rows += [
            make_row(seed=s, fd=5 + 0.1 * sign * (3 - 2 * s), variant=f"v{number}", kind="ablation") for s in (1, 2)
        ]
    rows += [make_row(seed=s, fd=5.5 + 0.1 * (3 - 2 * s), variant="large", kind="ablation") for s in (1, 2)]
    (block,) = effect_blocks(rows, "ablation")
    moved = [change(block, line, FD) for line in block.lines[1:]]
    assert [found is not None and found.clear for found in moved] == [False] * 10 + [True]
    deviation = math.sqrt(2 * 0.1**2)  # of every line alone, so of all of them
    assert moved[-1] is not None
    assert moved[-1].margin == pytest.approx(2.201 * deviation / math.sqrt(2))


@pytest.mark.parametrize("freedom", [1, 2, 7, 19, 30, 31, 60, 500])
def test_student(freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)


def test_a_change_of_one_seed_has_the_intervals_of_both_figures() -> None:
    rows = [
        make_row(fd=2.0, fd_interval=(1.7, 2.3)),
        make_row(fd=2.4, fd_interval=(2.0, 2.8), variant="x", kind="ablation"),
    ]
    (block,) = effect_blocks(rows, "ablation")
    moved = change(block, block.lines[1], FD)
    assert moved is not None
    assert (moved.mean, moved.spread) == (pytest.approx(0.4), pytest.approx(0.5))
    assert not moved.clear
    assert not Change(9.0, None, None).clear


def test_what_the_sampler_sees_is_a_column_where_it_is_another_number() -> None:
    assert SAMPLER not in columns_of([make_row(), make_row(sampler_sqnr_db=29.0)])
    assert SAMPLER in columns_of([make_row(), make_row(sampler_sqnr_db=27.0)])


def test_verdict_names_the_best_and_where_ours_stands(rows: list[Row]) -> None:
    found = verdict(rows)
    assert found.headline == "eda-dm is closest to the float model in 2 of 2 bit settings."
    text = " ".join(found.sentences)
    assert "W4A8. FD to the float model: best is eda-dm 1.30 ± 0.10, then eda-dm-official 18.00; PSNR, mean" in text
    assert "“symmetric”: 1.30 ± 0.10 becomes 2.50 (Fréchet distance to the float model), clearly" in text
    several = verdict([*rows, make_row(fd=1.4, variant="no split", kind="ablation")])
    assert "Of 2, 1 clearly raise the Fréchet distance" in " ".join(several.sentences)


@pytest.mark.parametrize(
    ("fd", "headline", "words"),
    [
        (
            1.05,
            "in none of 1 bit setting, but within the spread of the closest in 1.",
            "eda-dm is within the spread of the best",
        ),
        (3.0, "in none of 1 bit setting.", "eda-dm is not within the spread of the best"),
    ],
)
def test_verdict_says_when_ours_is_not_the_best(fd: float, headline: str, words: str) -> None:
    rows = [make_row("q-diffusion", fd=1.0), make_row("tfmq-dm", fd=1.01), make_row(fd=fd)]
    found = verdict(rows)
    assert found.headline == f"eda-dm is closest to the float model {headline}"
    assert f"is number 3 of 3 ({words})" in found.sentences[0]


def test_verdict_of_one_recipe_claims_nothing() -> None:
    assert verdict([make_row("nearest")]).headline == "1 cell, and nothing to compare them with."
    changed = make_row(variant="no FBR", kind="ablation")
    said = "2 cells: single changes of eda-dm, and no recipes to compare."
    assert verdict([make_row(), changed]).headline == said


def test_verdict_without_ours_names_the_best() -> None:
    found = verdict([make_row("nearest", fd=2.0), make_row("ptq4dm", fd=1.0)])
    assert found.headline == "Closest to the float model: ptq4dm at W4A8."


def test_a_bit_setting_drawn_by_two_arithmetics_counts_once() -> None:
    def both(ours: float) -> list[Row]:
        """Ours against 1.5 at W4A8: 1.0 simulated, `ours` deployed."""
        deployed = {"arithmetic": "deployed", "attention": "bf16"}
        rows = [make_row("nearest", fd=1.5), make_row(fd=1.0)]
        return [*rows, make_row("nearest", fd=1.5, **deployed), make_row(fd=ours, **deployed)]

    found = verdict(both(1.0))
    assert found.headline == "eda-dm is closest to the float model in 1 of 1 bit setting."
    assert "once, as what it is on every one of them: W4A8 on 2 (as defined; deployed)." in found.sentences[-1]
    close, worse = (verdict(both(fd)).headline for fd in (1.55, 2.0))
    assert close.endswith(" in none of 1 bit setting, but within the spread of the closest in 1.")
    assert worse == "eda-dm is closest to the float model in none of 1 bit setting."


def test_the_headline_says_where_single_images_disagree_with_sets() -> None:
    far, near = ({"psnr_mean_db": db, "psnr_interval_db": (db - 0.1, db + 0.1)} for db in (27.0, 28.0))
    rows = [make_row("q-diffusion", fd=2.0, **near), make_row(fd=1.0, **far)]
    found = verdict(rows)
    assert found.headline == (
        "eda-dm is closest to the float model by Fréchet distance in 1 of 1 bit setting; by mean PSNR it is "
        "q-diffusion at W4A8."
    )
    assert (
        "the two disagree: as sets the images of eda-dm are closer, one by one those of q-diffusion"
        in found.sentences[0]
    )
    others = [row.model_copy(update={"recipe": "nearest"}) if row.recipe == "eda-dm" else row for row in rows]
    assert verdict(others).headline == (
        "Closest to the float model by Fréchet distance: nearest at W4A8; by mean PSNR it is q-diffusion at W4A8."
    )
    same = [make_row("q-diffusion", fd=2.0, **far), make_row(fd=1.0, **far)]
    assert "PSNR" not in verdict(same).headline
    assert "disagree" not in " ".join(verdict(same).sentences)


def test_who_calibrated_on_what_is_drawn_stands_apart_but_for_that_change_itself() -> None:
    told = Told(source=USUAL_SOURCE, count=4, sha256="")

    def seeing(recipe: str, told: Told | None = told, **changes: Any) -> Row:
        row = make_row(recipe, told=told, **changes)
        return row.model_copy(update={"config": {**row.config, "condition_split": "evaluation"}})

    others, seen = recipe_blocks([make_row("q-diffusion", told=told), make_row(told=told), seeing("eda-dm-official")])
    assert [line.name for line in others.lines] == ["q-diffusion", "eda-dm"]
    assert [line.name for line in seen.lines] == ["eda-dm-official"]
    assert (others.setting, seen.setting) == ("calibrated on others than are drawn", "calibrated on what is drawn")
    (alone,) = recipe_blocks([make_row(told=None), seeing("eda-dm-official", told=None)])  # unconditional
    assert not alone.setting
    mine = Told(source="mine.txt", count=4, sha256="1")
    assert len(recipe_blocks([make_row(told=mine), seeing("eda-dm-official", told=mine)])) == 1
    change = seeing("eda-dm", variant="conditions", kind="difference", note="calibrates on what is drawn")
    (effect,) = effect_blocks([make_row(told=told), change, seeing("eda-dm-official")], "difference")
    assert [line.first.variant for line in effect.lines] == ["", "conditions", ""]
