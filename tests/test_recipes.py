"""Recipes and presets: every family gets the paper's numbers, and nothing that is written is without effect."""

from __future__ import annotations

from typing import get_args

import pytest

from mezzotint.config import QuantizeConfig
from mezzotint.models.families import Family
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
