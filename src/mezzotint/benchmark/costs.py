"""What the recipes of a model cost: bytes of network and pipeline, bit operations, against float32 and float16.

Only what follows from a cell's plan of layers. Time and memory at work are a machine's, and of an artifact: a cell
simulates. `mezzotint bench` measures those, eager and compiled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mezzotint.benchmark.fields import Field, TextTable, number_text
from mezzotint.benchmark.table import Block
from mezzotint.evaluation.cost import FixedCost, Sizes

MOST_NAMES = 2  # of recipes in a field


def cost_tables(model: str, blocks: Sequence[Block]) -> list[TextTable]:
    """Bytes and bit operations, a row for all recipes of which they are the same; none if no row has them."""
    same: dict[tuple[str, FixedCost, int], list[str]] = {}
    for block in blocks:
        for line in block.lines:
            if line.first.cost is not None and line.first.calls is not None:
                names = same.setdefault((block.bits, line.first.cost, line.first.calls), [])
                names += [line.name] if line.name not in names else []
    if not same:
        return []
    parts = any(cost.pipeline.fp32 != cost.network.fp32 for _, cost, _ in same)
    calls = len({calls for *_, calls in same}) > 1
    words = ["bits", "recipes", *(["calls"] if calls else [])]
    header = [name for what in ("network", *(["pipeline"] if parts else [])) for name in _columns(what, f"{what}, MB")]
    header += ["BOPs a call, G", *_columns("BOPs", "BOPs an image, T")]
    floats: dict[tuple[str, int], list[str]] = {}
    sections: dict[str, list[list[str]]] = {}
    for (bits, cost, count), names in same.items():
        told = [str(count)] if calls else []
        for name, number in (("float32", 32), ("float16, bfloat16", 16)):
            floats.setdefault(
                (name, count), ["float", name, *told, *_cost_fields(_as_float(cost, number), count, parts)]
            )
        row = [
            bits.upper(),
            _who(names, [others for (setting, *_), others in same.items() if setting == bits]),
            *told,
            *_cost_fields(cost, count, parts),
        ]
        sections.setdefault(bits, []).append(row)
    ordered = sorted(floats.items(), key=lambda item: item[0][1])
    grouped = [[row for _, row in ordered], *sections.values()]
    fields = [[[Field(text) for text in row] for row in section] for section in grouped]
    heavy = [header.index(name) for name in ("network, MB", "BOPs an image, T", "network vs fp32")]
    heavy += [index for index in range(len(header)) if index not in heavy]
    rank = [len(words) + index for index in heavy]
    caption, *notes = _cost_notes(same, parts)
    return [TextTable(f"{model}: cost", caption, [*words, *header], len(words), fields, notes, rank)]


def _who(names: list[str], groups: list[list[str]]) -> str:
    """The recipes `names` in words, of those that cost alike in `groups`."""
    if len(groups) == 1 and len(names) > 1:
        return "every recipe"
    most = max(len(others) for others in groups)
    largest = len(names) == most and sum(len(others) == most for others in groups) == 1
    return "every other recipe" if largest and most > MOST_NAMES else ", ".join(names)


def _columns(what: str, figure: str) -> list[str]:
    """The titles of a figure and of its two ratios, each unlike all others of the table."""
    return [figure, f"{what} vs fp32", f"{what} vs fp16"]


def _as_float(cost: FixedCost, bits: int) -> FixedCost:
    """What the float network costs with values of so many bits."""

    def sizes(found: Sizes) -> Sizes:
        return found.model_copy(update={"quantized": found.fp32 if bits == 32 else found.fp16})

    changed = {"network": sizes(cost.network), "pipeline": sizes(cost.pipeline)}
    return cost.model_copy(update={**changed, "quantized_bops": cost.float_bops if bits == 32 else cost.half_bops})


def _cost_fields(cost: FixedCost, calls: int, parts: bool) -> list[str]:
    """A row of the table of costs, behind its words."""

    def times(ratio: float) -> str:
        return f"{number_text(ratio, 2)}×"

    fields: list[str] = []
    for sizes in (cost.network, cost.pipeline) if parts else (cost.network,):
        fields += [number_text(sizes.quantized / 1e6, 2), times(sizes.ratio), times(sizes.half_ratio)]
    bops = cost.quantized_bops
    fields += [_three_digits(bops / 1e9), _three_digits(calls * bops / 1e12)]
    return [*fields, times(cost.float_bops / bops), times(cost.half_bops / bops)]


def _three_digits(value: float) -> str:
    """0.0234, 3.75, 938: three digits that count; whole numbers keep all of theirs."""
    return number_text(value, max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0)


def _cost_notes(same: Mapping[tuple[str, FixedCost, int], Any], parts: bool) -> list[str]:
    cost, counts = next(iter(same))[1], sorted({calls for *_, calls in same})
    whole = "; the pipeline: the denoiser with image decoder and text encoder, where it has them" if parts else ""
    return [
        f"{cost.parameters / 1e6:,.1f} million parameters, {cost.macs / 1e9:,.2f} G multiply-accumulates a call; "
        f"an image takes {', '.join(map(str, counts))} calls, both of a guided step counted",
        "bytes are those of the stored tensors, codes packed; a file has a header besides, which names them "
        f"(mezzotint inspect says both){whole}",
        "BOPs: multiply-accumulates × weight bits × activation bits",
        "latency and peak memory depend on the machine; mezzotint bench measures them, of an artifact",
    ]
