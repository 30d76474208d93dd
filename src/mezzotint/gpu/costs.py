"""What one call must do at least: operations and bytes of every step of a graph of rows, and the time they allow.

    operations   2 a multiply-add: int8 for products of codes (`int8 attention` too), `attention` for those of floats
    bytes        every input of a step read once, its output written once; weights as they are stored
    floor        of a step max(operations / rate, bytes / bandwidth); of a call the sum over its steps, which follow one
                 another

A floor of what was built, not of what could be: fusing more lowers it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import fx

from mezzotint.gpu import vocabulary
from mezzotint.gpu.vocabulary import Node
from mezzotint.layers.int_base import IntLayer, IntWeightedLayer

_PRODUCTS = {vocabulary.PRODUCT: "product", vocabulary.PRODUCT_CODES: "product", vocabulary.GEGLU_CODES: "product"}
_ATTENTION = {
    vocabulary.ATTENTION: "attention",
    vocabulary.ATTENTION_CODES: "attention",
    vocabulary.INT_ATTENTION: "int8 attention",
    vocabulary.INT_ATTENTION_CODES: "int8 attention",
}
_CODES = (
    vocabulary.CODES, vocabulary.PRODUCT_CODES, vocabulary.GEGLU_CODES, vocabulary.GROUP_NORM_CODES,
    vocabulary.LAYER_NORM_CODES, vocabulary.ATTENTION_CODES, vocabulary.ENTRY_CODES, vocabulary.UPSAMPLED_CODES,
    vocabulary.INT_ATTENTION_CODES,
)  # fmt: skip
_VIEWS = (
    torch.ops.aten.reshape.default, torch.ops.aten.permute.default, torch.ops.aten.slice.Tensor, operator.getitem,
)  # fmt: skip


class Rates(NamedTuple):
    """What a device does: int8 and 16-bit float operations, bytes, each a second."""

    integer: float
    floating: float
    nbytes: float


@dataclass(frozen=True)
class StepCost:
    """One step: its kind (convolution, linear, attention, int8 attention, norm, other), layers, operations, bytes."""

    kind: str
    name: str
    operations: float
    nbytes: float

    def seconds(self, rates: Rates) -> float:
        """Lower bound on the time of this step."""
        rate = rates.floating if self.kind == "attention" else rates.integer
        return max(self.operations / rate, self.nbytes / rates.nbytes)


def step_costs(graph: fx.Graph, layers: Mapping[str, IntLayer], dtype: torch.dtype) -> list[StepCost]:
    """Every step of `graph` that touches memory; activations between products are of `dtype`."""
    sizes: dict[Node, int] = {}
    costs = []
    for node in graph.nodes:
        sizes[node] = _bytes_of(node, sizes, dtype.itemsize)
        if node.op != "call_function" or node.target in _VIEWS or not node.meta.get("rows"):
            continue
        moved = sizes[node] + sum(sizes[source] for source in node.all_input_nodes)
        if node.target in _PRODUCTS:
            kind, operations, weights = _product(node, layers)
            costs.append(StepCost(kind, "+".join(node.args[2]), operations, moved + weights))
        elif node.target in _ATTENTION:
            q, k = node.args[0].meta["rows"], node.args[1].meta["rows"]
            costs.append(StepCost(_ATTENTION[node.target], str(node.args[3]), 4.0 * math.prod(q) * k[1], moved))
        else:
            name = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
            kind = "norm" if "norm" in name or node.target is vocabulary.ENTRY_CODES else "other"
            costs.append(StepCost(kind, name, 0.0, moved))
    return costs


def totals(costs: Iterable[StepCost], rates: Rates) -> dict[str, dict[str, float]]:
    """Sums by kind: operations (T), bytes (G), floor (ms)."""
    table: dict[str, dict[str, float]] = {}
    for cost in costs:
        row = table.setdefault(cost.kind, {"steps": 0, "tera_operations": 0.0, "gigabytes": 0.0, "floor_ms": 0.0})
        row["steps"] += 1
        row["tera_operations"] += cost.operations / 1e12
        row["gigabytes"] += cost.nbytes / 1e9
        row["floor_ms"] += cost.seconds(rates) * 1e3
    return table


def _product(node: Node, layers: Mapping[str, IntLayer]) -> tuple[str, float, int]:
    """Kind, operations and bytes of the weights."""
    weights, terms, window = 0, 0, 1
    for name in node.args[2]:
        layer = layers[name]
        assert isinstance(layer, IntWeightedLayer)
        count = math.prod(layer.weight_shape)
        weights += count * (4 if layer.weight_grid.bits == 4 else 8) // 8
        terms += count
        window = math.prod(layer.weight_shape[2:])
    rows = math.prod(node.meta["rows"][:-1])
    return "convolution" if window > 1 else "linear", 2.0 * rows * terms, weights


def _bytes_of(node: Node, sizes: Mapping[Node, int], itemsize: int) -> int:
    rows = node.meta.get("rows")
    if not rows:
        return 0
    if node.target in _CODES:
        return math.prod(rows)
    sources = node.all_input_nodes
    if (
        node.target in (*_VIEWS, vocabulary.UPSAMPLE, torch.ops.aten.cat.default) and sources
    ):  # as wide as what they read
        width = sizes[sources[0]] // max(math.prod(sources[0].meta.get("rows") or (1,)), 1)
        return math.prod(rows) * max(width, 1)
    return math.prod(rows) * itemsize
