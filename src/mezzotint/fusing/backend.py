"""The rewritten graph as a backend of torch.compile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from mezzotint.fusing.attention import fuse_attention
from mezzotint.fusing.moves import changes_its_argument, merge_equal, move_codes_up, remove_identities
from mezzotint.fusing.norms import fuse_gates, fuse_layer_norms, fuse_norms
from mezzotint.kernels import fused
from mezzotint.kernels.traced import product_of

logger = logging.getLogger("mezzotint")

_PRODUCTS = (torch.ops.mezzotint.conv2d, torch.ops.mezzotint.linear, torch.ops.mezzotint.matmul)
_FUNCTIONS = {
    torch.ops.mezzotint.codes: fused.codes,
    torch.ops.mezzotint.group_norm: fused.group_norm,
    torch.ops.mezzotint.group_norm_codes: fused.group_norm_codes,
    torch.ops.mezzotint.layer_norm_codes: fused.layer_norm_codes,
    torch.ops.mezzotint.geglu_codes: fused.geglu_codes,
}


def fusing_backend(graph: fx.GraphModule, example_inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """A backend of torch.compile: `graph` rewritten, to be run as it is."""
    changed_in_place = [node for node in graph.graph.nodes if changes_its_argument(node)]
    if changed_in_place:
        logger.warning("not fused: the network changes tensors in place (%s)", changed_in_place[0].format_node())
        return graph.forward
    remove_identities(graph.graph)
    move_codes_up(graph.graph)
    merge_equal(graph.graph)
    fuse_attention(graph.graph)
    fuse_norms(graph.graph)
    fuse_layer_norms(graph.graph)
    fuse_gates(graph.graph)
    _call_directly(graph.graph)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    return graph.forward


def _call_directly(graph: fx.Graph) -> None:
    """Functions in place of operators: nothing traces the graph any more, and the dispatcher takes its time."""
    for node in graph.nodes:
        if node.target in _PRODUCTS:
            *codes, number = node.args
            node.target, node.args = product_of(number), tuple(codes)
        elif node.target in _FUNCTIONS:
            node.target = _FUNCTIONS[node.target]
