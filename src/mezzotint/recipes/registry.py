"""The recipes by name, and presets: how much time to spend on one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mezzotint.config import FLAT_FIELDS, QuantizeConfig, override, suggest
from mezzotint.errors import ConfigError
from mezzotint.models.families import Family
from mezzotint.recipes.eda_dm import BATCH_SIZE, eda_dm
from mezzotint.recipes.eda_dm_official import eda_dm_official
from mezzotint.recipes.nearest import nearest
from mezzotint.recipes.nearest_minmax import nearest_minmax
from mezzotint.recipes.paper import PAPER, Q_DIFFUSION
from mezzotint.recipes.ptq4dm import ptq4dm
from mezzotint.recipes.q_diffusion import q_diffusion
from mezzotint.recipes.tfmq_dm import tfmq_dm

RECIPES: dict[str, Callable[[str, Family], QuantizeConfig]] = {
    "nearest-minmax": nearest_minmax,
    "nearest": nearest,
    "ptq4dm": ptq4dm,
    "q-diffusion": q_diffusion,
    "tfmq-dm": tfmq_dm,
    "eda-dm": eda_dm,
    "eda-dm-official": eda_dm_official,
}

# Seconds to spend, not what to compute: minutes on two CPU cores; minutes on a GPU; what the paper's code spends.
PRESETS = ("fast", "default", "paper")
_FAST: dict[str, Any] = {
    "steps": 20,
    "calib_size": 256,
    "pilot_size": 16,
    "iters": 100,
    "batch_size": 16,
    "rounding_lr": 0.5,
}


def make_config(
    recipe: str = "eda-dm",
    bits: str = "w4a8",
    preset: str = "default",
    *,
    family: Family = "ddim",
    **changes: Any,
) -> QuantizeConfig:
    """The config of `recipe` at `bits` for a model of `family` (`mezzotint.models.families.family_of`).

    It spends what `preset` says; single options change by their flat names. Options of the preset that the recipe lacks
    (such as iterations of `nearest`) are left out; a *named* option that the recipe lacks raises ConfigError, like an
    unknown recipe or preset.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"no recipe {recipe!r}{suggest(recipe, RECIPES)}; the recipes are {', '.join(RECIPES)}")
    config = RECIPES[recipe](bits, family)
    spending = preset_options(preset, bits, family, recipe)
    if config.reconstruction is None:
        spending = {name: value for name, value in spending.items() if FLAT_FIELDS[name][0] != "reconstruction"}
    return override(override(config, **spending), **changes)


def preset_options(preset: str, bits: str, family: Family, recipe: str = "eda-dm") -> dict[str, Any]:
    """What a preset changes, by flat names.

    "paper" takes everything of `PAPER` but the radius, which is absolute, and the rate of the activation steps: ours is
    relative to each step (`reconstruction.steps`), theirs absolute. For Q-Diffusion, and TFMQ-DM which is built on it,
    it takes `Q_DIFFUSION` likewise.
    """
    if preset not in PRESETS:
        raise ConfigError(f"no preset {preset!r}{suggest(preset, PRESETS)}; the presets are {', '.join(PRESETS)}")
    if preset == "fast":
        return {**_FAST, "batch_size": min(_FAST["batch_size"], BATCH_SIZE[family])}
    if preset == "default":
        return {}
    return Q_DIFFUSION[family] if recipe in ("q-diffusion", "tfmq-dm") else PAPER[family].spending(bits)
