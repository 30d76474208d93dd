"""q k^T -> scaled -> softmax -> codes -> times v as one step on codes; see `kernels.attention`.

    q_q, k_q, v_q -> heads apart -> matmul(q_q, k_q^T) * scale -> softmax -> codes -> matmul(., v_q) -> heads together

becomes one call that reads and writes the heads where they lie side by side. The codes have been moved before the step
that takes heads apart (`moves`); where that step is not found, the pairs of matrices count as pictures with one head.
Attention with a mask stays as it is.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import fx

from mezzotint.fusing.nodes import CODES, argument, is_codes, is_method, only_user, shape
from mezzotint.kernels.attention import AttentionConstants, prepare_attention
from mezzotint.kernels.contract import Paired
from mezzotint.kernels.native import library
from mezzotint.kernels.traced import constants_of

_MATMUL = torch.ops.mezzotint.matmul
_RESHAPES = ("reshape", "view")
_HEADS_FIRST = (0, 2, 1, 3)


class _Found(NamedTuple):
    """The nodes of one attention: codes of q, k and v, its last product; and its constants."""

    q: Any
    k: Any
    v: Any
    out: fx.Node
    constants: AttentionConstants


def fuse_attention(graph: fx.Graph) -> None:
    """Replaces every attention without a mask by one call, if this machine has a compiler."""
    if library() is None:
        return
    for node in list(graph.nodes):
        found = _attention_from(node)
        if found is not None:
            _replace(graph, found)


def _attention_from(scores: fx.Node) -> _Found | None:
    """The attention whose q k^T is `scores`, or None."""
    if scores.target is not _MATMUL:
        return None
    q, k_transposed, number = (argument(scores, i) for i in range(3))
    scaled = only_user(scores)
    softmax = only_user(scaled)
    codes = only_user(softmax)
    out = only_user(codes)
    k = _transposed(k_transposed)
    if scaled is None or scaled.target is not operator.mul or not _is_softmax(softmax) or not is_codes(codes):
        return None
    if out is None or out.target is not _MATMUL or out.args[0] is not codes or k is None:
        return None
    factor, p_scale, last_number = (argument(node, i) for node, i in ((scaled, 1), (codes, 1), (out, 2)))
    qk, pv = constants_of(number), constants_of(last_number)
    if not isinstance(factor, int | float) or factor <= 0 or not isinstance(qk, Paired) or not isinstance(pv, Paired):
        return None
    constants = AttentionConstants(qk, pv, scale=float(factor), p_scale=p_scale)
    return _Found(q, k, out.args[1], out, constants)


def _replace(graph: fx.Graph, found: _Found) -> None:
    parts = [_apart(codes) for codes in (found.q, found.k, found.v)]
    sources, counts = [source for source, _ in parts], {heads for _, heads in parts}
    heads, last = counts.pop(), _together(found.out)
    if counts or last is None or heads == 1:
        sources, heads, last = [found.q, found.k, found.v], 1, found.out
    attention, behind = prepare_attention(found.constants), only_user(found.out)
    with graph.inserting_before(last):
        fused = graph.call_function(attention, (*sources, heads))
        if last is not found.out and is_codes(behind):
            fused = graph.call_function(CODES, (fused, *behind.args[1:]))
    fused.meta.update(last.meta)
    last.replace_all_uses_with(fused)


def _is_softmax(node: Any) -> bool:
    """Whether `node` is a softmax over the last axis."""
    if not is_method(node, "softmax") or "dtype" in node.kwargs:
        return False
    dim: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    return isinstance(dim, int) and dim == -1


def _transposed(node: Any) -> Any:
    """x if `node` is x with its last two axes exchanged, else None."""
    return node.args[0] if is_method(node, "transpose") and node.args[1:] in ((-1, -2), (-2, -1)) else None


def _apart(node: Any) -> tuple[Any, int]:
    """(x [B, N, h d], h) if `node` [B h, N, d] has the heads of x one after the other; else (`node`, 1)."""
    swapped: Any = node.args[0] if is_method(node, *_RESHAPES) else None
    split: Any = swapped.args[0] if is_method(swapped, "permute") and swapped.args[1:] == _HEADS_FIRST else None
    x: Any = split.args[0] if is_method(split, *_RESHAPES) else None
    parts, whole, rows = shape(split), shape(x), shape(node)
    if x is None or parts is None or whole is None or len(parts) != 4 or len(whole) != 3:
        return node, 1
    b, n, h, d = parts
    return (x, h) if whole == (b, n, h * d) and rows == (b * h, n, d) else (node, 1)


def _together(out: fx.Node) -> fx.Node | None:
    """The node that has the heads of `out` [B h, N, d], or their codes, side by side again [B, N, h d], or None."""
    behind = only_user(out)
    split = only_user(behind) if is_codes(behind) else behind
    swapped = only_user(split)
    joined = only_user(swapped)
    if not is_method(split, *_RESHAPES) or not is_method(joined, *_RESHAPES):
        return None
    if not is_method(swapped, "permute") or swapped.args[1:] != _HEADS_FIRST:
        return None
    parts, rows, whole = shape(split), shape(out), shape(joined)
    if parts is None or len(parts) != 4:
        return None
    b, h, n, d = parts
    return joined if rows == (b * h, n, d) and whole == (b, n, h * d) else None
