"""From rows to a module that runs: every step an operator of `kernels.triton`, every layer constants on the device.

Reshapes between rows [B, P, C] and pictures [B, H, W, C] are views. What depends on no input, as the frequencies of the
time embedding do, is computed here once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from mezzotint.errors import ModelError
from mezzotint.gpu import vocabulary
from mezzotint.gpu.constants import Constants
from mezzotint.gpu.int_attention import grids_of
from mezzotint.gpu.vocabulary import Node
from mezzotint.kernels.triton import Operand
from mezzotint.kernels.triton import attention as _attention  # noqa: F401 - defines the operators
from mezzotint.kernels.triton import int_attention as _int_attention  # noqa: F401 - likewise
from mezzotint.kernels.triton import shared_reading as _shared_reading  # noqa: F401 - likewise

_OPS = torch.ops.mezzotint
_ATEN = torch.ops.aten
_RESHAPE = _ATEN.reshape.default


def emit(
    graph: fx.Graph, traced: nn.Module, network: nn.Module, constants: Constants, dtype: torch.dtype
) -> fx.GraphModule:
    """The module of `graph`.

    Args:
        traced: holds the attributes that `graph` names.
        network: the quantized network; norms take their float32 weights from it.
        dtype: of the activations between products.
    """
    emitter = _Emitter(traced, network, constants, dtype)
    for node in graph.nodes:
        emitter.write(node)
    emitter.graph.eliminate_dead_code()
    emitter.graph.lint()
    return fx.GraphModule(emitter.root, emitter.graph)


class _Emitter:
    def __init__(self, traced: nn.Module, network: nn.Module, constants: Constants, dtype: torch.dtype) -> None:
        self.traced, self.network, self.constants, self.dtype = traced, network, constants, dtype
        self.root, self.graph = nn.Module(), fx.Graph()
        self.nodes: dict[Node, Any] = {}
        self._folded: dict[Node, Tensor] = {}  # values that depend on no input
        self._attributes: dict[int, tuple[Tensor, Node]] = {}  # the tensor too: a number of one that is gone is reused

    def write(self, node: Node) -> None:
        handler = _STEPS.get(node.target) if node.op == "call_function" else None
        if handler is not None:
            self.nodes[node] = handler(self, node)
        elif node.op == "call_function" and all(source in self._folded for source in node.all_input_nodes):
            self._folded[node] = node.target(*fx.map_arg(node.args, self._folded.__getitem__), **node.kwargs)
            self.nodes[node] = self.constant(self._folded[node])
        elif node.op == "get_attr":
            self.nodes[node] = self.constant(_attribute(self.traced, str(node.target)))
        elif node.op == "output":
            self.graph.output(fx.map_arg(node.args[0], self.nodes.__getitem__))
        else:
            self.nodes[node] = self.graph.node_copy(node, self.nodes.__getitem__)

    def of(self, node: Node | None) -> Any:
        return None if node is None else self.nodes[node]

    def constant(self, tensor: Tensor) -> Node:
        """A node that reads `tensor`, which becomes a buffer of the module."""
        if id(tensor) not in self._attributes:
            name = f"constant_{len(self._attributes)}"
            self.root.register_buffer(name, tensor.detach(), persistent=False)
            self._attributes[id(tensor)] = (tensor, self.graph.get_attr(name))
        return self._attributes[id(tensor)][1]

    def reshape(self, x: Node, shape: Any) -> Node:
        return self.graph.call_function(_RESHAPE, (x, list(shape)))

    def norm_weights(self, nodes: tuple[Node | None, ...]) -> list[Node | None]:
        """float32 parameters of the network instead of those that were cast to trace it."""
        found: list[Node | None] = []
        for node in nodes:
            if node is None:
                found.append(None)
                continue
            name = str(node.target).removeprefix("network.")
            weight = _attribute(self.network, name).detach()
            found.append(self.constant(self.constants.norms.setdefault(name, weight.float())))
        return found

    def product(self, node: Node) -> Node:
        x_q, residual, names, picture, edges, *grid = node.args
        geglu = node.target is vocabulary.GEGLU_CODES
        operand = self.constants.operand(tuple(names), tuple(edges), geglu)
        tensors = [
            None if value is None else self.constant(value)
            for value in (operand.weight, operand.multiplier, operand.correction, operand.bias)
        ]
        window = (
            operand.channels, operand.bits, list(operand.kernel), list(operand.stride), list(operand.padding),
            list(operand.groups),
        )  # fmt: skip
        codes, added, rows = self.of(x_q), self.of(residual), node.meta["rows"]
        moves = operand.kernel != (1, 1) or operand.stride != (1, 1)
        if moves:
            b, _, c = x_q.meta["rows"]
            codes = self.reshape(codes, (b, *picture, c))
            if added is not None:
                added = self.reshape(added, (b, *_result(picture, operand), rows[-1]))
        if grid:
            y = self.graph.call_function(
                _OPS.int8_product_codes.default, (codes, *tensors, added, *window, geglu, *grid)
            )
        else:
            dtype = torch.float32 if _is_final(node) else node.meta.get("dtype", self.dtype)
            y = self.graph.call_function(_OPS.int8_product.default, (codes, *tensors, added, *window, dtype))
        y.meta["layers"] = tuple(names)
        return self.reshape(y, rows) if moves else y

    def codes(self, node: Node) -> Node:
        x, *grid = node.args
        return self.graph.call_function(_OPS.nhwc_codes.default, (self.of(x), None, *grid))

    def group_norm(self, node: Node) -> Node:
        x, second, added, weight, bias, factor, shift, *rest = node.args
        weights, grids = self.norm_weights((weight, bias)), rest[3:]
        given = (*map(self.of, (x, second, added)), *weights, *map(self.of, (factor, shift)), *rest[:3])
        operator = {0: _OPS.nhwc_group_norm, 3: _OPS.nhwc_group_norm_codes, 6: _OPS.nhwc_entry_codes}[len(grids)]
        return self.graph.call_function(operator.default, (*given, *grids))

    def layer_norm_codes(self, node: Node) -> Node:
        x, weight, bias, eps, *grid = node.args
        given = (self.of(x), *self.norm_weights((weight, bias)), eps, *grid)
        return self.graph.call_function(_OPS.nhwc_layer_norm_codes.default, given)

    def layer_norm(self, node: Node) -> Node:
        x, weight, bias, eps = node.args
        shape = [x.meta["rows"][-1]]
        given = (self.of(x), shape, self.of(weight), self.of(bias), eps)
        return self.graph.call_function(_ATEN.layer_norm.default, given)

    def attention(self, node: Node) -> Node:
        q, k, v, _, heads, scale, *grid = node.args
        given = (*map(self.of, (q, k, v)), heads, scale)
        operator = _OPS.flash_attention_codes if grid else _OPS.flash_attention
        return self.graph.call_function(operator.default, (*given, *grid))

    def int_attention(self, node: Node) -> Node:
        q, k, v, name, heads, scale, *grid = node.args
        grids = grids_of(self.constants.layers, name)
        assert grids is not None
        given = (*map(self.of, (q, k, v)), heads, scale, *grids.arguments())
        if grid:
            return self.graph.call_function(_OPS.int_attention_codes.default, (*given, *grid))
        return self.graph.call_function(_OPS.int_attention.default, (*given, self.dtype))

    def upsample(self, node: Node) -> Node:
        x, (h, w), factor = node.args
        b, _, c = x.meta["rows"]
        wide = self.reshape(self.of(x), (b, h, 1, w, 1, c))
        repeated = self.graph.call_function(_ATEN.expand.default, (wide, [b, h, factor, w, factor, c]))
        return self.reshape(repeated, node.meta["rows"])

    def upsampled_codes(self, node: Node) -> Node:
        x, picture, factor, *grid = node.args
        b, _, c = x.meta["rows"]
        whole = self.reshape(self.of(x), (b, *picture, c))
        codes = self.graph.call_function(_OPS.nhwc_upsampled_codes.default, (whole, factor, *grid))
        return self.reshape(codes, node.meta["rows"])

    def pad(self, node: Node) -> Node:
        x, picture, (above, below, left, right) = node.args
        b, _, c = x.meta["rows"]
        whole = self.reshape(self.of(x), (b, *picture, c))
        widths = [0, 0, left, right, above, below]
        padded = self.graph.call_function(_ATEN.constant_pad_nd.default, (whole, widths, 0.0))
        return self.reshape(padded, node.meta["rows"])


def _result(picture: list[int], operand: Operand) -> list[int]:
    """H', W' of a convolution."""
    edges = operand.padding
    return [
        (size + edges[2 * axis] + edges[2 * axis + 1] - operand.kernel[axis]) // operand.stride[axis] + 1
        for axis, size in enumerate(picture)
    ]


def _is_final(node: Node) -> bool:
    """Whether nothing but the network's output is made of `node`."""
    while len(node.users) == 1 and node.op != "output":
        node = next(iter(node.users))
        if node.op == "call_function" and node.target not in (_RESHAPE, _ATEN.permute.default):
            return False
    return node.op == "output"


def _attribute(module: nn.Module, name: str) -> Tensor:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    if not isinstance(found, Tensor):
        raise ModelError(f"{name}: expected a tensor in the traced network, got {type(found).__name__}")
    return found


_STEPS: dict[Any, Callable[[_Emitter, Node], Node]] = {
    vocabulary.CODES: _Emitter.codes,
    vocabulary.PRODUCT: _Emitter.product,
    vocabulary.PRODUCT_CODES: _Emitter.product,
    vocabulary.GEGLU_CODES: _Emitter.product,
    vocabulary.GROUP_NORM: _Emitter.group_norm,
    vocabulary.GROUP_NORM_CODES: _Emitter.group_norm,
    vocabulary.ENTRY_CODES: _Emitter.group_norm,
    vocabulary.LAYER_NORM: _Emitter.layer_norm,
    vocabulary.LAYER_NORM_CODES: _Emitter.layer_norm_codes,
    vocabulary.ATTENTION: _Emitter.attention,
    vocabulary.ATTENTION_CODES: _Emitter.attention,
    vocabulary.INT_ATTENTION: _Emitter.int_attention,
    vocabulary.INT_ATTENTION_CODES: _Emitter.int_attention,
    vocabulary.UPSAMPLE: _Emitter.upsample,
    vocabulary.UPSAMPLED_CODES: _Emitter.upsampled_codes,
    vocabulary.PAD: _Emitter.pad,
}
