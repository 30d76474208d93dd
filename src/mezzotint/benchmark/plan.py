"""Which cells a table has. A cell is one config on one model, judged on the images of the seeds 0 ... samples - 1.

    recipes       every recipe x bits x seed
    differences   `eda-dm` with one difference of the released code at a time, beside both whole recipes
    ablations     `eda-dm` with one part of the method changed at a time, beside the whole recipe

Every config is made here, before anything runs, so that a wrong option is said at once. A change that leaves a config
as it was (a difference of transformer blocks on a network without any) makes no cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mezzotint.config import QuantizeConfig, absent_part, check_option, with_settings
from mezzotint.errors import ConfigError
from mezzotint.models.families import Family
from mezzotint.recipes.ablations import ABLATIONS
from mezzotint.recipes.differences import differences
from mezzotint.recipes.registry import make_config

OURS, RELEASED = "eda-dm", "eda-dm-official"
Kind = Literal["recipe", "difference", "ablation"]
Arithmetic = Literal["simulated", "integer", "deployed"]  # of the network that draws a cell's images, see `measure`
# Options that change where and how fast a cell is computed, not what: cells that differ in these alone are the same.
SPENDING = ("forward_batch", "cache_gb")


@dataclass(frozen=True)
class Plan:
    """What was asked for.

    Attributes:
        seeds: of the calibration; images are those of the seeds 0 ... samples - 1 in every cell.
        changes: options by their flat names (`mezzotint.config.FLAT_FIELDS`); None leaves one as the recipe has it.
            `iters` counts only for recipes that learn.
        settings: options by their dotted names. One of a part that a recipe lacks leaves that recipe as it is
            (`without_effect`).
        variant: what rows with these settings are called; "" for the plain recipes.
        arithmetic: of the networks that draw the images.
    """

    model: str
    recipes: tuple[str, ...] = ("nearest", OURS)
    bits: tuple[str, ...] = ("w4a8",)
    seeds: tuple[int, ...] = (1234,)
    samples: int = 2048
    preset: str = "default"
    changes: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""
    differences: bool = False
    ablations: bool = False
    arithmetic: Arithmetic = "simulated"


@dataclass(frozen=True)
class Cell:
    """One cell; `note` says in a sentence what a difference or an ablation changes."""

    model: str
    recipe: str
    variant: str
    kind: Kind
    note: str
    samples: int
    config: QuantizeConfig
    arithmetic: Arithmetic = "simulated"

    @property
    def key(self) -> dict[str, Any]:
        """What names the cell in a row and in a table."""
        config = self.config
        return {
            "model": self.model,
            "recipe": self.recipe,
            "bits": config.bits,
            "iters": config.reconstruction.iters if config.reconstruction else 0,
            "calib_size": config.selection.calib_size,
            "samples": self.samples,
            "seed": config.seed,
            "variant": self.variant,
            "arithmetic": self.arithmetic,
        }

    @property
    def label(self) -> str:
        return label(self.key)


def label(key: Mapping[str, Any]) -> str:
    """The cell on one line."""
    words = [str(key[name]) for name in ("model", "bits", "recipe")] + [f"seed {key['seed']}"]
    words += [key["arithmetic"]] if key["arithmetic"] != "simulated" else []
    return " ".join(words + ([f"({key['variant']})"] if key["variant"] else []))


def list_cells(plan: Plan, family: Family) -> list[Cell]:
    """The cells in the order in which they run: all of one seed before the next, plain recipes first.

    Raises:
        ConfigError: an unknown recipe or option, an option that no recipe has, or two cells of one name.
    """
    for option in plan.settings:
        check_option(option)
    asked = _asked(plan)
    for option, parts in without_effect(plan, family).items():
        if len(parts) == len(asked):
            who = f"{asked[0]} has" if len(asked) == 1 else f"{', '.join(asked)} have"
            raise ConfigError(f"{option} has no effect: {who} no {' or no '.join(dict.fromkeys(parts.values()))}")
    cells: dict[str, Cell] = {}
    for seed in plan.seeds:
        for bits in plan.bits:
            for cell in (*_recipes(plan, bits, seed, family), *_changed(plan, bits, seed, family)):
                name = str(cell.key)
                if name in cells and cells[name].config != cell.config:
                    raise ConfigError(f"two different cells are called {cell.label!r}; choose another --variant")
                cells.setdefault(name, cell)
    return list(cells.values())


def parse_arithmetic(text: str) -> Arithmetic:
    """The arithmetic called `text`. ConfigError if there is none."""
    found: dict[str, Arithmetic] = {name: name for name in get_args(Arithmetic)}
    if text not in found:
        raise ConfigError(f"arithmetic must be one of {', '.join(found)}, got {text!r}")
    return found[text]


def same_work(a: QuantizeConfig, b: QuantizeConfig) -> bool:
    """Whether two configs give the same network: equal but for what `SPENDING` names."""
    left = a.model_copy(update={name: getattr(b, name) for name in SPENDING})
    return left == b


def without_effect(plan: Plan, family: Family) -> dict[str, dict[str, str]]:
    """The settings that leave some recipe as it is: of each option, those recipes, and the part that they lack."""
    found: dict[str, dict[str, str]] = {}
    for recipe in _asked(plan):
        for option, part in _lacking(plan, make_config(recipe, plan.bits[0], family=family)).items():
            found.setdefault(option, {})[recipe] = part
    return found


def _lacking(plan: Plan, config: QuantizeConfig) -> dict[str, str]:
    """The settings that say nothing to `config`, with the part it lacks, unless another setting gives it that part."""
    parts = {name: absent_part(config, name) for name in plan.settings}
    return {name: part for name, part in parts.items() if part and part not in plan.settings}


def _asked(plan: Plan) -> list[str]:
    """The recipes of the plan, with those that changes are compared with."""
    needed = [OURS, RELEASED] if plan.differences else [OURS] if plan.ablations else []
    return list(dict.fromkeys((*plan.recipes, *needed)))


def _recipes(plan: Plan, bits: str, seed: int, family: Family) -> Iterator[Cell]:
    for recipe in _asked(plan):
        config = _config(plan, recipe, bits, seed, family)
        plain = plan.settings and len(_lacking(plan, make_config(recipe, bits, family=family))) == len(plan.settings)
        variant = "" if plain else plan.variant
        yield Cell(plan.model, recipe, variant, "recipe", "", plan.samples, config, plan.arithmetic)


def _changed(plan: Plan, bits: str, seed: int, family: Family) -> Iterator[Cell]:
    whole = _config(plan, OURS, bits, seed, family)
    tables: list[tuple[Kind, Mapping[str, Any]]] = []
    if plan.differences:
        tables.append(("difference", differences(whole, _config(plan, RELEASED, bits, seed, family))))
    if plan.ablations:
        tables.append(("ablation", ABLATIONS))
    for kind, table in tables:
        for name, (sentence, settings) in table.items():
            config = with_settings(whole, settings)
            if config != whole:
                variant = f"{plan.variant}, {name}" if plan.variant else name
                yield Cell(plan.model, OURS, variant, kind, sentence, plan.samples, config, plan.arithmetic)


def _config(plan: Plan, recipe: str, bits: str, seed: int, family: Family) -> QuantizeConfig:
    """The recipe with everything that was asked for and says something to it; `iters` only where it learns."""
    changes, plain = {**plan.changes, "seed": seed}, make_config(recipe, bits, plan.preset, family=family)
    if plain.reconstruction is None:
        changes.pop("iters", None)
    lacking = _lacking(plan, plain)
    settings = {name: value for name, value in plan.settings.items() if name not in lacking}
    return with_settings(make_config(recipe, bits, plan.preset, family=family, **changes), settings)
