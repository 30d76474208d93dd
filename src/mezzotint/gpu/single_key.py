"""Attention over one key in a graph of rows: softmax of a single score is 1, so the result is v, for every query alike.

Class conditions are such a key. Neither q nor k matters: what made them goes, and so does the norm before q. What comes
behind, to the addition to the pixels, runs on the one row there is. With attention on codes (`int_attention`) nothing
changes: the code of 1 on the grid of probabilities need not mean 1.
"""

from __future__ import annotations

import torch
from torch import fx

from mezzotint.gpu.vocabulary import ATTENTION, CODES, PRODUCT, Node

_ATEN = torch.ops.aten


def fold_single_keys_(graph: fx.Graph) -> list[str]:
    """Puts v in the place of every attention in floats that has one key; changes `graph`, returns their names."""
    folded = []
    for node in list(graph.nodes):
        if node.target is ATTENTION and node.args[2].meta["rows"][1] == 1:
            folded.append(node.args[3])
            _put(graph, node, node.args[2])
    graph.eliminate_dead_code()
    return folded


def _put(graph: fx.Graph, wide: Node, row: Node) -> None:
    """Lets `row` [B, 1, C] stand for `wide` [B, N, C], and what is made of it row by row likewise."""
    if wide.meta["rows"] == row.meta["rows"]:
        wide.replace_all_uses_with(row)
        return
    repeated = None
    for user in list(wide.users):
        if _by_row(user, wide):
            with graph.inserting_before(user):
                narrow = graph.node_copy(user, lambda node: row if node is wide else node)
            narrow.meta["rows"] = (*row.meta["rows"][:-1], user.meta["rows"][-1])
            _put(graph, user, narrow)
        elif _adds(user, wide):
            user.replace_input_with(wide, row)
        else:
            if repeated is None:
                with graph.inserting_before(user):
                    repeated = graph.call_function(_ATEN.expand.default, (row, list(wide.meta["rows"])))
                repeated.meta["rows"] = wide.meta["rows"]
            user.replace_input_with(wide, repeated)


def _by_row(user: Node, wide: Node) -> bool:
    """Codes, or a linear product without a residual."""
    return user.target is CODES or (user.target is PRODUCT and user.args[0] is wide and not user.args[3])


def _adds(user: Node, wide: Node) -> bool:
    """A sum with a tensor that has all rows."""
    if user.target is not _ATEN.add.Tensor or len(user.args) != 2 or user.kwargs:
        return False
    a, b = user.args
    other = b if a is wide else a
    return other is not wide and isinstance(other, fx.Node) and other.meta["rows"] == wide.meta["rows"]
