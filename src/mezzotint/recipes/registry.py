"""The recipes by name, and presets: how much time to spend on one."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from mezzotint.config import FLAT_FIELDS, QuantizeConfig, override
from mezzotint.errors import ConfigError
from mezzotint.recipes.eda_dm import eda_dm
from mezzotint.recipes.eda_dm_official import eda_dm_official
from mezzotint.recipes.nearest import nearest

RECIPES: dict[str, Callable[[str], QuantizeConfig]] = {
    "nearest": nearest,
    "eda-dm": eda_dm,
    "eda-dm-official": eda_dm_official,
}

# fast: minutes on two CPU cores. default: minutes on a GPU. paper: what the paper's code spends (CIFAR-10 settings).
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"steps": 20, "calib_size": 256, "pilot_size": 16, "iters": 100, "batch_size": 16, "rounding_lr": 0.5},
    "default": {},
    "paper": {"steps": 100, "calib_size": 1024, "iters": 5000, "batch_size": 32},
}


def make_config(recipe: str = "eda-dm", bits: str = "w4a8", preset: str = "default", **changes: Any) -> QuantizeConfig:
    """The config of `recipe` at `bits`, spending what `preset` says, with single options changed by their flat names.

    Options of the preset that the recipe lacks (such as iterations of `nearest`) are left out; a *named* option that
    the recipe lacks raises ConfigError, like an unknown recipe or preset.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"no recipe {recipe!r}{_suggest(recipe, RECIPES)}; the recipes are {', '.join(RECIPES)}")
    if preset not in PRESETS:
        raise ConfigError(f"no preset {preset!r}{_suggest(preset, PRESETS)}; the presets are {', '.join(PRESETS)}")
    config = RECIPES[recipe](bits)
    spending = dict(PRESETS[preset])
    if config.reconstruction is None:
        spending = {name: value for name, value in spending.items() if FLAT_FIELDS[name][0] != "reconstruction"}
    return override(override(config, **spending), **changes)


def _suggest(name: str, known: dict[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
