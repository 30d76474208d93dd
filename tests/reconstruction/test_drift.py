"""Output correction: what it promises about the mean error that a sampler piles up."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mezzotint.calibration.ranges import quantizers
from mezzotint.config import QuantizeConfig, with_settings
from mezzotint.errors import ConfigError
from mezzotint.layers.attention import QuantizedAttnProcessor
from mezzotint.layers.float_attention import float_products, output_shift_of
from mezzotint.models.denoiser import network_of
from mezzotint.pipeline import simulate
from mezzotint.progress import NullProgress
from mezzotint.recipes.registry import RECIPES, make_config
from mezzotint.reconstruction.drift import correct_output_, drift_weights, mean_errors
from mezzotint.reconstruction.paired import PairedTrajectories
from mezzotint.sampling.schedulers import make_scheduler
from tiny import tiny_pipeline

CPU = torch.device("cpu")
SMALL = {"steps": 6, "calib_size": 4, "pilot_size": 2, "forward_batch": 3, "drift_trajectories": 5}


def config() -> QuantizeConfig:
    return make_config("eda-dm", "w4a8", **SMALL)


def simulated_network(bits: str) -> Any:
    plain = make_config("nearest", bits, **{**SMALL, "drift_trajectories": 0})
    return simulate(tiny_pipeline(), with_settings(plain, {"ranges.candidates": 2}), device="cpu").network


def coarsen_(simulated: nn.Module) -> None:
    """Gives probabilities steps so wide that most become 0: rows of attention lose their mass, and eps its mean."""
    for module in simulated.modules():
        if isinstance(module, QuantizedAttnProcessor):
            module.pv.input_quantizer.scale.fill_(0.05)  # type: ignore[union-attr, operator]


def weighted_error(network: nn.Module) -> Tensor:
    run = PairedTrajectories(tiny_pipeline(), config(), config().drift_trajectories, CPU)
    return (drift_weights(run.scheduler)[:, None] * mean_errors(run, network, NullProgress()).errors).sum(0)


def test_the_weights_telescope_and_standing_steps_have_none() -> None:
    scheduler = make_scheduler(tiny_pipeline(), 100)
    weights = drift_weights(scheduler)
    alpha = scheduler.alphas_cumprod.double()[scheduler.times[0]]
    assert_close(weights.sum(), ((1 - alpha) / alpha).sqrt())
    still = torch.tensor([here == after for here, after in zip(scheduler.times, scheduler.times[1:], strict=False)])
    assert still.any()
    assert bool((weights[:-1][still] == 0).all())
    assert bool((weights[:-1][~still] > 0).all())


def test_a_constant_error_is_taken_off_exactly() -> None:
    pipeline = tiny_pipeline()
    shifted = copy.deepcopy(network_of(pipeline))
    shifted.conv_out.bias += torch.tensor([0.01, -0.02, 0.03])  # type: ignore[union-attr, operator]
    found = correct_output_(pipeline, shifted, config(), CPU, NullProgress())
    assert_close(torch.tensor(found["bias"]), torch.tensor([0.01, -0.02, 0.03]), atol=1e-6, rtol=0)
    assert_close(shifted.conv_out.bias, network_of(pipeline).conv_out.bias, atol=1e-6, rtol=0)  # type: ignore[union-attr, arg-type]


def test_the_drift_of_a_calibrated_network_vanishes() -> None:
    settings = {**SMALL, "iters": 2, "batch_size": 2}
    plain = simulate(tiny_pipeline(), make_config(**{**settings, "drift_trajectories": 0}), device="cpu")
    corrected = simulate(tiny_pipeline(), make_config(**settings), device="cpu")
    before, after = weighted_error(plain.network), weighted_error(corrected.network)
    found = corrected.results["output_correction"]
    assert_close(before, -torch.tensor(found["drift"], dtype=torch.float64))
    assert_close(after, (1 - found["share"]) * before, atol=1e-3 * float(before.abs().max()), rtol=0)
    assert "output_correction" not in plain.results
    assert output_shift_of(plain.network) is None


def test_the_shift_makes_the_drift_in_floats_that_on_codes() -> None:
    simulated = simulated_network("w4a8")
    coarsen_(simulated)
    found = correct_output_(tiny_pipeline(), simulated, config(), CPU, NullProgress())
    shift = output_shift_of(simulated)
    assert shift is not None
    assert found["output_shift"] == shift.model_dump(mode="json")
    wanted = weighted_error(simulated)
    with float_products(simulated):
        moved = weighted_error(simulated)
    weight = drift_weights(make_scheduler(tiny_pipeline(), config().sampler)).sum()
    assert float((moved - wanted).abs().max()) > 0.01
    assert_close(moved - weight * torch.tensor(shift.values), wanted, atol=1e-4, rtol=0)
    assert all(grid.enabled for grid in quantizers(simulated).values())


def test_without_grids_for_products_there_is_no_shift() -> None:
    simulated = simulated_network("w4a32")
    assert "output_shift" not in correct_output_(tiny_pipeline(), simulated, config(), CPU, NullProgress())
    assert output_shift_of(simulated) is None


@pytest.mark.parametrize("shift", [[0.05, -0.05, 0.05], [0.0, 0.0, 0.0]])
def test_samples_end_no_farther_from_the_float_ones_than_before(shift: list[float]) -> None:
    """Whatever the error is, the share that is kept is the best of those tried, and nothing is among them."""
    simulated = simulated_network("w4a8")
    simulated.conv_out.bias += torch.tensor(shift)  # type: ignore[union-attr, operator]
    start = simulated.conv_out.bias.clone()  # type: ignore[union-attr, operator]
    found = correct_output_(tiny_pipeline(), simulated, config(), CPU, NullProgress())
    errors = found["sample_mse"]
    assert set(errors) == {"1.0", "0.5", "0.0"}
    assert errors[str(found["share"])] == min(errors.values())
    taken_off = start - simulated.conv_out.bias  # type: ignore[operator]
    assert_close(taken_off, torch.tensor(found["bias"]), atol=1e-6, rtol=0)
    if any(shift):
        assert found["share"] > 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_only_our_recipe_corrects(recipe: str) -> None:
    assert (RECIPES[recipe]("w4a8").drift_trajectories > 0) == (recipe == "eda-dm")


def test_a_network_without_that_bias_is_told_so() -> None:
    pipeline = tiny_pipeline()
    bare = copy.deepcopy(network_of(pipeline))
    bare.conv_out.bias = None  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="drift_trajectories: conv_out of this network has no bias"):
        correct_output_(pipeline, bare, config(), CPU, NullProgress())
