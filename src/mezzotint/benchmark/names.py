"""What the short names in brackets mean: of differences and ablations, and variants that a user named.

no FBR      an ablation, "symmetric" a difference: the sentence of its table
my-idea     a user's: the options in which a row of that name differs from the plain recipe beside it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mezzotint.benchmark.plan import OURS, label
from mezzotint.benchmark.row import Row
from mezzotint.benchmark.rows import missing
from mezzotint.benchmark.table import Line, differing, option_words
from mezzotint.recipes.ablations import ABLATIONS
from mezzotint.recipes.differences import DIFFERENCES

UNKNOWN = "named with --variant; no finished cell says what it changes"


def missing_cells(planned: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> list[str]:
    """The cells that were asked for and did not run, one line each, with what the name in brackets means."""
    keys = missing(planned, rows)
    return [f"{label(key)}: {meaning(key, rows)}" if key["variant"] else label(key) for key in keys]


def variant_notes(rows: Sequence[Row]) -> list[str]:
    """A note for every variant of a recipe among `rows` that differs from its plain recipe among them."""
    keys = {(row.recipe, row.variant): row.key for row in rows if row.variant}
    words = {f"{recipe} ({variant})": meaning(key, rows) for (recipe, variant), key in keys.items()}
    return [f"{name}: {said}" for name, said in words.items() if said != UNKNOWN]


def meaning(key: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """What the variant called `key["variant"]` changes, in words."""
    whole, _, last = key["variant"].rpartition(", ")
    found = [row for row in rows if (row.recipe, row.variant) == (key["recipe"], key["variant"])]
    if found and not found[0].note:
        return _changed(found[0], [row for row in rows if row.recipe == key["recipe"] and not row.variant])
    if key["recipe"] != OURS or not (last in ABLATIONS or last in DIFFERENCES):
        return UNKNOWN
    said = ABLATIONS[last].sentence if last in ABLATIONS else f"the released code {DIFFERENCES[last].sentence}"
    return f"{said}; beside the options of {whole!r}" if whole else said


def _changed(row: Row, plain: Sequence[Row]) -> str:
    """The options in which `row` differs from the nearest of `plain`."""
    best = min(plain, key=lambda other: len(_differing(row, other)), default=None)
    names = [] if best is None else _differing(row, best)
    return ", ".join(option_words(Line((row,)), names)) if names else UNKNOWN


def _differing(row: Row, other: Row) -> list[str]:
    names = differing((Line((row,)), Line((other,))))
    return [name for name in names if name != "bits"]
