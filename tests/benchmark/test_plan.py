from __future__ import annotations

from dataclasses import replace

import pytest

from mezzotint.benchmark.plan import Plan, list_cells, same_work, without_effect
from mezzotint.config import StepPhase, with_settings
from mezzotint.errors import ConfigError
from mezzotint.recipes.differences import differences
from mezzotint.recipes.registry import make_config


def test_every_recipe_at_every_setting_and_seed() -> None:
    plan = Plan("m", ("nearest", "eda-dm"), ("w8a8", "w4a8"), (1, 2), changes={"iters": 7, "steps": None})
    cells = list_cells(plan, "ddim")
    names = [(c.config.seed, c.config.bits, c.recipe) for c in cells]
    assert names == [(s, b, r) for s in (1, 2) for b in ("w8a8", "w4a8") for r in ("nearest", "eda-dm")]
    assert [cell.key["iters"] for cell in cells] == [0, 7] * 4
    assert {cell.kind for cell in cells} == {"recipe"}


def test_settings_reach_every_config() -> None:
    plan = Plan("m", ("nearest",), settings={"ranges.norm": 3.0}, variant="L3")
    (cell,) = list_cells(plan, "ddim")
    assert cell.config.ranges.norm == 3.0
    assert cell.label == "m w4a8 nearest seed 1234 (L3)"


def test_settings_leave_recipes_alone_that_lack_their_part() -> None:
    """They keep their plain name, and say which setting they lack what part for."""
    both = {"reconstruction.step_phase": {"share": 0.5}, "reconstruction.step_phase.norm": 2.0}
    plan = Plan("m", ("nearest", "eda-dm"), settings=both, variant="V")
    nearest, ours = list_cells(plan, "ddim")
    assert (nearest.variant, ours.variant) == ("", "V")
    assert nearest.config == list_cells(Plan("m", ("nearest",)), "ddim")[0].config
    assert ours.config.reconstruction is not None
    assert ours.config.reconstruction.step_phase == StepPhase(share=0.5, norm=2.0)
    assert without_effect(plan, "ddim") == {name: {"nearest": "reconstruction"} for name in both}
    (kept, _) = list_cells(replace(plan, settings={**both, "softmax_bits": 7}), "ddim")
    assert (kept.variant, kept.config.softmax_bits) == ("V", 7)


def test_differences_bring_both_ends_and_change_one_thing_each() -> None:
    cells = list_cells(Plan("m", ("nearest",), differences=True), "ddim")
    assert [cell.recipe for cell in cells if cell.kind == "recipe"] == ["nearest", "eda-dm", "eda-dm-official"]
    whole, released = (next(c.config for c in cells if c.recipe == name) for name in ("eda-dm", "eda-dm-official"))
    changed = {cell.variant: cell for cell in cells if cell.kind == "difference"}
    assert set(changed) == set(differences(whole, released))
    assert all(cell.recipe == "eda-dm" and cell.note and cell.config != whole for cell in changed.values())
    assert changed["symmetric"].config == with_settings(whole, {"ranges.symmetric_activations": True})


def test_ablations_that_change_nothing_make_no_cell() -> None:
    plan = Plan("m", ("nearest",), ablations=True, changes={"calib_size": 256})
    cells = {cell.variant: cell for cell in list_cells(plan, "ddim") if cell.kind == "ablation"}
    assert "N 256" not in cells
    assert cells["N 128"].config.selection.calib_size == 128
    assert cells["no FBR"].config.reconstruction is not None
    assert cells["no FBR"].config.reconstruction.layer_weight == 0


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan("m", ("nearst",)), "no recipe 'nearst'.*did you mean 'nearest'"),
        (Plan("m", settings={"ranges.nrm": 3}), "no option 'ranges.nrm'"),
        (Plan("m", ("nearest",), settings={"reconstruction.iters": 3}), "no effect: nearest has no reconstruction"),
        (Plan("m", ("nearest", "eda-dm"), settings={"reconstruction.layer_wieght": 0}), "did you mean 'layer_weight'"),
        (Plan("m", ("nearest",), settings={"layer_weight": 0}), "did you mean 'reconstruction.layer_weight'"),
        (
            Plan("m", ("nearest", "eda-dm"), settings={"reconstruction.step_phase.norm": 2}),
            "reconstruction.step_phase.norm has no effect: nearest, eda-dm have no reconstruction or no reconst",
        ),
    ],
)
def test_wrong_words_are_refused_before_anything_runs(plan: Plan, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        list_cells(plan, "ddim")


def test_how_fast_a_cell_is_computed_does_not_make_it_another() -> None:
    config = make_config("eda-dm")
    assert same_work(config, make_config("eda-dm", forward_batch=7, cache_gb=1.0))
    assert not same_work(config, make_config("eda-dm", seed=7))
    assert not same_work(config, make_config("eda-dm", iters=7))
