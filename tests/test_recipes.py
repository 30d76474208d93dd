"""Recipes and presets: every family gets the paper's numbers, and nothing that is written is without effect."""

from __future__ import annotations

from typing import get_args

import pytest

from mezzotint.config import QuantizeConfig, setting, with_settings
from mezzotint.models.families import Family
from mezzotint.recipes.ablations import ABLATIONS
from mezzotint.recipes.differences import DIFFERENCES, differences
from mezzotint.recipes.paper import PAPER
from mezzotint.recipes.registry import PRESETS, RECIPES, make_config
from mezzotint.sampling.defaults import SAMPLERS

FAMILIES: tuple[Family, ...] = get_args(Family)

# N, lambda, gamma, iterations, batch, rounding rate at W4: the released scripts, family by family.
PUBLISHED = {
    "ddim": (1024, 1.2, 0.8, 5000, 32, 0.5),
    "ldm-vq": (1024, 1.0, 1.0, 5000, 32, 0.01),
    "ldm-kl": (1024, 1.0, 1.0, 5000, 32, 0.05),
    "ldm-class": (1024, 1.2, 0.8, 1000, 32, 0.5),
    "sd": (256, 5.0, 0.8, 1000, 2, 0.03),
}


def settings(config: QuantizeConfig) -> tuple[float, ...]:
    learning = config.reconstruction
    assert learning is not None
    return (
        config.selection.calib_size,
        config.selection.variety_weight,
        learning.layer_weight,
        learning.iters,
        learning.batch_size,
        learning.rounding_lr,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_paper_preset_and_the_released_recipe_spend_what_was_published(family: Family) -> None:
    assert settings(make_config("eda-dm", "w4a8", "paper", family=family)) == PUBLISHED[family]
    assert settings(make_config("eda-dm-official", "w4a8", family=family)) == PUBLISHED[family]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_config_can_be_made_and_survives_a_round_trip(recipe: str, preset: str, family: Family) -> None:
    made = make_config(recipe, "w4a8", preset, family=family)
    assert QuantizeConfig.model_validate_json(made.model_dump_json()) == made
    expected = SAMPLERS[family].model_dump(exclude={"steps"} if preset == "fast" else set())
    assert made.sampler.model_dump(include=set(expected)) == expected


def test_eight_bit_weights_learn_with_their_own_rates() -> None:
    assert PAPER["ldm-class"].learning_rates("w8a8") == {"rounding_lr": 1e-4, "step_lr": 1e-3}
    assert PAPER["ldm-class"].learning_rates("w4a8") == {"rounding_lr": 0.5, "step_lr": 1e-4}


def test_recipes_of_one_family_share_lambda_and_sampler() -> None:
    for family in FAMILIES:
        ours, released = make_config(family=family), make_config("eda-dm-official", family=family)
        assert ours.selection.variety_weight == released.selection.variety_weight
        assert ours.sampler == released.sampler == make_config("nearest", family=family).sampler


@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_corrects_what_the_recipe_leaves_alone(preset: str) -> None:
    for recipe in RECIPES:
        assert (make_config(recipe, "w4a8", preset).drift_trajectories > 0) == (recipe == "eda-dm")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", ["w8a8", "w4a8"])
def test_all_differences_together_are_the_released_recipe(family: Family, bits: str) -> None:
    ours, released = (make_config(recipe, bits, family=family) for recipe in ("eda-dm", "eda-dm-official"))
    config = ours
    for difference in differences(ours, released).values():
        changed = with_settings(config, difference.changes)
        assert changed != config  # each does something, whatever was applied before it
        config = changed
    assert with_settings(config, {"recipe": "eda-dm-official"}) == released


def test_every_difference_is_one_somewhere_and_no_option_is_in_two() -> None:
    pairs = [[make_config(r, family=f) for r in ("eda-dm", "eda-dm-official")] for f in FAMILIES]
    assert set().union(*(differences(*pair) for pair in pairs)) == set(DIFFERENCES)
    named = [option for row in DIFFERENCES.values() for option in row.options]
    assert len(named) == len(set(named))


def test_what_both_recipes_are_told_is_no_difference() -> None:
    pair = [make_config(recipe, iters=7, calib_size=64, batch_size=4) for recipe in ("eda-dm", "eda-dm-official")]
    assert not {"iterations", "size"} & differences(*pair).keys()


def test_ablations_change_what_they_name_and_each_is_another_method() -> None:
    config = make_config("eda-dm", "w4a8")
    changed = [with_settings(config, ablation.changes) for ablation in ABLATIONS.values()]
    assert all(other != config for other in changed)
    assert len({other.model_dump_json() for other in changed}) == len(ABLATIONS)
    for ablation, other in zip(ABLATIONS.values(), changed, strict=True):
        parts = {name: value for name, value in ablation.changes.items() if not isinstance(value, dict)}
        assert {name: setting(other, name) for name in parts} == parts


def test_q_diffusion_learns_weights_and_steps_apart_and_drops_nothing() -> None:
    learning = make_config("q-diffusion").reconstruction
    assert learning is not None
    assert learning.step_phase is not None
    assert learning.input_drop == learning.activation_drop == learning.layer_weight == 0
    paper = make_config("q-diffusion", preset="paper")
    assert paper.reconstruction is not None
    assert paper.reconstruction.step_phase is not None
    assert (paper.reconstruction.iters, paper.selection.calib_size) == (20000, 5120)
    assert round(paper.reconstruction.iters * paper.reconstruction.step_phase.share) == 5000


def test_rivals_without_learning_differ_in_what_their_names_say() -> None:
    nearest, minmax, ptq4dm = (make_config(name) for name in ("nearest", "nearest-minmax", "ptq4dm"))
    assert with_settings(nearest, {"recipe": "nearest-minmax", "ranges.candidates": 1}) == minmax
    assert with_settings(nearest, {"recipe": "ptq4dm", "selection.method": "normal"}) == ptq4dm
