"""The table in words: who is closest to the float model, where ours stands, which changes matter most.

What is judged is closeness to the float model: the Frechet distance to its images (the sets), the mean PSNR against
them (the single images), and every distribution score that was taken against them. "Within the spread" is that of
`table`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mezzotint.benchmark.columns import FD, PSNR, Column, columns_of
from mezzotint.benchmark.fields import stat_text
from mezzotint.benchmark.plan import OURS
from mezzotint.benchmark.row import Row
from mezzotint.benchmark.scoring import TO_FLOAT
from mezzotint.benchmark.table import Block, Change, effect_blocks, recipe_blocks

JUDGED = (FD, PSNR)


@dataclass(frozen=True)
class TableVerdict:
    """A headline, and the numbers behind it: what each paragraph is about, and the paragraph."""

    headline: str
    paragraphs: list[tuple[str, str]]

    @property
    def sentences(self) -> list[str]:
        return [f"{about}. {words}" for about, words in self.paragraphs]


def verdict(rows: Sequence[Row]) -> TableVerdict:
    """What the rows say."""
    blocks = recipe_blocks(rows)
    judged = [*JUDGED, *(column for column in columns_of(rows) if column.title.endswith(TO_FLOAT))]
    paragraphs = [(_about(block), words) for block in blocks if (words := _standings(block, judged))]
    for kind, what in (("difference", "differences of the release"), ("ablation", "changes of a part")):
        for block in effect_blocks(rows, kind):  # type: ignore[arg-type]  # both are Kinds
            paragraphs.append((f"{_about(block)}, {what}", _largest(block, what)))
    return TableVerdict(_headline(blocks, len(rows)), paragraphs)


def _about(block: Block) -> str:
    return ", ".join(filter(None, (block.model, block.bits.upper(), block.setting)))


def _headline(blocks: Sequence[Block], rows: int) -> str:
    """In how many settings ours is best by the Frechet distance; how many cells there are where nothing can be said."""
    standings = [dict(zip((line.name for line in b.lines), b.standings(FD), strict=True)) for b in blocks]
    compared = [found[OURS] for found in standings if OURS in found and len(found) > 1]
    if not compared and any("best" in block.standings(FD) for block in blocks):
        firsts = [
            f"{block.lines[i].name} at {block.bits.upper()}" for block in blocks if (i := block.best(FD)) is not None
        ]
        return f"Closest to the float model: {', '.join(firsts)}."
    if not compared:
        return f"{rows} cell{'s' if rows != 1 else ''}, and nothing to compare them with."
    best, close = compared.count("best"), compared.count("within")
    settings = f"{len(compared)} setting{'s' if len(compared) != 1 else ''}"
    if not best:
        also = f", but within the spread of the closest in {close}" if close else ""
        return f"{OURS} is closest to the float model in none of {settings}{also}."
    also = f", and within the spread of the closest in {close}" if close else ""
    return f"{OURS} is closest to the float model in {best} of {settings}{also}."


def _standings(block: Block, columns: Sequence[Column]) -> str:
    """The figures of one block as a sentence; "" where fewer than two recipes have any."""
    found = [words for column in columns if (words := _standing(block, column))]
    return f"{'; '.join(found)}." if found else ""


def _standing(block: Block, column: Column) -> str:
    """One figure of one block in words; "" where fewer than two recipes have it."""
    best = block.best(column)
    if best is None:
        return ""
    stats, order = block.stats(column), -1 if column.better == "higher" else 1
    ranked = sorted((i for i, stat in enumerate(stats) if stat), key=lambda i: order * stats[i].mean)  # type: ignore[union-attr]
    unit = f" {column.unit}" if column.unit else ""

    def figure(index: int) -> str:
        return f"{block.lines[index].name} {stat_text(stats[index], column.digits)}{unit}"

    words = f"{column.title}: best is {figure(best)}, then {figure(ranked[1])}"
    names = [line.name for line in block.lines]
    if OURS in names and (mine := names.index(OURS)) not in ranked[:2] and stats[mine]:
        words += f", {figure(mine)} is number {ranked.index(mine) + 1} of {len(ranked)}"
    if OURS in names and best != names.index(OURS):
        inside = block.standings(column)[names.index(OURS)] == "within"
        words += f" ({OURS} is {'within' if inside else 'not within'} the spread of the best)"
    return words


def _largest(block: Block, what: str) -> str:
    """The change that moves the Frechet distance most."""
    whole = block.lines[0].stat(FD)
    changed = [(line, stat) for line in block.lines if line.first.kind != "recipe" and (stat := line.stat(FD))]
    if whole is None or not changed:
        return f"No {what} were measured."
    moves = [change for line, _ in changed if (change := line.change_from(block.lines[0], FD))]
    line, stat = max(changed, key=lambda pair: _size(pair[0].change_from(block.lines[0], FD)))
    name, before, after = line.first.variant.rpartition(", ")[2], *(stat_text(s, FD.digits) for s in (whole, stat))
    worse, better = (sum(change.clear and sign * change.mean > 0 for change in moves) for sign in (1, -1))
    return (
        f"Of {len(changed)}, {worse} clearly raise the Fréchet distance to the float model, {better} clearly lower it; "
        f"the one that moves it most is “{name}”: {before} becomes {after}."
    )


def _size(change: Change | None) -> float:
    return 0.0 if change is None else abs(change.mean)
