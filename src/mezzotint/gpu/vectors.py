"""Values of a whole sample, as the time embedding is, stay float32: [B, C] is little to move, its rounding is a bias.

What is rounded in a pixel differs from pixel to pixel and averages out. A rounded time embedding is the same for all
pixels of all pictures of a step: it shifts the mean of eps, and a sampler sums that up to a tint (`sqrt(alpha-bar)` is
0.08 at t = 800, see `reconstruction.drift`). Steps that read vectors take any float dtype, so nothing else changes.
A chain that ends in a float layer, whose weights are in the dtype of the activations, is left as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from mezzotint.gpu import vocabulary
from mezzotint.gpu.vocabulary import Node

_ATEN = torch.ops.aten
_CAST = _ATEN.to.dtype
_TAKING = (  # any float dtype, whatever else they take
    vocabulary.CODES,
    vocabulary.PRODUCT,  # as a residual
    vocabulary.GROUP_NORM,
    vocabulary.GROUP_NORM_CODES,
    vocabulary.ENTRY_CODES,
    _CAST,
)
_PASSING_ON = (  # the dtype of the wider of their arguments
    _ATEN.silu.default,
    _ATEN.slice.Tensor,
    _ATEN.select.int,
    _ATEN.reshape.default,
    _ATEN.cat.default,
    _ATEN.add.Tensor,
    _ATEN.sub.Tensor,
    _ATEN.mul.Tensor,
    _ATEN.div.Tensor,
)


def widen_vectors_(graph: fx.Graph, dtype: torch.dtype) -> None:
    """Vectors of `graph` that would be in `dtype`, the activations', become float32: casts, and results of products."""
    for node in graph.nodes:
        if len(node.meta.get("rows") or ()) != 2 or not _may_widen(node):
            continue
        if node.target is vocabulary.PRODUCT:
            node.meta["dtype"] = torch.float32
        elif node.target is _CAST and node.args[1] == dtype:
            node.args = (node.args[0], torch.float32, *node.args[2:])


def _may_widen(node: Node) -> bool:
    """Whether every reader of `node` takes float32 as well."""
    return all(reader.target in _TAKING or _passes_on(reader) for reader in node.users)


def _passes_on(reader: Any) -> bool:
    return reader.target in _PASSING_ON and _may_widen(reader)
