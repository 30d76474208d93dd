"""Prepared products as operators that a tracer can hold: `mezzotint::conv2d(x_q, number)`.

A prepared product is a Python function with constants inside (repacked weights in a layout only oneDNN knows), which
no tracer takes. It gets a number; the operator looks the function up by it. Whoever prepared the product owns it: the
table here holds it weakly, and a graph that outlives its layers fails by name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from mezzotint.errors import KernelError

Shape = Callable[..., Sequence[int]]


@dataclass(frozen=True, eq=False)
class Traced:
    """One product: the function, the shape of its result for the shapes of its inputs, its number, its constants.

    `constants` are there only if a function of several steps may take the place of the product.
    """

    product: Callable[..., Tensor]
    shape: Shape
    number: int
    constants: Any = None


_numbers = itertools.count()
_table: WeakValueDictionary[int, Traced] = WeakValueDictionary()

_OPERATORS = torch.library.Library("mezzotint", "FRAGMENT")
_OPERATORS.define("conv2d(Tensor x_q, int number) -> Tensor")
_OPERATORS.define("linear(Tensor x_q, int number) -> Tensor")
_OPERATORS.define("matmul(Tensor a_q, Tensor b_q, int number) -> Tensor")


def trace(product: Callable[..., Tensor], shape: Shape, constants: Any = None) -> Traced:
    """Gives `product` a number. It is forgotten with the last reference to what is returned."""
    traced = Traced(product, shape, next(_numbers), constants)
    _table[traced.number] = traced
    return traced


def product_of(number: int) -> Callable[..., Tensor]:
    """The product with this number, to be called as such; KernelError if it is gone."""
    return _find(number).product


def constants_of(number: int) -> Any:
    """The constants that the product with this number was traced with; KernelError if it is gone."""
    return _find(number).constants


def _find(number: int) -> Traced:
    traced = _table.get(number)
    if traced is None:
        raise KernelError(f"product {number} is gone: its layer was moved, reloaded or deleted; compile the model anew")
    return traced


def _conv2d(x_q: Tensor, number: int) -> Tensor:
    return _find(number).product(x_q).contiguous(memory_format=torch.channels_last)


def _linear(x_q: Tensor, number: int) -> Tensor:
    return _find(number).product(x_q).contiguous()


def _matmul(a_q: Tensor, b_q: Tensor, number: int) -> Tensor:
    return _find(number).product(a_q, b_q).contiguous()


def _empty(x_q: Tensor, shape: Sequence[int], layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=x_q.device, memory_format=layout)


def _conv2d_meta(x_q: Tensor, number: int) -> Tensor:
    return _empty(x_q, _find(number).shape(x_q.shape), torch.channels_last)


def _linear_meta(x_q: Tensor, number: int) -> Tensor:
    return _empty(x_q, _find(number).shape(x_q.shape))


def _matmul_meta(a_q: Tensor, b_q: Tensor, number: int) -> Tensor:
    return _empty(a_q, _find(number).shape(a_q.shape, b_q.shape))


for _name, _compute, _shape_of in (
    ("conv2d", _conv2d, _conv2d_meta),
    ("linear", _linear, _linear_meta),
    ("matmul", _matmul, _matmul_meta),
):
    _OPERATORS.impl(_name, _compute, "CompositeExplicitAutograd")
    _OPERATORS.impl(_name, _shape_of, "Meta")
