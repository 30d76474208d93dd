"""What a traced graph says about a value."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, fx

from mezzotint.kernels import fused, traced  # noqa: F401 - they define the operators that are named here and beside

CODES = torch.ops.mezzotint.codes
_VALUE = "example_value"  # where the tracer puts it


def value(node: Any) -> Tensor | None:
    """The fake tensor that the tracer saw at `node`."""
    found = node.meta.get(_VALUE) if isinstance(node, fx.Node) else None
    return found if isinstance(found, Tensor) else None


def shape(node: Any) -> tuple[int, ...] | None:
    """The shape of the tensor at `node`."""
    found = value(node)
    return None if found is None else tuple(found.shape)


def as_codes_(node: fx.Node, like: Any) -> fx.Node:
    """Notes that `node`, made after tracing, holds codes in the shape and layout of `like`; returns it."""
    floats = value(like)
    if floats is not None:
        node.meta[_VALUE] = floats.to(torch.uint8)
    return node


def only_user(node: fx.Node | None) -> fx.Node | None:
    """The one node that reads `node`, or None."""
    return next(iter(node.users)) if node is not None and len(node.users) == 1 else None


def argument(node: fx.Node, index: int) -> Any:
    """The positional argument of `node` at `index`."""
    return node.args[index]


def is_codes(node: Any) -> TypeGuard[fx.Node]:
    """Whether `node` is a step from floats to codes."""
    return isinstance(node, fx.Node) and node.target is CODES


def is_method(node: Any, *names: str) -> TypeGuard[fx.Node]:
    """Whether `node` calls a method of one of these names."""
    return isinstance(node, fx.Node) and node.op == "call_method" and node.target in names
