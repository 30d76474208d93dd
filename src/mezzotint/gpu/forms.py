"""What the values of a traced network mean beside what they are: rows that stand for pictures, and back.

    form       meaning (its shape in the traced graph)    the node that holds it
    plain      any shape                                  the same shape
    picture    [B, C, H, W]                               rows [B, H W, C]
    last       [B, H, W, C]                               rows [B, H W, C]
    channels   [B, C, N]                                  rows [B, N, C]

Permuting and reshaping between these changes the form and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mezzotint.gpu.tracing import shape_of
from mezzotint.gpu.vocabulary import Node

RESHAPE, PERMUTE = torch.ops.aten.reshape.default, torch.ops.aten.permute.default


@dataclass(frozen=True)
class Value:
    """A node of the new graph, the form it has, and H, W of a picture."""

    node: Any
    form: str = "plain"
    picture: tuple[int, ...] = ()


class Forms:
    """A new graph, and which of its nodes holds each value of the traced one.

    Attributes:
        values: by nodes of the traced graph.
    """

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.values: dict[Node, Value] = {}

    def call(self, target: Any, args: tuple[Any, ...], shape: Sequence[int]) -> Node:
        """A new node whose result has this shape."""
        node = self.graph.call_function(target, args)
        node.meta["rows"] = tuple(shape)
        return node

    def reshape(self, node: Node, shape: Sequence[int]) -> Node:
        """`node` in another shape; a reshape of a reshape is one, and none if the shape is what it was."""
        source = node.args[0] if node.target is RESHAPE else node
        return source if source.meta["rows"] == tuple(shape) else self.call(RESHAPE, (source, list(shape)), shape)

    def plain(self, node: Node) -> Node:
        """The value of traced `node` in the shape it had there."""
        value = self.values[node]
        if value.form == "plain":
            return value.node
        shape, rows = list(shape_of(node)), value.node
        if value.form == "last":
            return self.reshape(rows, shape)
        order = [0, 3, 1, 2] if value.form == "picture" else [0, 2, 1]
        if value.form == "picture":
            rows = self.reshape(rows, [shape[0], *shape[2:], shape[1]])
        return self.call(PERMUTE, (rows, order), shape)

    def as_picture(self, node: Node) -> Node:
        """Rows of the traced [B, C, H, W] `node`."""
        value = self.values[node]
        if value.form == "picture":
            return value.node
        b, c, h, w = shape_of(node)
        last = self.call(PERMUTE, (self.plain(node), [0, 2, 3, 1]), (b, h, w, c))
        return self.reshape(last, (b, h * w, c))

    def permuted(self, node: Node) -> Value:
        """The result of a permute or transpose in the traced graph."""
        x, dims = node.args[0], list(shape_of(node.args[0]))
        order = _order(node, len(dims))
        value = self.values[x]
        if order == list(range(len(dims))):
            return value
        if value.form == "picture" and order == [0, 2, 3, 1]:
            return Value(value.node, "last", value.picture)
        if value.form == "last" and order == [0, 3, 1, 2]:
            return Value(value.node, "picture", value.picture)
        if value.form == "channels" and order == [0, 2, 1]:
            return Value(value.node)
        if value.form == "plain" and order == [0, 2, 1]:
            return Value(value.node, "channels")
        if value.form == "plain" and order == [0, 3, 1, 2]:
            b, h, w, c = dims
            return Value(self.reshape(value.node, (b, h * w, c)), "picture", (h, w))
        return Value(self.call(PERMUTE, (self.plain(x), order), shape_of(node)))

    def reshaped(self, node: Node) -> Value:
        """The result of a traced node that reshapes and moves nothing."""
        x, shape = node.args[0], tuple(shape_of(node))
        value, before = self.values[x], tuple(shape_of(x))
        if shape == before:
            return value
        if value.form == "picture" and shape == (*before[:2], before[2] * before[3]):
            return Value(value.node, "channels", value.picture)
        if value.form == "channels" and len(shape) == 4 and shape[:2] == before[:2]:
            return Value(value.node, "picture", shape[2:])
        if value.form == "last" and shape == (before[0], before[1] * before[2], before[3]):
            return Value(value.node)
        return Value(self.reshape(self.plain(x), shape))


def _order(node: Node, dims: int) -> list[int]:
    """The order of axes that a permute or transpose makes."""
    if node.target is PERMUTE:
        return [axis % dims for axis in node.args[1]]
    order, (a, b) = list(range(dims)), (axis % dims for axis in node.args[1:3])
    order[a], order[b] = order[b], order[a]
    return order
