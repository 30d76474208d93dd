"""The output shift: off conv_out's bias where a lowered network has attention in floats, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from integer_networks import fresh
from mezzotint.gpu.network import LoweringConfig, lower_network_
from mezzotint.layers.attention import QuantizedAttnProcessor
from mezzotint.layers.float_attention import OutputShift, shift_output_
from mezzotint.models.denoiser import example_inputs

pytestmark = pytest.mark.usefixtures("traceable")

FLOAT32 = LoweringConfig(torch.float32)
ON_CODES = LoweringConfig(torch.float32, attention="int8")
SAME_DB = 30  # as in test_network: what codes that tip leave of a small network
MADE_UP = OutputShift(layer="conv_out", values=(0.25, -0.5, 0.125))


class Product(nn.Module):
    """a b in floats."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


def biased() -> Any:
    """An integer network whose probabilities have steps so wide that rows of attention lose their mass; v is not 0."""
    network = fresh("small")
    for module in network.modules():
        if isinstance(module, Attention):
            module.processor.pv.a_scale.fill_(0.05)
            module.to_v.bias.add_(1.0)
    return network


@torch.no_grad()
def eps(network: Any) -> Tensor:
    return network(*example_inputs(network, 2)).sample


def means(x: Tensor) -> Tensor:
    return x.double().mean((0, 2, 3))


def measured_shift() -> OutputShift:
    """Equation (4) of one step: the network's own layers, products in floats minus products on codes."""
    floats = biased()
    for module in floats.modules():
        if isinstance(module, QuantizedAttnProcessor):
            module.qk, module.pv = Product(), Product()
    return OutputShift(layer="conv_out", values=tuple((means(eps(floats)) - means(eps(biased()))).tolist()))


def test_with_the_shift_the_mean_is_that_of_the_integer_network() -> None:
    """Allowed is what codes that tip may do to every pixel; on one processor all but roundings of 2**-24 agree."""
    expected, shifted = eps(biased()), biased()
    shift_output_(shifted, measured_shift())
    state = {name: value.clone() for name, value in shifted.state_dict().items()}
    assert torch.equal(eps(shifted), expected)  # its own layers compute on codes
    results = [means(eps(lower_network_(network, FLOAT32))) for network in (shifted, biased())]
    errors = [float((result - means(expected)).abs().max()) for result in results]
    allowed = float(expected.std()) * 10 ** (-SAME_DB / 20)
    assert errors[0] < allowed < errors[1] / 2
    assert all(torch.equal(value, state[name]) for name, value in shifted.state_dict().items())


def test_attention_on_codes_is_not_shifted() -> None:
    shifted = biased()
    shift_output_(shifted, MADE_UP)
    results = [eps(lower_network_(network, ON_CODES)) for network in (shifted, biased())]
    assert torch.equal(*results)


@pytest.mark.parametrize("bits", ["w4a8", "w4a32"])
def test_every_element_moves_by_the_shift_and_nothing_else_does(bits: str) -> None:
    """Also of a last layer that lowering turns into one of floats: w4a32."""
    shifted = fresh("small", bits)
    shift_output_(shifted, MADE_UP)
    with_it, without = (eps(lower_network_(network, FLOAT32)) for network in (shifted, fresh("small", bits)))
    moved = MADE_UP.tensor(without)[None, :, None, None]
    torch.testing.assert_close(with_it, without - moved, atol=1e-6, rtol=1e-5)
