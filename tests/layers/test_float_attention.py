"""Attention products in floats: the block ends as it began, the shift goes where the network goes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from mezzotint.grid.spec import GridSpec
from mezzotint.layers.float_attention import (
    OutputShift,
    float_products,
    has_quantized_products,
    output_shift_of,
    shift_output_,
)
from mezzotint.layers.simulated import FakeQuantLinear, FakeQuantMatMul
from mezzotint.layers.spec import LayerSpec
from mezzotint.layers.swap import to_integer

GRID = GridSpec(bits=8, signed=False)
SHIFT = OutputShift(layer="last", values=(0.25, -0.5))


class Network(nn.Module):
    """A product of two activations, and a layer that is quantized likewise."""

    def __init__(self) -> None:
        super().__init__()
        self.product = FakeQuantMatMul(LayerSpec(kind="matmul", input=GRID, other=GRID))
        spec = LayerSpec(kind="linear", weight=GridSpec(bits=8, signed=True, axis=0), input=GRID)
        self.last = FakeQuantLinear(nn.Linear(3, 2).requires_grad_(False), spec)
        for name, buffer in self.named_buffers():
            if name.endswith("scale"):
                buffer.fill_(0.01)
        self.last.round_to_nearest_()

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.last(self.product(a, b))


def test_only_products_are_in_floats_and_only_inside() -> None:
    network, (a, b) = Network(), torch.rand(2, 3, 3)
    on_codes = network(a, b)
    with float_products(network):
        assert torch.equal(network.product(a, b), a @ b)
        assert torch.equal(network(a, b), network.last(a @ b))
        assert not torch.equal(network(a, b), on_codes)
    assert torch.equal(network(a, b), on_codes)
    with pytest.raises(KeyError), float_products(network):
        raise KeyError
    assert torch.equal(network(a, b), on_codes)


def test_a_grid_that_was_off_stays_off() -> None:
    network = Network()
    network.product.other_quantizer.enabled = False
    with float_products(network):
        pass
    assert not network.product.other_quantizer.enabled
    assert network.product.input_quantizer.enabled


def test_products_are_found() -> None:
    assert has_quantized_products(Network())
    assert not has_quantized_products(nn.Sequential(nn.Linear(2, 2)))


def test_the_shift_goes_where_the_network_goes() -> None:
    network: Any = Network()
    assert output_shift_of(network) is None
    shift_output_(network, SHIFT)
    for other in (to_integer(network), copy.deepcopy(network), pickle.loads(pickle.dumps(network)), network.double()):
        assert output_shift_of(other) == SHIFT


@pytest.mark.parametrize("values", [(), (float("nan"),), (float("inf"), 0.0), ("a",)])
def test_a_shift_is_finite_numbers(values: tuple[Any, ...]) -> None:
    with pytest.raises(ValidationError):
        OutputShift(layer="last", values=values)
