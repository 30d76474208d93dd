"""What changes no bit: steps that do nothing go, equal ones merge, codes come before whatever only moves values."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from mezzotint.fusing.nodes import CODES, as_codes_, is_codes, is_method, shape, value

_CASTS = ("to", "float", "detach")
_MERGED = (CODES, F.silu)
_MOVING = ("transpose", "permute", "reshape", "view", "contiguous")


def remove_identities(graph: fx.Graph) -> None:
    """Removes dropout, division by 1, slices of everything and casts to the dtype there is."""
    for node in list(graph.nodes):
        if _is_identity(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def move_codes_up(graph: fx.Graph) -> None:
    """codes(f(x)) -> f(codes(x)) for every f that only moves values, while nothing else reads f(x)."""
    for node in list(graph.nodes):
        while is_codes(node) and (moved := _moved(graph, node)) is not None:
            node = moved


def merge_equal(graph: fx.Graph) -> None:
    """One node for each distinct SiLU and quantization."""
    seen: dict[tuple[Any, ...], fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _MERGED:
            continue
        key = (node.target, node.args, tuple(sorted(node.kwargs.items())))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def changes_its_argument(node: fx.Node) -> bool:
    """Whether `node` writes to a tensor that it was given."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place_operator = node.op == "call_function" and node.target in (operator.iadd, operator.imul, operator.setitem)
    method = node.op == "call_method" and name.endswith("_") and not name.endswith("__")
    return in_place_operator or method or bool(node.kwargs.get("inplace")) or "out" in node.kwargs


def _is_identity(node: fx.Node) -> bool:
    if node.op == "call_function" and node.target is operator.truediv:
        return isinstance(node.args[0], fx.Node) and isinstance(node.args[1], int | float) and node.args[1] == 1
    if node.op == "call_function" and node.target is F.dropout:
        named = {**dict(zip(("input", "p", "training"), node.args, strict=False)), **node.kwargs}
        return named.get("training", True) is False or bool(named.get("p", 0.5) == 0)
    if node.op == "call_function" and node.target is operator.getitem and isinstance(node.args[1], slice):
        return value(node) is not None and shape(node.args[0]) == shape(node) and node.args[1].step in (None, 1)
    if node.op != "call_method" or node.target not in _CASTS:
        return False
    before, after = value(node.args[0]), value(node)
    return before is not None and after is not None and (before.dtype, before.device) == (after.dtype, after.device)


def _moved(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Exchanges the codes `node` with the step before it; the new codes node, or None if that cannot be done."""
    step, *grid = node.args
    if not isinstance(step, fx.Node) or any(user.target is not CODES for user in step.users):
        return None
    again = _on_codes(step, zero_point=grid[1])
    if again is None:
        return None
    with graph.inserting_before(node):
        codes = as_codes_(graph.call_function(CODES, (step.args[0], *grid)), step.args[0])
        after = as_codes_(graph.create_node(step.op, step.target, (codes, *again[0]), again[1]), step)
    node.replace_all_uses_with(after)
    graph.erase_node(node)
    if not step.users:
        graph.erase_node(step)
    return codes


def _on_codes(step: fx.Node, zero_point: Any) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments after the first with which `step` moves codes as it moves floats; None if it computes."""
    if is_method(step, *_MOVING):
        return step.args[1:], dict(step.kwargs)
    if step.op == "call_function" and step.target is F.interpolate:
        mode = step.kwargs.get("mode", step.args[3] if len(step.args) > 3 else "nearest")
        return (step.args[1:], dict(step.kwargs)) if mode == "nearest" else None
    if step.op == "call_function" and step.target in (F.pad, torch._C._nn.pad):
        named = {**dict(zip(("input", "pad", "mode", "value"), step.args, strict=False)), **step.kwargs}
        if named.get("mode", "constant") == "constant" and not named.get("value"):
            return (named["pad"], "constant", zero_point), {}
    return None
