"""A traced network, told anew in rows: one walk over the graph, with what every value means (`gpu.forms`).

What a step becomes depends on the form of what it reads. What has no form of its own here (an average pooling, say)
gets the tensor in the shape it had, as a view, and the graph goes on from its result.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from mezzotint.gpu import tracing, vocabulary
from mezzotint.gpu.forms import PERMUTE, RESHAPE, Forms, Value
from mezzotint.gpu.tracing import shape_of
from mezzotint.gpu.vocabulary import Node
from mezzotint.layers.int_base import IntLayer, IntWeightedLayer
from mezzotint.layers.integer import IntConv2d

_ATEN = torch.ops.aten
_NO_EDGES = [0, 0, 0, 0]


def to_rows(traced: fx.GraphModule, layers: Mapping[str, IntLayer]) -> fx.Graph:
    """The graph of `traced` in the vocabulary; parameters stay `get_attr` nodes by the names they have in `traced`."""
    writer = _Writer(layers)
    for node in traced.graph.nodes:
        writer.write(node)
    writer.graph.eliminate_dead_code()
    writer.graph.lint()
    return writer.graph


class _Writer(Forms):
    def __init__(self, layers: Mapping[str, IntLayer]) -> None:
        super().__init__()
        self.layers = layers

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

    def _float_conv2d(self, node: Node) -> Value:
        """A convolution in floats, channels-last: rows are views of what it reads and of what it gives."""
        x, *others = node.args
        (b, c, h, w), shape = shape_of(x), shape_of(node)
        last = self.reshape(self.as_picture(x), (b, h, w, c))
        picture = self.call(PERMUTE, (last, [0, 3, 1, 2]), (b, c, h, w))
        result = self.call(node.target, (picture, *fx.map_arg(others, self.plain)), shape)
        last = self.call(PERMUTE, (result, [0, 2, 3, 1]), (b, *shape[2:], shape[1]))
        return Value(self.reshape(last, (b, shape[2] * shape[3], shape[1])), "picture", tuple(shape[2:]))

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


_HANDLERS: dict[Any, Callable[[_Writer, Node], Value]] = {
    tracing.CONV2D: _Writer._conv2d,
    tracing.LINEAR: _Writer._linear,
    tracing.ATTENTION: _Writer._attention,
    _ATEN.conv2d.default: _Writer._float_conv2d,
    _ATEN.group_norm.default: _Writer._group_norm,
    _ATEN.layer_norm.default: _Writer._layer_norm,
    _ATEN.cat.default: _Writer._cat,
    _ATEN.chunk.default: _Writer._chunk,
    operator.getitem: _Writer._getitem,
    _ATEN.upsample_nearest2d.vec: _Writer._upsample,
    _ATEN.upsample_nearest2d.default: _Writer._upsample,
    _ATEN.pad.default: _Writer._pad,
    _ATEN.constant_pad_nd.default: _Writer._pad,
    PERMUTE: _Writer.permuted,
    _ATEN.transpose.int: _Writer.permuted,
    RESHAPE: _Writer.reshaped,
    _ATEN.view.default: _Writer.reshaped,
    _ATEN.flatten.using_ints: _Writer.reshaped,
    _ATEN.unflatten.int: _Writer.reshaped,
    _ATEN.unsqueeze.default: _Writer.reshaped,
    _ATEN.squeeze.dim: _Writer.reshaped,
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
