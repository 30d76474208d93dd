"""The whole pipeline on a GPU, small: every recipe runs there, and its network draws what it draws on the CPU."""

from __future__ import annotations

import pytest
import torch

from mezzotint.pipeline import simulate, with_network
from mezzotint.recipes.registry import RECIPES, make_config
from mezzotint.sampling.trajectory import sample
from tiny import tiny_pipeline

SMALL = {"steps": 6, "calib_size": 8, "pilot_size": 4, "forward_batch": 4}

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_runs_on_a_gpu(recipe: str) -> None:
    learns = make_config(recipe, "w4a8").reconstruction is not None
    config = make_config(recipe, "w4a8", **SMALL, **({"iters": 6, "batch_size": 4} if learns else {}))
    pipeline = tiny_pipeline()
    network = simulate(pipeline, config, device="cuda").network
    assert all(tensor.device.type == "cuda" for tensor in (*network.parameters(), *network.buffers()))
    with torch.no_grad():
        there = sample(with_network(pipeline, network), range(3), sampler=config.sampler)
        here = sample(with_network(pipeline, network.cpu()), range(3), sampler=config.sampler)
    noise, signal = (there - here).square().mean(), here.square().mean()
    # Codes tip. Tried on a CPU: sums in another order left 21 dB and more, convolutions in TF32 17 and more.
    assert 10 * torch.log10(signal / noise) > 15
