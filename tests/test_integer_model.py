"""The integer model equals the simulated one, up to the order of float32 sums.

Each layer's integer sum is exact, its simulated twin sums the same terms in float32 (relative error about 1e-6,
tested layer by layer in tests/layers). Where such an error tips a value over the edge between two codes, the next
layer sees one grid step of difference, 1/255 of its range. So whole networks are compared by SQNR: the disagreement
must be far below the quantization error itself.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from mezzotint.layers.int_base import IntWeightedLayer
from mezzotint.layers.simulated import SimulatedLayer
from mezzotint.layers.swap import to_integer
from mezzotint.models.denoiser import network_of, predict_eps, sample_shape
from mezzotint.pipeline import simulate, with_network
from mezzotint.recipes.registry import make_config
from mezzotint.sampling.config import SamplerConfig
from mezzotint.sampling.schedulers import make_scheduler
from mezzotint.sampling.trajectory import iterate, sample
from tiny import tiny_pipeline

SAMPLER = SamplerConfig(steps=6)
# A tipped code differs by one step, rounding by up to half of one, and tipped codes tip further ones downstream.
# Measured on this model: 17 dB (w8a8) to over 30 dB (w4a8) below the quantization error.
MARGIN_DB = 10


def decibels(reference: torch.Tensor, other: torch.Tensor) -> float:
    noise = float((reference - other).double().square().sum())
    return float("inf") if noise == 0 else float(10 * torch.log10(reference.double().square().sum() / noise))


@functools.cache
def networks(bits: str) -> tuple[nn.Module, nn.Module, nn.Module]:
    pipeline = tiny_pipeline()
    config = make_config("nearest", bits, steps=6, calib_size=24, forward_batch=8)
    simulated = simulate(pipeline, config, device="cpu").network
    return network_of(pipeline), simulated, to_integer(simulated)


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4", "w3a6", "w2a8", "w4a32"])
def test_integer_equals_simulated_far_below_the_quantization_error(bits: str) -> None:
    floating, simulated, integer = networks(bits)
    pipeline = tiny_pipeline()
    states = list(iterate(floating, make_scheduler(pipeline, SAMPLER), [0, 1], shape=sample_shape(pipeline)))
    for state in states[1:]:
        with torch.no_grad():
            eps = [predict_eps(n, state.x_t, state.t) for n in (floating, simulated, integer)]
        assert decibels(eps[1], eps[2]) > decibels(eps[0], eps[1]) + MARGIN_DB


def test_every_simulated_layer_becomes_an_integer_one_and_no_float_weight_stays() -> None:
    _, simulated, integer = networks("w4a8")
    layers = [name for name, layer in simulated.named_modules() if isinstance(layer, SimulatedLayer)]
    for name in layers:
        assert isinstance(integer.get_submodule(name), IntWeightedLayer), name
    assert not [name for name, _ in integer.named_parameters() if name.rpartition(".")[0] in layers]


def test_integers_do_not_depend_on_the_batch_they_are_drawn_in() -> None:
    pipeline = tiny_pipeline()
    integer = with_network(pipeline, networks("w4a8")[2])
    together = sample(integer, [0, 1, 2, 3], sampler=SAMPLER, batch_size=4)
    apart = sample(integer, [2], sampler=SAMPLER, batch_size=1)
    assert decibels(together[2:3], apart) > 40
