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

from mezzotint.config import QuantizeConfig, with_settings
from mezzotint.errors import ConfigError
from mezzotint.models.families import Family
from mezzotint.recipes.ablations import ABLATIONS
from mezzotint.recipes.differences import differences
from mezzotint.recipes.registry import make_config

OURS, RELEASED = "eda-dm", "eda-dm-official"
Kind = Literal["recipe", "difference", "ablation"]
Arithmetic = Literal["simulated", "integer"]  # of the network that draws a cell's images, see `measure`
# Options that change where and how fast a cell is computed, not what: cells that differ in these alone are the same.
SPENDING = ("forward_batch", "cache_gb")


@dataclass(frozen=True)
class Plan:
    """What was asked for.

    Attributes:
        seeds: of the calibration; images are those of the seeds 0 ... samples - 1 in every cell.
        changes: options by their flat names (`mezzotint.config.FLAT_FIELDS`); None leaves one as the recipe has it.
            `iters` counts only for recipes that learn.
        settings: options by their dotted names.
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
    words += ["integer"] if key["arithmetic"] == "integer" else []
    return " ".join(words + ([f"({key['variant']})"] if key["variant"] else []))


def list_cells(plan: Plan, family: Family) -> list[Cell]:
    """The cells in the order in which they run: all of one seed before the next, plain recipes first.

    Raises:
        ConfigError: an unknown recipe or option, or two cells of one name.
    """
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


def _recipes(plan: Plan, bits: str, seed: int, family: Family) -> Iterator[Cell]:
    asked = list(plan.recipes)
    for needed in [OURS, RELEASED] if plan.differences else [OURS] if plan.ablations else []:
        if needed not in asked:
            asked.append(needed)
    for recipe in asked:
        config = _config(plan, recipe, bits, seed, family)
        yield Cell(plan.model, recipe, plan.variant, "recipe", "", plan.samples, config, plan.arithmetic)


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
    """The recipe with everything that was asked for; `iters` is left out where nothing is learned."""
    changes = {**plan.changes, "seed": seed}
    if make_config(recipe, bits, plan.preset, family=family).reconstruction is None:
        changes.pop("iters", None)
    return with_settings(make_config(recipe, bits, plan.preset, family=family, **changes), plan.settings)
