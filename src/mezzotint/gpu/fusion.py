"""Passes over a graph of rows that leave fewer trips through memory between integer products.

    upsample    codes(upsample(x)) in one step: the same from a quarter of the floats
    merge       equal codes and SiLUs once; linear layers that read the same codes side by side in one product
                (q, k, v; k and v of every cross-attention; every projection of the time embedding)
    norms       [cat | + time embedding ->] group norm [-> scale and shift] [-> SiLU] [-> codes] in one step;
                layer norm -> codes
    entries     the codes that a shortcut takes of what a group norm reads are written by the group norm
    geglu       product -> value * gelu(gate) -> codes in one step
    residual    product + x in one step; the earlier of two products is what is added to the later
    codes       product -> codes, attention -> codes: the float tensor in between is never written

The first two and the entries change no bit. The others keep float32 where the unfused step rounds to the dtype of the
activations, so they are nearer to the simulated model, not farther.

A product is fused with what reads it only where nothing else does. Order matters: merging makes products that several
read, norms take the additions of the time embedding before `residual` looks for additions.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from mezzotint.gpu.vocabulary import (
    ATTENTION,
    ATTENTION_CODES,
    CODES,
    ENTRY_CODES,
    GEGLU_CODES,
    GROUP_NORM,
    GROUP_NORM_CODES,
    INT_ATTENTION,
    INT_ATTENTION_CODES,
    LAYER_NORM,
    LAYER_NORM_CODES,
    PRODUCT,
    PRODUCT_CODES,
    UPSAMPLE,
    UPSAMPLED_CODES,
    Node,
)
from mezzotint.layers.int_base import IntLayer, IntWeightedLayer

_ATEN = torch.ops.aten
_RESHAPE, _ADD, _CAT = _ATEN.reshape.default, _ATEN.add.Tensor, _ATEN.cat.default
_MERGED = (CODES, _ATEN.silu.default)


def fuse_(graph: fx.Graph, layers: Mapping[str, IntLayer]) -> None:
    """All passes, in order; changes `graph`."""
    _fuse_upsamples(graph)
    _merge_equal(graph)
    _merge_linears(graph, layers)
    _fuse_group_norms(graph)
    _fuse_entries(graph)
    _fuse_layer_norms(graph)
    _fuse_geglu(graph)
    _fuse_residuals(graph)
    _fuse_codes(graph, PRODUCT, PRODUCT_CODES)
    _fuse_codes(graph, ATTENTION, ATTENTION_CODES)
    _fuse_codes(graph, INT_ATTENTION, INT_ATTENTION_CODES)
    graph.eliminate_dead_code()
    graph.lint()


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _calls(graph: fx.Graph, target: Any) -> list[Node]:
    return [node for node in graph.nodes if node.op == "call_function" and node.target is target]


def _insert(graph: fx.Graph, before: Node, target: Any, args: tuple[Any, ...], rows: Any) -> Node:
    with graph.inserting_before(before):
        node = graph.call_function(target, args)
    node.meta["rows"] = rows
    return node


def _replace(graph: fx.Graph, old: Node, target: Any, args: tuple[Any, ...]) -> Node:
    """A new node in the place of `old`."""
    node = _insert(graph, old, target, args, old.meta["rows"])
    old.replace_all_uses_with(node)
    graph.erase_node(old)
    return node


def _fuse_upsamples(graph: fx.Graph) -> None:
    for codes in _calls(graph, CODES):
        x, *grid = codes.args
        if x.target is UPSAMPLE and len(x.users) == 1:
            _replace(graph, codes, UPSAMPLED_CODES, (*x.args, *grid))


def _merge_equal(graph: fx.Graph) -> None:
    seen: dict[tuple[Any, ...], Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _MERGED:
            continue
        first = seen.setdefault((node.target, node.args), node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _merge_linears(graph: fx.Graph, layers: Mapping[str, IntLayer]) -> None:
    """Linear layers on the same codes: one product, cut along the channels for those who read it."""
    for codes in _calls(graph, CODES):
        by_bits: dict[int, list[Node]] = {}
        for user in codes.users:
            if user.target is PRODUCT and not user.args[3] and not _ends_in_geglu(user):
                layer = layers[user.args[2][0]]
                assert isinstance(layer, IntWeightedLayer)
                by_bits.setdefault(layer.weight_grid.bits, []).append(user)
        for products in by_bits.values():
            if len(products) > 1:
                _merge(graph, codes, products)


def _merge(graph: fx.Graph, codes: Node, products: list[Node]) -> None:
    names = [name for product in products for name in product.args[2]]
    *rows, _ = codes.meta["rows"]
    widths = [product.meta["rows"][-1] for product in products]
    with graph.inserting_after(codes):
        whole = graph.call_function(PRODUCT, (codes, None, names, [], [0, 0, 0, 0]))
    whole.meta["rows"] = (*rows, sum(widths))
    after, start = whole, 0
    for product, width in zip(products, widths, strict=True):
        with graph.inserting_after(after):
            part = graph.call_function(_ATEN.slice.Tensor, (whole, -1, start, start + width))
        part.meta["rows"] = (*rows, width)
        product.replace_all_uses_with(part)
        graph.erase_node(product)
        after, start = part, start + width


def _fuse_group_norms(graph: fx.Graph) -> None:
    for norm in _calls(graph, GROUP_NORM):
        x, _, _, weight, bias, _, _, groups, eps, _ = norm.args
        x, added = _without_added(x)
        x, second = _two_parts(x)
        last, factor, shift = _scaled_and_shifted(norm)
        silu: Any = _only_user(last)
        smooth = silu is not None and silu.target is _ATEN.silu.default
        last = silu if smooth else last
        args = (x, second, added, weight, bias, factor, shift, groups, eps, smooth)
        readers = list(last.users)
        if readers and all(reader.target is CODES for reader in readers):
            for codes in readers:
                _replace(graph, codes, GROUP_NORM_CODES, (*args, *codes.args[1:]))
        else:
            _replace(graph, last, GROUP_NORM, args)


def _scaled_and_shifted(norm: Node) -> tuple[Node, Node | None, Node | None]:
    """(y, f, s) where y = norm * (1 + f) + s with f and s [B, C] and no other readers, else (norm, None, None)."""
    scaled: Any = _only_user(norm)
    shifted: Any = None if scaled is None or scaled.target is not _ATEN.mul.Tensor else _only_user(scaled)
    if shifted is None or shifted.target is not _ADD or scaled.args[0] is not norm or shifted.args[0] is not scaled:
        return norm, None, None
    one_more, shift = _per_channel(scaled.args[1], norm), _per_channel(shifted.args[1], norm)
    if one_more is None or shift is None or one_more.target is not _ADD or one_more.args[1] != 1:
        return norm, None, None
    factor = _per_channel(one_more.args[0], norm)
    return (norm, None, None) if factor is None else (shifted, factor, shift)


def _per_channel(vector: Any, norm: Node) -> Node | None:
    """What `vector` is a reshape of, if it holds a value for each sample and channel of `norm`."""
    if not isinstance(vector, fx.Node):
        return None
    b, *_, c = norm.meta["rows"]
    source: Any = vector.args[0] if vector.target is _RESHAPE else vector
    return source if math.prod(source.meta["rows"]) == b * c else None


def _without_added(x: Node) -> tuple[Node, Node | None]:
    """(h, v) if `x` is h + v[:, None] with v [B, C], and nothing but one norm reads it; else (x, None)."""
    if x.target is not _ADD or len(x.users) > 1:
        return x, None
    h, vector = x.args[:2]
    if getattr(vector, "target", None) is not _RESHAPE:
        return x, None
    source, (b, *_, c) = vector.args[0], x.meta["rows"]
    return (h, source) if source.meta["rows"] == (b, c) and vector.meta["rows"] == (b, 1, c) else (x, None)


def _two_parts(x: Node) -> tuple[Node, Node | None]:
    if x.target is _CAT and x.args[1] == -1 and len(x.args[0]) == 2:
        return x.args[0]
    return x, None


def _fuse_entries(graph: fx.Graph) -> None:
    norms = _calls(graph, GROUP_NORM_CODES)
    for norm in sorted(norms, key=lambda node: node.args[1] is None):  # pairs first: they take a concatenation away
        plain = _entry_of(graph, norm)
        if plain is None:
            continue
        parts = plain.args[0] if plain.target is _CAT else [plain]
        grids = [list(numbers) for numbers in zip(*(part.args[1:] for part in parts), strict=True)]
        both = _insert(graph, norm, ENTRY_CODES, (*norm.args, *grids), (2, *norm.meta["rows"]))
        for index, replaced in enumerate((norm, plain)):
            with graph.inserting_after(both):
                half = graph.call_function(operator.getitem, (both, index))
            half.meta["rows"] = norm.meta["rows"]
            replaced.replace_all_uses_with(half)
            graph.erase_node(replaced)
        for part in parts:
            if part is not plain and not part.users:
                graph.erase_node(part)


def _entry_of(graph: fx.Graph, norm: Node) -> Node | None:
    """Codes of [x | second], which `norm` reads with nothing added, if they are first read after `norm`."""
    x, second, added = norm.args[:3]
    if added is not None:
        return None
    order = {node: index for index, node in enumerate(graph.nodes)}
    for codes in (user for user in x.users if user.target is CODES):
        for found in [codes] if second is None else [user for user in codes.users if user.target is _CAT]:
            parts = [codes] if second is None else found.args[0]
            sources = [part.args[0] if part.target is CODES else None for part in parts]
            wanted = [x] if second is None else [x, second]
            if sources == wanted and all(order[user] > order[norm] for user in found.users):
                return found
    return None


def _fuse_layer_norms(graph: fx.Graph) -> None:
    for norm in _calls(graph, LAYER_NORM):
        readers = list(norm.users)
        if readers and all(reader.target is CODES for reader in readers):
            for codes in readers:
                _replace(graph, codes, LAYER_NORM_CODES, (*norm.args, *codes.args[1:]))


def _fuse_geglu(graph: fx.Graph) -> None:
    for product in _calls(graph, PRODUCT):
        codes = _geglu_codes(product)
        if codes is not None and product.args[1] is None:
            _replace(graph, codes, GEGLU_CODES, (*product.args, *codes.args[1:]))


def _ends_in_geglu(product: Node) -> bool:
    return _geglu_codes(product) is not None


def _geglu_codes(product: Node) -> Node | None:
    """The codes of value * gelu(gate), [value | gate] the halves of `product`, if nothing else reads any of them."""
    half = product.meta["rows"][-1] // 2
    halves = {user.args[1:]: user for user in product.users if user.target is _ATEN.slice.Tensor}
    if len(product.users) != 2 or set(halves) != {(-1, 0, half), (-1, half, 2 * half)}:
        return None
    gelu, scaled = _only_user(halves[-1, half, 2 * half]), _only_user(halves[-1, 0, half])
    exact = gelu is not None and gelu.target is _ATEN.gelu.default and gelu.kwargs.get("approximate", "none") == "none"
    if not exact or scaled is None or scaled.target is not _ATEN.mul.Tensor or _only_user(gelu) is not scaled:
        return None
    codes = _only_user(scaled)
    return codes if codes is not None and codes.target is CODES else None


def _fuse_residuals(graph: fx.Graph) -> None:
    for add in _calls(graph, _ADD):
        if len(add.args) != 2 or add.kwargs or not all(isinstance(x, fx.Node) for x in add.args):
            continue
        for product, other in (add.args[::-1], add.args):  # of two products the second one is the later, or either
            alone = product.target is PRODUCT and product.args[1] is None and len(product.users) == 1
            if alone and product.meta["rows"] == other.meta["rows"] and product is not other:
                x_q, _, *rest = product.args
                _replace(graph, add, PRODUCT, (x_q, other, *rest))
                break


def _fuse_codes(graph: fx.Graph, target: Any, fused: Any) -> None:
    for node in _calls(graph, target):
        codes = _only_user(node)
        if codes is not None and codes.target is CODES:
            _replace(graph, codes, fused, (*node.args, *codes.args[1:]))
