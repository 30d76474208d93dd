"""The table in words: who is closest to the float model, where ours stands, which changes matter most.

What is judged is closeness to the float model: the Frechet distance to its images (the sets), the mean PSNR against
them (the single images), and every distribution score that was taken against them. "Within the spread" is that of
`table`.

The headline counts bit settings. One that was judged on several sets of images (drawn by simulated and by integer
networks, with other steps, more of them) counts once, as what it is on every set. It goes by the Frechet distance, and
names who is closest by PSNR where the closest by the one is neither closest nor within the spread of it by the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mezzotint.benchmark.changes import Change, change
from mezzotint.benchmark.columns import FD, PSNR, Column, columns_of
from mezzotint.benchmark.fields import stat_text
from mezzotint.benchmark.plan import OURS
from mezzotint.benchmark.row import Row
from mezzotint.benchmark.scoring import TO_FLOAT
from mezzotint.benchmark.table import Block, effect_blocks, recipe_blocks

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
    settings = _settings(blocks)
    if counted := _counted_once(settings):
        paragraphs.append(("How it is counted", counted))
    changes = any(row.kind != "recipe" for row in rows)
    return TableVerdict(_headline(settings, len(rows), changes), paragraphs)


def _about(block: Block) -> str:
    return ", ".join(filter(None, (block.model, block.bits.upper(), block.setting)))


@dataclass(frozen=True)
class _Setting:
    """One bit setting of one model, with every set of images on which recipes were compared; `name` says which."""

    name: str
    blocks: tuple[Block, ...]

    def standing(self, column: Column) -> str:
        """Of our recipe: "best" or "within" the spread of the best on every set of images, else ""."""
        found = {dict(zip(_names(block), block.standings(column), strict=True)).get(OURS, "") for block in self.blocks}
        return "best" if found == {"best"} else "within" if "" not in found else ""

    def closest(self, column: Column) -> list[str]:
        """The recipes that are best on some set of images."""
        best = ((block, block.best(column)) for block in self.blocks)
        return list(dict.fromkeys(block.lines[index].name for block, index in best if index is not None))

    def dissenting(self) -> list[str]:
        """The recipes closest by PSNR on sets of images where it is another than by the Frechet distance."""
        found = []
        for block in self.blocks:
            first, single = block.best(FD), block.best(PSNR)
            if first is not None and single is not None and not block.standings(PSNR)[first]:
                found.append(block.lines[single].name)
        return list(dict.fromkeys(found))


def _settings(blocks: Sequence[Block]) -> list[_Setting]:
    """The bit settings in which recipes can be compared: those with ours alone, where there are such."""
    several = [block for block in blocks if block.best(FD) is not None]
    several = [block for block in several if OURS in _names(block)] or several
    models = len({block.model for block in several}) > 1
    found: dict[tuple[str, str], list[Block]] = {}
    for block in several:
        found.setdefault((block.model, block.bits), []).append(block)
    return [_Setting(f"{f'{model} ' if models else ''}{bits.upper()}", tuple(b)) for (model, bits), b in found.items()]


def _names(block: Block) -> list[str]:
    return [line.name for line in block.lines]


def _headline(settings: Sequence[_Setting], rows: int, changes: bool) -> str:
    """In how many bit settings ours is closest; how many cells there are where nothing can be said."""
    if not settings:
        what = (
            f": single changes of {OURS}, and no recipes to compare."
            if changes
            else ", and nothing to compare them with."
        )
        return f"{rows} cell{'s' if rows != 1 else ''}{what}"
    dissent = [f"{' and '.join(names)} at {s.name}" for s in settings if (names := s.dissenting())]
    by, but = (" by Fréchet distance", f"; by mean PSNR it is {', '.join(dissent)}") if dissent else ("", "")
    if all(OURS not in _names(block) for setting in settings for block in setting.blocks):
        closest = ", ".join(f"{' and '.join(setting.closest(FD))} at {setting.name}" for setting in settings)
        return f"Closest to the float model{by}: {closest}{but}."
    standings = [setting.standing(FD) for setting in settings]
    best, close = standings.count("best"), standings.count("within")
    counted = f"{best or 'none'} of {len(settings)} bit setting{'s' if len(settings) != 1 else ''}"
    also = f", {'and' if best else 'but'} within the spread of the closest in {close}" if close else ""
    return f"{OURS} is closest to the float model{by} in {counted}{also}{but}."


def _counted_once(settings: Sequence[_Setting]) -> str:
    """Which bit settings were judged on several sets of images; "" if none was."""
    several = [
        f"{setting.name} on {len(setting.blocks)} ({'; '.join(block.setting for block in setting.blocks)})"
        for setting in settings
        if len(setting.blocks) > 1
    ]
    return (
        f"A bit setting judged on several sets of images counts once, as what it is on every one of them: "
        f"{', '.join(several)}."
        if several
        else ""
    )


def _standings(block: Block, columns: Sequence[Column]) -> str:
    """The figures of one block as a sentence; "" where fewer than two recipes have any."""
    found = [words for column in columns if (words := _standing(block, column))]
    first, single = block.best(FD), block.best(PSNR)
    if first is not None and single is not None and not block.standings(PSNR)[first]:
        sets, images = block.lines[first].name, block.lines[single].name
        found.append(f"the two disagree: as sets the images of {sets} are closer, one by one those of {images}")
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
    moves = [moved for line, _ in changed if (moved := change(block, line, FD))]
    line, stat = max(changed, key=lambda pair: _size(change(block, pair[0], FD)))
    name, before, after = line.first.variant.rpartition(", ")[2], *(stat_text(s, FD.digits) for s in (whole, stat))
    worse, better = (sum(move.clear and sign * move.mean > 0 for move in moves) for sign in (1, -1))
    if len(changed) == 1:
        known = "clearly" if worse or better else "which luck explains"
        becomes = f"{before} becomes {after} (Fréchet distance to the float model), {known}"
        return f"The only one measured is “{name}”: {becomes}."
    return (
        f"Of {len(changed)}, {worse} clearly raise the Fréchet distance to the float model, {better} clearly lower it; "
        f"the one that moves it most is “{name}”: {before} becomes {after}."
    )


def _size(moved: Change | None) -> float:
    return 0.0 if moved is None else abs(moved.mean)
