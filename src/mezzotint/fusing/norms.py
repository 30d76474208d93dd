"""Steps that end in codes as one step; see `kernels.fused`.

[+ time embedding] -> group norm [-> SiLU] [-> codes]
layer norm -> codes
values and gates apart -> gates through GELU -> their product -> codes
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from mezzotint.fusing.nodes import is_codes, is_method, only_user, value
from mezzotint.kernels.native import library

_ALL = slice(None, None, None)


def fuse_norms(graph: fx.Graph) -> None:
    """Replaces every float32 group norm, with what stands before and behind it, by a node of `kernels.fused`."""
    for norm in list(graph.nodes):
        if norm.op != "call_function" or norm.target is not F.group_norm:
            continue
        names = ("input", "num_groups", "weight", "bias", "eps")
        given = {"weight": None, "bias": None, "eps": 1e-5, **dict(zip(names, norm.args, strict=False)), **norm.kwargs}
        whole = value(given["input"])
        if whole is None or whole.dtype != torch.float32 or whole.device.type != "cpu" or whole.dim() < 3:
            continue
        x, added = _without_added(given["input"])
        last = silu if (silu := only_user(norm)) is not None and silu.target is F.silu else norm
        affine = (given["weight"], given["bias"], given["num_groups"], given["eps"])
        arguments: tuple[Any, ...] = (x, added, *affine, last is not norm)
        codes, operation = only_user(last), torch.ops.mezzotint.group_norm
        if codes is not None and is_codes(codes):
            last, operation = codes, torch.ops.mezzotint.group_norm_codes
            arguments = (*arguments, *codes.args[1:])
        with graph.inserting_before(last):
            fused = graph.call_function(operation, arguments)
        last.replace_all_uses_with(fused)


def fuse_layer_norms(graph: fx.Graph) -> None:
    """Replaces every layer norm over the last axis whose codes alone are wanted."""
    for norm in list(graph.nodes):
        if norm.op != "call_function" or norm.target is not F.layer_norm or not _compiled_here(norm.args[0]):
            continue
        names = ("input", "normalized_shape", "weight", "bias", "eps")
        given = {"weight": None, "bias": None, "eps": 1e-5, **dict(zip(names, norm.args, strict=False)), **norm.kwargs}
        codes = only_user(norm)
        if is_codes(codes) and len(given["normalized_shape"]) == 1:
            arguments = (given["input"], given["weight"], given["bias"], given["eps"], *codes.args[1:])
            _replace(graph, codes, torch.ops.mezzotint.layer_norm_codes, arguments)


def fuse_gates(graph: fx.Graph) -> None:
    """Replaces every GEGLU whose codes alone are wanted."""
    for product in list(graph.nodes):
        codes = only_user(product)
        if product.target is not operator.mul or not is_codes(codes):
            continue
        value_, gated = product.args
        gelu = gated if isinstance(gated, fx.Node) and gated.target is F.gelu else None
        if gelu is None or len(gelu.args) != 1 or gelu.kwargs.get("approximate", "none") != "none":
            continue
        whole = _halves(value_, gelu.args[0])
        if whole is not None and _compiled_here(whole):
            _replace(graph, codes, torch.ops.mezzotint.geglu_codes, (whole, *codes.args[1:]))


def _replace(graph: fx.Graph, last: fx.Node, operation: Any, arguments: tuple[Any, ...]) -> None:
    with graph.inserting_before(last):
        fused = graph.call_function(operation, arguments)
    fused.meta.update(last.meta)
    last.replace_all_uses_with(fused)


def _compiled_here(x: Any) -> bool:
    """Whether the compiled steps take `x`, a float32 tensor on the CPU."""
    floats = value(x)
    return library() is not None and floats is not None and (floats.dtype, floats.device.type) == (torch.float32, "cpu")


def _halves(first: Any, second: Any) -> Any:
    """x if `first` and `second` are the halves of its last axis, in this order, else None."""
    parts = [n for n in (first, second) if isinstance(n, fx.Node) and n.target is operator.getitem]
    if len(parts) != 2 or parts[0].args[0] is not parts[1].args[0] or [p.args[1] for p in parts] != [0, 1]:
        return None
    chunk: Any = parts[0].args[0]
    by_name = {**dict(zip(("chunks", "dim"), chunk.args[1:], strict=False)), **chunk.kwargs}
    return chunk.args[0] if is_method(chunk, "chunk") and by_name == {"chunks": 2, "dim": -1} else None


def _without_added(x: Any) -> tuple[Any, fx.Node | None]:
    """(h, v) if `x` is h + v[:, :, None, ...] and nothing else reads it, else (x, None)."""
    if not isinstance(x, fx.Node) or x.target is not operator.add or len(x.users) > 1:
        return x, None
    h, more = x.args
    if not isinstance(h, fx.Node) or not isinstance(more, fx.Node) or more.target is not operator.getitem:
        return x, None
    vector, index = more.args
    source, whole = value(vector), value(h)
    if (
        not isinstance(vector, fx.Node)
        or source is None
        or whole is None
        or source.dim() != 2
        or whole.shape[:2] != source.shape
    ):
        return x, None
    broadcast = isinstance(index, tuple) and index == (_ALL, _ALL, *(None,) * (whole.dim() - 2))
    return (h, vector) if broadcast else (x, None)
