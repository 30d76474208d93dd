"""Attention on codes in a graph of rows: `attention` becomes `int_attention`, as the integer model has it.

`quantize_attention_` goes before fusion: it puts codes of q, k and v before every attention that has grids, and they
fuse with the product that they are made of, as all codes do. Where q, k and v are parts of one product, codes are left
standing alone; `absorb_codes_`, after fusion, takes them away: the kernels quantize what they read.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from mezzotint.errors import ConfigError, ModelError
from mezzotint.gpu.vocabulary import ATTENTION, CODES, INT_ATTENTION, INT_ATTENTION_CODES
from mezzotint.kernels.triton.int_attention import MOST_CHANNELS, Grids
from mezzotint.layers.int_base import IntLayer
from mezzotint.layers.int_matmul import IntMatMul
from mezzotint.layers.swap import product_names


def grids_of(layers: Mapping[str, IntLayer], attention: str) -> Grids | None:
    """The grids of q, k, probabilities and v of the layer called `attention`; None if a product of it is in float."""
    qk, pv = (layers.get(name) for name in product_names(attention))
    if not isinstance(qk, IntMatMul) or not isinstance(pv, IntMatMul):
        return None
    (q, k), (p, v) = (
        (
            (float(layer.a_scale), int(layer.a_zero_point), layer.a_grid.quant_max),
            (float(layer.b_scale), int(layer.b_zero_point), layer.b_grid.quant_max),
        )
        for layer in (qk, pv)
    )
    return Grids(q, k, p, v)


def quantize_attention_(graph: fx.Graph, layers: Mapping[str, IntLayer]) -> None:
    """Puts every attention that has grids on codes; changes `graph`.

    Raises:
        ConfigError: none has.
        ModelError: heads are too wide for the kernels.
    """
    found = False
    for node in list(graph.nodes):
        grids = grids_of(layers, node.args[3]) if node.target is ATTENTION else None
        if grids is None:
            continue
        found, (*_, channels) = True, node.meta["rows"]
        name, heads = node.args[3:5]
        if channels > MOST_CHANNELS * heads:
            raise ModelError(
                f"{name}: int8 attention takes heads of up to {MOST_CHANNELS} channels, got {channels // heads}; "
                "optimize with attention='bf16'"
            )
        coded = []
        for x, grid in zip(node.args[:3], (grids.q, grids.k, grids.v), strict=True):
            with graph.inserting_before(node):
                coded.append(graph.call_function(CODES, (x, *grid)))
            coded[-1].meta["rows"] = x.meta["rows"]
        node.target, node.args = INT_ATTENTION, (*coded, *node.args[3:])
    if not found:
        raise ConfigError(
            "attention='int8' needs grids of q, k, softmax and v, and this network has none; use attention='bf16'"
        )


def absorb_codes_(graph: fx.Graph) -> None:
    """Gives floats to every attention on codes whose codes nothing else reads; changes `graph`."""
    for node in list(graph.nodes):
        if node.target not in (INT_ATTENTION, INT_ATTENTION_CODES):
            continue
        for codes in set(node.args[:3]):
            if codes.target is CODES and len(codes.users) == 1 and node.args[:3].count(codes) == 1:
                node.replace_input_with(codes, codes.args[0])
                graph.erase_node(codes)
    graph.lint()
