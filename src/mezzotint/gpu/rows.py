"""A traced network, told anew in rows: one walk over the graph, with what every value means beside what it is.

    form       meaning (its shape in the traced graph)    the node that holds it
    plain      any shape                                  the same shape
    picture    [B, C, H, W]                               rows [B, H W, C]
    last       [B, H, W, C]                               rows [B, H W, C]
    channels   [B, C, N]                                  rows [B, N, C]

Permuting and reshaping between these changes the form and nothing else. What has no form of its own here (an average
pooling, say) gets the tensor in the shape it had, as a view, and the graph goes on from its result.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mezzotint.gpu import tracing, vocabulary
from mezzotint.gpu.tracing import shape_of
from mezzotint.gpu.vocabulary import Node
from mezzotint.layers.int_base import IntLayer, IntWeightedLayer
from mezzotint.layers.integer import IntConv2d

_ATEN = torch.ops.aten
_RESHAPE, _PERMUTE = _ATEN.reshape.default, _ATEN.permute.default
_NO_EDGES = [0, 0, 0, 0]


@dataclass(frozen=True)
class Value:
    """A node of the new graph, the form it has, and H, W of a picture."""

    node: Any
    form: str = "plain"
    picture: tuple[int, ...] = ()


def to_rows(traced: fx.GraphModule, layers: Mapping[str, IntLayer]) -> fx.Graph:
    """The graph of `traced` in the vocabulary; parameters stay `get_attr` nodes by the names they have in `traced`."""
    writer = _Writer(layers)
    for node in traced.graph.nodes:
        writer.write(node)
    writer.graph.eliminate_dead_code()
    writer.graph.lint()
    return writer.graph


class _Writer:
    def __init__(self, layers: Mapping[str, IntLayer]) -> None:
        self.graph = fx.Graph()
        self.layers = layers
        self.values: dict[Node, Value] = {}

    def write(self, node: Node) -> None:
        """Adds what `node` becomes."""
        if node.op == "call_function":
            handler = _HANDLERS.get(node.target, _Writer._any)
            self.values[node] = handler(self, node)
        elif node.op == "output":
            self.graph.output(fx.map_arg(node.args[0], self.plain))
        else:
            copied = self.graph.node_copy(node, lambda _: None)
            value = node.meta.get("val")
            copied.meta["rows"] = None if value is None else tuple(value.shape)
            self.values[node] = Value(copied)

    def call(self, target: Any, args: tuple[Any, ...], shape: Sequence[int]) -> Node:
        """A new node whose result has this shape."""
        node = self.graph.call_function(target, args)
        node.meta["rows"] = tuple(shape)
        return node

    def reshape(self, node: Node, shape: Sequence[int]) -> Node:
        """`node` in another shape; a reshape of a reshape is one, and none if the shape is what it was."""
        source = node.args[0] if node.target is _RESHAPE else node
        return source if source.meta["rows"] == tuple(shape) else self.call(_RESHAPE, (source, list(shape)), shape)

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
        return self.call(_PERMUTE, (rows, order), shape)

    def as_picture(self, node: Node) -> Node:
        """Rows of the traced [B, C, H, W] `node`."""
        value = self.values[node]
        if value.form == "picture":
            return value.node
        b, c, h, w = shape_of(node)
        last = self.call(_PERMUTE, (self.plain(node), [0, 2, 3, 1]), (b, h, w, c))
        return self.reshape(last, (b, h * w, c))

    def codes(self, x: Node, layer: IntWeightedLayer) -> Node:
        """Codes of rows `x` for `layer`, each of its groups of input channels on its own grid."""
        largest = layer.spec.input.quant_max  # type: ignore[union-attr]
        grids = [(scale, zero_point, largest) for _, scale, zero_point, _ in layer.group_constants()]
        if len(grids) == 1:
            return self.call(vocabulary.CODES, (x, *grids[0]), x.meta["rows"])
        parts = [
            self.call(vocabulary.CODES, (part, *grid), part.meta["rows"])
            for part, grid in zip(self._parts(x, layer.groups), grids, strict=True)
        ]
        return self.call(_ATEN.cat.default, (parts, -1), x.meta["rows"])

    def _parts(self, x: Node, sizes: Sequence[int]) -> list[Node]:
        """Runs of the channels of `x`: what was concatenated, if that is where they end."""
        if x.target is _ATEN.cat.default and [part.meta["rows"][-1] for part in x.args[0]] == list(sizes):
            return list(x.args[0])
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        shape = x.meta["rows"][:-1]
        return [
            self.call(_ATEN.slice.Tensor, (x, -1, start, start + size), (*shape, size))
            for start, size in zip(starts, sizes, strict=True)
        ]

    def _conv2d(self, node: Node) -> Value:
        x, name, _ = node.args
        layer, rows, edges = self.layers[name], self.as_picture(x), _NO_EDGES
        picture = list(shape_of(x)[2:])
        if rows.target is vocabulary.PAD:
            rows, picture, edges = rows.args
        assert isinstance(layer, IntConv2d)
        b, o, h, w = shape_of(node)
        args = (self.codes(rows, layer), None, [name], picture, edges)
        return Value(self.call(vocabulary.PRODUCT, args, (b, h * w, o)), "picture", (h, w))

    def _linear(self, node: Node) -> Value:
        x, name, _ = node.args
        layer = self.layers[name]
        assert isinstance(layer, IntWeightedLayer)
        args: tuple[Any, ...] = (self.codes(self.plain(x), layer), None, [name], [], _NO_EDGES)
        return Value(self.call(vocabulary.PRODUCT, args, shape_of(node)))

    def _attention(self, node: Node) -> Value:
        q, k, v, *rest = node.args
        return Value(self.call(vocabulary.ATTENTION, (*map(self.plain, (q, k, v)), *rest), shape_of(node)))

    def _group_norm(self, node: Node) -> Value:
        x, groups, weight, bias, eps = (*node.args, None, None, 1e-5)[:5] if len(node.args) < 5 else node.args[:5]
        shape, value = shape_of(node), self.values[x]
        if len(shape) == 4:
            rows, result = self.as_picture(x), ("picture", tuple(shape[2:]))
        elif value.form == "channels":
            rows, result = value.node, ("channels", ())
        else:
            return self._any(node)
        weights = [None if given is None else self.values[given].node for given in (weight, bias)]
        args = (rows, None, None, *weights, None, None, groups, eps, False)
        return Value(self.call(vocabulary.GROUP_NORM, args, rows.meta["rows"]), *result)

    def _layer_norm(self, node: Node) -> Value:
        x, shape, weight, bias, eps = (*node.args, *(None, None, 1e-5)[len(node.args) - 2 :])[:5]
        if len(shape) != 1:
            return self._any(node)
        weights = [None if given is None else self.values[given].node for given in (weight, bias)]
        return Value(self.call(vocabulary.LAYER_NORM, (self.plain(x), *weights, eps), shape_of(node)))

    def _cat(self, node: Node) -> Value:
        parts, axis = node.args[0], node.args[1] if len(node.args) > 1 else 0
        values = [self.values[part] for part in parts]
        shape = shape_of(node)
        if axis != 1 or any(value.form != "picture" for value in values):
            return self._any(node)
        args = ([value.node for value in values], -1)
        rows = self.call(_ATEN.cat.default, args, (shape[0], shape[2] * shape[3], shape[1]))
        return Value(rows, "picture", tuple(shape[2:]))

    def _upsample(self, node: Node) -> Value:
        x, (h, w) = node.args[0], shape_of(node)[2:]
        before = shape_of(x)
        factor = h // before[2]
        if (before[2] * factor, before[3] * factor) != (h, w):
            return self._any(node)
        args = (self.as_picture(x), list(before[2:]), factor)
        return Value(self.call(vocabulary.UPSAMPLE, args, (before[0], h * w, before[1])), "picture", (h, w))

    def _pad(self, node: Node) -> Value:
        x, widths, shape = node.args[0], node.args[1], shape_of(node)
        rest = [*node.args[2:], *node.kwargs.values()]
        zeros = all(value in ("constant", 0, 0.0, None) for value in rest)
        if len(shape) != 4 or not zeros or len(widths) > 4 or min(widths) < 0:
            return self._any(node)
        left, right, above, below = (*widths, 0, 0)[:4]
        args = (self.as_picture(x), list(shape_of(x)[2:]), [above, below, left, right])
        rows = self.call(vocabulary.PAD, args, (shape[0], shape[2] * shape[3], shape[1]))
        return Value(rows, "picture", tuple(shape[2:]))

    def _permute(self, node: Node) -> Value:
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
        return Value(self.call(_PERMUTE, (self.plain(x), order), shape_of(node)))

    def _reshape(self, node: Node) -> Value:
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

    def _chunk(self, node: Node) -> Value:
        """Nothing yet: `_getitem` takes the runs of channels."""
        x, axis = node.args[0], (*node.args, 0)[2]
        shape = shape_of(x)
        flat = self.values[x].form == "plain" and all(size == 1 for size in shape[axis % len(shape) + 1 :])
        return Value(x, "chunk") if flat and shape[axis] % node.args[1] == 0 else self._any(node)

    def _getitem(self, node: Node) -> Value:
        chunk, index = node.args
        if self.values[chunk].form != "chunk":
            return self._any(node)
        source, count = self.values[self.values[chunk].node].node, chunk.args[1]
        shape, ones = shape_of(node), len(source.meta["rows"]) - 1 - chunk.args[2] % len(source.meta["rows"])
        width = source.meta["rows"][chunk.args[2]] // count
        rows = self.reshape(source, source.meta["rows"][: len(source.meta["rows"]) - ones])
        part = self.call(
            _ATEN.slice.Tensor, (rows, -1, index * width, (index + 1) * width), (*rows.meta["rows"][:-1], width)
        )
        return Value(self.reshape(part, shape))

    def _identity(self, node: Node) -> Value:
        return self.values[node.args[0]]

    def _dropout(self, node: Node) -> Value:
        return self._any(node) if node.args[2] and node.args[1] else self._identity(node)

    def _to(self, node: Node) -> Value:
        same = node.meta["val"].dtype == node.args[0].meta["val"].dtype
        return self._identity(node) if same else self._unary(node)

    def _scaled(self, node: Node) -> Value:
        """Products and quotients; those by 1 are nothing."""
        number = node.args[1]
        return self._identity(node) if isinstance(number, int | float) and number == 1 else self._elementwise(node)

    def _unary(self, node: Node) -> Value:
        value = self.values[node.args[0]]
        copied = self.graph.call_function(node.target, (value.node, *node.args[1:]), node.kwargs)
        copied.meta["rows"] = value.node.meta["rows"]
        return Value(copied, value.form, value.picture)

    def _elementwise(self, node: Node) -> Value:
        a, b = node.args
        if not isinstance(b, fx.Node):
            return self._unary(node)
        if not isinstance(a, fx.Node) or node.kwargs:
            return self._any(node)
        first, second = self.values[a], self.values[b]
        shapes = tuple(shape_of(a)), tuple(shape_of(b))
        if shapes[0] == shapes[1] and "picture" in (first.form, second.form):
            first = Value(self.as_picture(a), "picture", shapes[0][2:])
            second = Value(self.as_picture(b), "picture", shapes[0][2:])
        elif first.form == "picture" and shapes[1] == (*shapes[0][:2], 1, 1):  # [B, C, 1, 1]
            second = Value(self.reshape(second.node, (shapes[0][0], 1, shapes[0][1])))
        elif first.form != second.form or shapes[0] != shapes[1]:
            return self._any(node)
        rows = first.node.meta["rows"]
        return Value(self.call(node.target, (first.node, second.node), rows), first.form, first.picture)

    def _any(self, node: Node) -> Value:
        copied = self.graph.node_copy(node, self.plain)
        value = node.meta.get("val")
        copied.meta["rows"] = tuple(value.shape) if isinstance(value, torch.Tensor) else None
        return Value(copied)


def _order(node: Node, dims: int) -> list[int]:
    """The order of axes that a permute or transpose makes."""
    if node.target is _PERMUTE:
        return [axis % dims for axis in node.args[1]]
    order, (a, b) = list(range(dims)), (axis % dims for axis in node.args[1:3])
    order[a], order[b] = order[b], order[a]
    return order


_HANDLERS: dict[Any, Callable[[_Writer, Node], Value]] = {
    tracing.CONV2D: _Writer._conv2d,
    tracing.LINEAR: _Writer._linear,
    tracing.ATTENTION: _Writer._attention,
    _ATEN.group_norm.default: _Writer._group_norm,
    _ATEN.layer_norm.default: _Writer._layer_norm,
    _ATEN.cat.default: _Writer._cat,
    _ATEN.chunk.default: _Writer._chunk,
    operator.getitem: _Writer._getitem,
    _ATEN.upsample_nearest2d.vec: _Writer._upsample,
    _ATEN.upsample_nearest2d.default: _Writer._upsample,
    _ATEN.pad.default: _Writer._pad,
    _ATEN.constant_pad_nd.default: _Writer._pad,
    _PERMUTE: _Writer._permute,
    _ATEN.transpose.int: _Writer._permute,
    _RESHAPE: _Writer._reshape,
    _ATEN.view.default: _Writer._reshape,
    _ATEN.flatten.using_ints: _Writer._reshape,
    _ATEN.unflatten.int: _Writer._reshape,
    _ATEN.unsqueeze.default: _Writer._reshape,
    _ATEN.squeeze.dim: _Writer._reshape,
    _ATEN.contiguous.default: _Writer._identity,
    _ATEN.clone.default: _Writer._identity,
    _ATEN.alias.default: _Writer._identity,
    _ATEN.detach.default: _Writer._identity,
    _ATEN.dropout.default: _Writer._dropout,
    _ATEN.to.dtype: _Writer._to,
    _ATEN.div.Tensor: _Writer._scaled,
    _ATEN.mul.Tensor: _Writer._scaled,
    _ATEN.add.Tensor: _Writer._elementwise,
    _ATEN.silu.default: _Writer._unary,
    _ATEN.gelu.default: _Writer._unary,
}
