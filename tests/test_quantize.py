"""The whole run on a tiny model: what it promises, whatever the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from interrupts import Killer
from measures import decibels
from mezzotint.calibration.ranges import float_arithmetic
from mezzotint.config import QuantizeConfig, with_settings
from mezzotint.errors import ConfigError, ModelError, ResumeError
from mezzotint.layers.simulated import SimulatedLayer
from mezzotint.models.denoiser import network_of, predict_eps, sample_shape
from mezzotint.pipeline import Simulation, simulate
from mezzotint.recipes.registry import RECIPES, make_config
from mezzotint.sampling.schedulers import make_scheduler
from mezzotint.sampling.trajectory import iterate
from tiny import tiny_pipeline

SMALL: dict[str, Any] = {"steps": 6, "calib_size": 10, "pilot_size": 4, "forward_batch": 4}


def config(recipe: str = "eda-dm", bits: str = "w4a8", **changes: Any) -> QuantizeConfig:
    learning = {"iters": 6, "batch_size": 4} if learns(recipe) else {}
    correcting = {"drift_trajectories": 2} if recipe == "eda-dm" else {}
    made = make_config(recipe, bits, **{**SMALL, **learning, **correcting, **changes})
    fewer = min(made.ranges.candidates, 12)  # most of the time is in the search
    return with_settings(made, {"ranges.candidates": fewer, "ranges.ema_batch": 4})


def learns(recipe: str) -> bool:
    return make_config(recipe).reconstruction is not None


@pytest.fixture(scope="module")
def learned() -> Simulation:
    return simulate(tiny_pipeline(), config(), device="cpu")


def eps(network: nn.Module) -> torch.Tensor:
    """Output of `network` on rows of a float trajectory that calibration does not use."""
    pipeline = tiny_pipeline()
    states = iterate(network_of(pipeline), make_scheduler(pipeline, 6), [0, 1, 2], shape=sample_shape(pipeline))
    state = next(state for state in states if state.step == 2)
    with torch.no_grad():
        return predict_eps(network, state.x_t, state.t)


def test_a_unit_never_ends_above_its_start(learned: Simulation) -> None:
    units = learned.results["units"]
    assert len(units) == 18
    for unit in units:
        assert unit["final_loss"] <= kept_loss(unit) <= unit["nearest_loss"]


def kept_loss(unit: dict[str, Any]) -> float:
    return float(unit["learned_loss"] if unit["kept"] == "learned" else unit["nearest_loss"])


def test_bias_correction_lowers_most_losses_and_without_it_nothing_changes(learned: Simulation) -> None:
    made = config()
    assert made.reconstruction is not None
    learning = made.reconstruction.model_copy(update={"bias_correction": True})
    corrected = simulate(tiny_pipeline(), made.model_copy(update={"reconstruction": learning}), device="cpu")
    assert all(unit["final_loss"] == kept_loss(unit) for unit in learned.results["units"])
    assert all(unit["final_loss"] <= kept_loss(unit) for unit in corrected.results["units"])
    assert sum(unit["final_loss"] < kept_loss(unit) for unit in corrected.results["units"]) > 12


def test_learning_helps_most_units(learned: Simulation) -> None:
    assert sum(unit["kept"] == "learned" for unit in learned.results["units"]) > 9


def test_selection_is_recorded_and_adds_up(learned: Simulation) -> None:
    selection = learned.results["selection"]
    assert sum(selection["counts"]) == 10
    assert selection["times"] == sorted(set(selection["times"]), reverse=True)
    assert len(selection["density"]) == len(selection["variety"]) == len(selection["counts"])


def test_the_same_seed_gives_the_same_network_and_the_float_model_is_untouched(learned: Simulation) -> None:
    pipeline = tiny_pipeline()
    before = {k: v.clone() for k, v in pipeline.unet.state_dict().items()}
    again = simulate(pipeline, config(), device="cpu")
    for name, tensor in learned.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name]), name
    assert all(torch.equal(tensor, before[k]) for k, tensor in pipeline.unet.state_dict().items())


def test_simulated_layers_with_their_grids_off_are_the_float_model() -> None:
    network = simulate(tiny_pipeline(), config("nearest"), device="cpu").network
    with float_arithmetic(network):
        assert_close(eps(network), eps(network_of(tiny_pipeline())), rtol=1e-4, atol=1e-5)


def test_eight_bits_are_close_to_the_float_model() -> None:
    network = simulate(tiny_pipeline(), config("nearest", "w8a8", calib_size=40), device="cpu").network
    assert decibels(eps(network_of(tiny_pipeline())), eps(network)) > 20


def test_float_activations_have_no_grids() -> None:
    simulation = simulate(tiny_pipeline(), config("nearest", "w8a32"), device="cpu")
    assert all(spec.input is None and spec.kind != "matmul" for spec in simulation.plan.values())
    assert decibels(eps(network_of(tiny_pipeline())), eps(simulation.network)) > 30


@pytest.mark.parametrize("recipe", sorted(RECIPES))
@pytest.mark.parametrize("bits", ["w3a6", "w2a32"])
def test_every_recipe_runs_at_every_kind_of_bits(recipe: str, bits: str) -> None:
    changes = {"iters": 2} if learns(recipe) else {}
    assert torch.isfinite(eps(simulate(tiny_pipeline(), config(recipe, bits, **changes), device="cpu").network)).all()


def test_split_shortcuts_have_two_scales(learned: Simulation) -> None:
    layer = learned.network.get_submodule("up_blocks.1.resnets.0.conv_shortcut")
    assert isinstance(layer, SimulatedLayer)
    assert layer.weight_scale.shape[0] == 2
    assert layer.input_quantizer is not None
    assert layer.input_quantizer.scale.shape == (2,)
    assert layer.input_quantizer.scale[0] != layer.input_quantizer.scale[1]


def test_memory_setting_changes_nothing_but_memory(learned: Simulation) -> None:
    tight = simulate(tiny_pipeline(), config(cache_gb=1e-5), device="cpu")
    for name, tensor in learned.network.state_dict().items():
        assert torch.equal(tensor, tight.network.state_dict()[name]), name


def test_weights_are_learned_before_the_steps_and_float_activations_see_them(tmp_path: Path) -> None:
    """With the second walk as good as off, the codes of both walks are those of weights quantized alone."""
    few = {"iters": 3, "calib_size": 4, "steps": 4}
    whole = simulate(tiny_pipeline(), config("q-diffusion", **few), device="cpu", resume_dir=tmp_path)
    alone = simulate(tiny_pipeline(), config("q-diffusion", "w4a32", **few), device="cpu").network.state_dict()
    codes = {name: value for name, value in whole.network.state_dict().items() if name.endswith("weight_codes")}
    assert all(torch.equal(value, alone[name]) for name, value in codes.items())
    for unit in whole.results["units"]:
        assert unit["steps"]["name"] == unit["name"]
        assert unit["seconds"] > unit["steps"]["seconds"]
    for path in tmp_path.glob("steps-01*"):  # as if it had been killed in the second walk
        path.unlink()
    resumed = simulate(tiny_pipeline(), config("q-diffusion", **few), device="cpu", resume_dir=tmp_path)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, learned: Simulation) -> None:
    with pytest.raises(KeyboardInterrupt):
        simulate(tiny_pipeline(), config(), device="cpu", progress=Killer(), resume_dir=tmp_path)
    assert sorted(p.stem for p in tmp_path.glob("unit-*.safetensors")) == ["unit-000", "unit-001"]
    resumed = simulate(tiny_pipeline(), config(), device="cpu", resume_dir=tmp_path)
    for name, tensor in learned.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name
    with pytest.raises(ResumeError, match="another run"):
        simulate(tiny_pipeline(seed=1), config(), device="cpu", resume_dir=tmp_path)


def test_fisher_weighting_learns_something_else_and_is_recorded(learned: Simulation) -> None:
    fisher = simulate(tiny_pipeline(), config(block_weighting="fisher"), device="cpu")
    assert torch.isfinite(eps(fisher.network)).all()
    assert [u["nearest_loss"] for u in fisher.results["units"]] != [u["nearest_loss"] for u in learned.results["units"]]


def test_a_quantized_model_is_not_quantized_again() -> None:
    pipeline = tiny_pipeline()
    pipeline.unet.quantization = "anything"
    with pytest.raises(ModelError, match="quantized already"):
        simulate(pipeline, config(), device="cpu")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"iters": 0}, "reconstruction.iters"),
        ({"colour": 3}, "no option 'colour'"),
        ({"eta": 2.0}, "sampler.eta"),
    ],
)
def test_options_out_of_range_are_one_clear_line(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make_config(**changes)


def test_options_without_effect_and_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="has no effect: recipe 'nearest' has no reconstruction"):
        make_config("nearest", iters=3)
    with pytest.raises(ConfigError, match="did you mean 'eda-dm'"):
        make_config("eda-md")
    with pytest.raises(ConfigError, match="presets are"):
        make_config(preset="slow")


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_configs_survive_a_round_trip(recipe: str) -> None:
    made = make_config(recipe, "w4a8")
    assert QuantizeConfig.model_validate_json(made.model_dump_json()) == made
