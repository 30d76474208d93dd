from __future__ import annotations

import copy
import math

from torch import nn

from mezzotint.config import with_settings
from mezzotint.evaluation.layers import LayerSqnr, layer_sqnr
from mezzotint.layers.swap import to_integer
from mezzotint.models.denoiser import sample_shape
from mezzotint.pipeline import simulate
from mezzotint.recipes.registry import make_config
from mezzotint.sampling.schedulers import make_scheduler
from tiny import tiny_pipeline

SMALL = {"steps": 3, "calib_size": 2, "pilot_size": 2, "forward_batch": 4, "drift_trajectories": 0}


def measured(pipeline: object, network: nn.Module, config: object) -> dict[str, float]:
    found = layer_sqnr(
        pipeline.unet,  # type: ignore[attr-defined]
        network,
        make_scheduler(pipeline, config.sampler),  # type: ignore[arg-type, attr-defined]
        range(2),
        shape=sample_shape(pipeline),  # type: ignore[arg-type]
        steps=[0, 2],
    )
    assert [layer.sqnr_db for layer in found] == sorted(layer.sqnr_db for layer in found)
    return {layer.name: layer.sqnr_db for layer in found}


def test_every_layer_answers_for_its_own_error() -> None:
    pipeline = tiny_pipeline()
    config = with_settings(make_config("nearest", "w8a8", **SMALL), {"ranges.candidates": 2})
    simulated = simulate(pipeline, config).network
    before = measured(pipeline, simulated, config)
    layers = {name for name, m in pipeline.unet.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert set(before) == layers
    assert all(20 < value < 80 for value in before.values())

    integer = measured(pipeline, to_integer(simulated), config)
    assert all(abs(integer[name] - before[name]) < 0.1 for name in before)

    spoiled = copy.deepcopy(simulated)
    spoiled.get_submodule("conv_in").weight_codes.zero_()
    after = measured(pipeline, spoiled, config)
    assert after["conv_in"] < 3
    assert {name for name in before if after[name] != before[name]} == {"conv_in"}


def test_layers_with_a_grid_for_every_time_are_left_out() -> None:
    pipeline = tiny_pipeline()
    config = with_settings(make_config("nearest", "w8a8", **SMALL), {"ranges.candidates": 2, "time_layers": "apart"})
    found = measured(pipeline, simulate(pipeline, config).network, config)
    assert "conv_in" in found
    assert not [name for name in found if "time" in name]


def test_no_error_is_infinite() -> None:
    assert LayerSqnr.model_validate_json(LayerSqnr(name="a", sqnr_db=math.inf).model_dump_json()).sqnr_db == math.inf
