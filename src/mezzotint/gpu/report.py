"""What runs each layer of a lowered network, in words.

What becomes of an attention layer depends on shapes: over one key it folds away (`single_key`), and q and k with it;
one head too wide for fused kernels is products and softmax (`kernels.triton.attention`). Lowering a shape notes that in
`attention_reports`; before the first call `layer_report` says what holds for every shape, and on what the rest depends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from diffusers.models.attention_processor import Attention
from torch import fx, nn

from mezzotint.gpu.vocabulary import ATTENTION, ATTENTION_CODES, INT_ATTENTION, INT_ATTENTION_CODES
from mezzotint.kernels.contract import KernelReport
from mezzotint.kernels.triton.attention import MOST_CHANNELS, MOST_KEYS, is_wide
from mezzotint.layers.attention import QuantizedAttnProcessor
from mezzotint.layers.int_base import IntWeightedLayer
from mezzotint.layers.int_matmul import IntMatMul
from mezzotint.layers.integer import IntConv2d, IntLinear
from mezzotint.layers.swap import attention_of

FOLDED = KernelReport("folded", "one key, its softmax is 1: the attention is v, without q, k and products")
ON_CODES = KernelReport("triton", "both products of an attention layer at once, of int8 codes; softmax in float32")
_FUSED = KernelReport("triton", "int8 product; norm, activation, residual and codes around it fused")
SEPARATE = "products and softmax"


def attention_reports(graph: fx.Graph, folded: Iterable[str], dtype: torch.dtype) -> dict[str, KernelReport]:
    """How every attention layer of a fused `graph` runs, by its name; `folded` are those that are gone from it."""
    found = dict.fromkeys(folded, FOLDED)
    for node in graph.nodes:
        if node.target in (INT_ATTENTION, INT_ATTENTION_CODES):
            found[node.args[3]] = ON_CODES
        elif node.target in (ATTENTION, ATTENTION_CODES):
            q, k, _, name, heads, *_ = node.args
            found[name] = _in_floats(q.meta["rows"][2], k.meta["rows"][1], heads, dtype)
    return found


def layer_report(
    network: nn.Module, name: str, dtype: torch.dtype, on_codes: bool, lowered: Sequence[Mapping[str, KernelReport]]
) -> KernelReport | None:
    """What runs the layer called `name`; None for one that lowering leaves as it is.

    Args:
        dtype: of the activations between integer products.
        on_codes: whether attention that has grids runs on codes.
        lowered: `attention_reports` of every shape that was called, none before the first call.
    """
    layer, (parent, _, leaf) = network.get_submodule(name), name.rpartition(".")
    if isinstance(layer, IntMatMul):
        attention = parent.removesuffix(".processor")
        found = [reports[attention] for reports in lowered if attention in reports]
        return _together(found) if found else _before_calls(attention_of(network, attention), dtype, on_codes)
    plain = _of_weights(layer, dtype)
    if plain is None or leaf not in ("to_q", "to_k"):
        return plain
    if lowered:
        return _together([FOLDED if reports.get(parent) is FOLDED else plain for reports in lowered])
    return _if_one_key(plain, attention_of(network, parent), on_codes)


def _of_weights(layer: nn.Module, dtype: torch.dtype) -> KernelReport | None:
    if isinstance(layer, IntWeightedLayer) and layer.spec.input is None:
        return KernelReport("float", f"activations stay in float; a product in {dtype}")
    return _FUSED if isinstance(layer, IntConv2d | IntLinear) else None


def _in_floats(channels: int, keys: int, heads: int, dtype: torch.dtype) -> KernelReport:
    """Attention of q [B, N, channels] and `keys` keys in `dtype`."""
    q, k = (torch.empty((1, rows, channels), dtype=dtype, device="meta") for rows in (1, keys))
    if is_wide(q, k, heads):
        how = f"heads wider than {MOST_CHANNELS}: scores, softmax and the product with v one by one, in {dtype}"
        return KernelReport(SEPARATE, how)
    if channels > MOST_CHANNELS * heads:
        return KernelReport("torch", f"heads wider than {MOST_CHANNELS}: torch's attention in {dtype}, not a flash one")
    how = f"both products of an attention layer at once, in {dtype}, without quantizing their inputs"
    return KernelReport("flash", how)


def _before_calls(attention: Attention, dtype: torch.dtype, on_codes: bool) -> KernelReport:
    """What is known of the products of `attention` while the number of its keys is not."""
    if on_codes:
        return ON_CODES
    report = _in_floats(attention.inner_dim, 1, attention.heads, dtype)
    if report.name == SEPARATE:
        report = report._replace(reason=f"{report.reason}; torch's attention in calls with more than {MOST_KEYS} keys")
    return _if_one_key(report, attention, on_codes)


def _if_one_key(report: KernelReport, attention: Attention, on_codes: bool) -> KernelReport:
    """`report`, and what one key would do to it if the keys of `attention` come with the call."""
    folds = not on_codes and attention.is_cross_attention and isinstance(attention.processor, QuantizedAttnProcessor)
    return report._replace(reason=f"{report.reason}; folded away in calls with one key") if folds else report


def _together(reports: Sequence[KernelReport]) -> KernelReport:
    """One report of all shapes; where they differ it tells each."""
    different = list(dict.fromkeys(reports))
    if len(different) == 1:
        return different[0]
    names, reasons = dict.fromkeys(report.name for report in different), (report.reason for report in different)
    return KernelReport(" or ".join(names), f"by the shapes of a call: {'; or '.join(reasons)}")
