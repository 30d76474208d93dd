"""Preparing a network: layers exchanged by name, float weights shared and never written."""

from __future__ import annotations

import torch

from mezzotint.calibration.plan import plan_layers
from mezzotint.calibration.ranges import fit_weights_
from mezzotint.config import QuantizeConfig, RangeConfig
from mezzotint.layers.simulated import SimulatedLayer
from mezzotint.layers.swap import prepare
from mezzotint.models.units import layers_by_role
from mezzotint.progress import NullProgress
from tiny import tiny_unet


def test_simulated_layers_share_the_float_weights_and_moving_either_leaves_the_other() -> None:
    network = tiny_unet()
    plan = plan_layers(network, QuantizeConfig(), splits={}, edges=layers_by_role(network))
    simulated = prepare(network, plan)
    before = {name: values.clone() for name, values in network.state_dict().items()}
    for name, layer in simulated.named_modules():
        if isinstance(layer, SimulatedLayer):
            assert layer.weight.data_ptr() == network.get_submodule(name).weight.data_ptr(), name
    fit_weights_(simulated, RangeConfig(candidates=4), NullProgress())
    simulated.to(torch.float64)
    assert all(torch.equal(values, before[name]) for name, values in network.state_dict().items())
    assert {values.dtype for values in network.parameters()} == {torch.float32}
