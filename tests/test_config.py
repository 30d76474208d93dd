"""Dotted options: what is set is set, what cannot be is one clear line."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from mezzotint.config import FLAT_FIELDS, QuantizeConfig, StepPhase, override, setting, with_settings
from mezzotint.errors import ConfigError
from mezzotint.recipes.registry import RECIPES, make_config


def options(part: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Every option below `part` by its dotted name."""
    found: dict[str, Any] = {}
    for name, value in part:
        found |= options(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {f"{prefix}{name}": value}
    return found


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_option_can_be_set_to_what_it_is_and_read_back(recipe: str) -> None:
    config = make_config(recipe)
    everything = options(config)
    assert with_settings(config, everything) == config
    assert {name: setting(config, name) for name in everything} == everything


def test_an_option_changes_and_nothing_else() -> None:
    before = make_config()
    after = with_settings(before, {"selection.allocation": "round", "softmax_bits": 6})
    changed = {name for name, value in options(after).items() if value != options(before)[name]}
    assert changed == {"selection.allocation", "softmax_bits"}


def test_a_whole_part_can_be_set_and_taken_away() -> None:
    config = with_settings(make_config(), {"reconstruction.step_phase": {"share": 0.5}})
    assert config.reconstruction is not None
    assert config.reconstruction.step_phase == StepPhase(share=0.5)
    assert with_settings(config, {"reconstruction.step_phase.norm": 2.0}) != config
    assert with_settings(config, {"reconstruction": None}).reconstruction is None


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("selection.alocation", "round", r"'selection.alocation' \(did you mean 'allocation'\?\); its part has method"),
        ("colour.red", 1, "no option 'colour.red'"),
        ("selection.method.red", 1, "no option 'selection.method.red'"),
        ("selection.allocation", "up", "selection.allocation: Input should be"),
        ("ranges.candidates", 0, "ranges.candidates: .* greater than or equal to 1"),
        ("reconstruction.step_phase.share", 0.5, "recipe 'eda-dm' has no step_phase"),
    ],
)
def test_what_cannot_be_set_is_one_clear_line(name: str, value: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        with_settings(make_config(), {name: value})
    assert "\n" not in str(caught.value)


def test_flat_names_are_dotted_names_of_options() -> None:
    config = make_config()
    for name, path in FLAT_FIELDS.items():
        value = setting(config, ".".join(path))
        assert override(config, **{name: value}) == config


def test_a_part_that_is_not_there_has_no_settings() -> None:
    assert setting(QuantizeConfig(reconstruction=None), "reconstruction.iters") is None
