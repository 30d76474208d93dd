"""Time layers apart: what they are, that their grids hold every time, that nothing but their own block learns them."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.testing import assert_close

from measures import decibels
from mezzotint.artifact import load_quantized, save_quantized
from mezzotint.calibration.time_ranges import timed_quantizers
from mezzotint.config import QuantizeConfig, with_settings
from mezzotint.errors import ModelError
from mezzotint.fusing.backend import fusing_backend
from mezzotint.inspection import inspect
from mezzotint.layers.simulated import SimulatedLayer
from mezzotint.layers.swap import to_integer
from mezzotint.models.denoiser import example_inputs, network_of, predict_eps
from mezzotint.models.time_block import TimeBlock, distinct_times, time_layers
from mezzotint.models.units import list_units
from mezzotint.pipeline import Simulation, quantize, simulate
from mezzotint.progress import NullProgress
from mezzotint.recipes.registry import make_config
from mezzotint.reconstruction.checkpoints import Checkpoints
from mezzotint.reconstruction.time_block import NAME, reconstruct_time_layers, units_without_time
from mezzotint.sampling.schedulers import make_scheduler
from tiny import tiny_pipeline, tiny_text_unet, tiny_unet
from typecheck import switched_off

CPU = torch.device("cpu")
SMALL = {"steps": 6, "calib_size": 6, "forward_batch": 4}
QUICK: dict[str, Any] = {"ranges.candidates": 2}


def config(recipe: str = "nearest", bits: str = "w4a8", **changes: Any) -> QuantizeConfig:
    return with_settings(make_config(recipe, bits, **SMALL, **changes), {**QUICK, "time_layers": "apart"})


@functools.cache
def simulation(recipe: str, bits: str = "w4a8", **changes: Any) -> Simulation:
    return simulate(tiny_pipeline(), config(recipe, bits, **changes), device="cpu")


@functools.cache
def learned() -> tuple[nn.Module, dict[str, Any]]:
    """The time layers of a network learned, and the result."""
    network = copy.deepcopy(simulation("nearest", "w3a8").network)
    settings = config("tfmq-dm", "w3a8", iters=60, batch_size=4)
    moments = times().tolist()
    [result] = reconstruct_time_layers(
        network_of(tiny_pipeline()), network, moments, settings, CPU, NullProgress(), Checkpoints(None, {})
    )
    return network, result


def times() -> Tensor:
    return torch.tensor(distinct_times(make_scheduler(tiny_pipeline(), config().sampler).times))


@pytest.mark.parametrize("network", [tiny_unet(), tiny_text_unet()])
def test_the_block_says_what_the_residual_blocks_are_told(network: nn.Module) -> None:
    told: list[Tensor] = []
    blocks = [module for module in network.modules() if isinstance(module, ResnetBlock2D)]
    handles = [block.time_emb_proj.register_forward_hook(lambda _, args, out: told.append(out)) for block in blocks]  # type: ignore[union-attr]
    with torch.no_grad():
        inputs = example_inputs(network)
        network(*inputs)
        for handle in handles:
            handle.remove()
        said = TimeBlock(network)(inputs[1])
    assert said.shape[1] == sum(part.shape[1] for part in told)
    assert_close(said.sum(), torch.cat(told, dim=1).sum(), rtol=1e-5, atol=1e-5)
    assert len(time_layers(network)) == 2 + len(blocks)


def test_a_network_that_adds_classes_to_the_time_is_refused() -> None:
    with pytest.raises(ModelError, match="adds the embedding of a condition"):
        time_layers(tiny_unet(num_class_embeds=4))


def test_every_other_layer_keeps_its_unit() -> None:
    network = tiny_unet()
    units, apart = list_units(network, *example_inputs(network)), time_layers(network)
    left = units_without_time(units, network)
    before = [layer for unit in units for layer in unit.layers if layer not in apart]
    assert [layer for unit in left for layer in unit.layers] == before


@torch.no_grad()
def test_grids_hold_every_input_of_every_time() -> None:
    """Nothing saturates: an input is off by at most half a step of its own time's grid."""
    network = simulation("nearest").network
    off: list[Tensor] = []

    def compare(grid: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        x, rows = inputs
        assert x.shape[0] == len(grid.scale)
        off.append(((output - x).abs().amax(dim=1) / grid.scale[rows]).max())

    handles = [grid.register_forward_hook(compare) for grid in timed_quantizers(network)]
    TimeBlock(network)(times())
    for handle in handles:
        handle.remove()
    assert len(off) == len(time_layers(network_of(tiny_pipeline())))
    assert max(off) <= 0.5 + 1e-3


@torch.no_grad()
def test_grids_by_time_lose_less_than_one_for_all() -> None:
    floating = TimeBlock(network_of(tiny_pipeline()))(times())
    shared = simulate(tiny_pipeline(), with_settings(config(bits="w8a4"), {"time_layers": "as-others"}), device="cpu")
    apart = simulation("nearest", "w8a4")
    losses = [(TimeBlock(s.network)(times()) - floating).square().mean() for s in (shared, apart)]
    assert losses[1] < losses[0]


def block_loss(network: nn.Module) -> float:
    with torch.no_grad():
        said, wanted = (TimeBlock(n)(times()) for n in (network, network_of(tiny_pipeline())))
    return float((said - wanted).square().sum(1).mean())


def test_learning_improves_the_block() -> None:
    network, result = learned()
    assert result["learned_loss"] < result["nearest_loss"]
    assert_close(block_loss(network), result["final_loss"], rtol=1e-4, atol=0)


def test_no_other_unit_learns_a_time_layer_and_a_resumed_run_ends_the_same(tmp_path: Path) -> None:
    settings = config("tfmq-dm", iters=2, batch_size=2)
    first = simulate(tiny_pipeline(), settings, device="cpu", resume_dir=tmp_path)
    result, *others = first.results["units"]
    assert result["name"] == NAME
    assert not [unit for unit in others if "time_embedding" in unit["name"]]
    assert_close(block_loss(first.network), result["final_loss"], rtol=1e-4, atol=0)
    again = simulate(tiny_pipeline(), settings, device="cpu", resume_dir=tmp_path)
    assert again.results["units"][0] == result
    for (name, one), (_, other) in zip(first.network.named_buffers(), again.network.named_buffers(), strict=True):
        assert torch.equal(one, other), name


@torch.no_grad()
def test_integer_equals_simulated_layer_by_layer() -> None:
    simulated, _ = learned()
    integer, compared = to_integer(simulated), []

    def compare(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            compared.append(name)
            assert decibels(output, integer.get_submodule(name)(*args)) > 100, name

        return hook

    apart = time_layers(network_of(tiny_pipeline()))
    handles = [simulated.get_submodule(name).register_forward_hook(compare(name)) for name in apart]
    predict_eps(simulated, torch.zeros(3, 3, 16, 16), torch.tensor([800, 3, 32]))
    for handle in handles:
        handle.remove()
    assert compared == [name for name in compared if name in apart]
    assert set(compared) == set(apart)


def test_an_artifact_keeps_its_tables_and_says_so(tmp_path: Path) -> None:
    quantized = quantize(tiny_pipeline(), config=config(), device="cpu")
    loaded: Any = load_quantized(save_quantized(quantized, tmp_path / "artifact"))
    x, t = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([800, 3, 32])
    with torch.no_grad():
        assert torch.equal(predict_eps(loaded.unet, x, t), predict_eps(network_of(quantized), x, t))
    counted = {layer["name"]: layer["times"] for layer in inspect(loaded)["layers"] if layer["times"]}
    assert counted == dict.fromkeys(time_layers(network_of(tiny_pipeline())), len(times()))


@torch.no_grad()
def test_the_fused_block_still_knows_the_time() -> None:
    """Traced once, it answers to other times than those it was traced with."""
    block = TimeBlock(to_integer(simulation("nearest", "w4a8").network))
    plain = [block(moment) for moment in (times(), times().flip(0))]
    with switched_off():
        fused: Any = torch.compile(block, backend=fusing_backend, fullgraph=True, dynamic=False)
        assert torch.equal(fused(times()), plain[0])
        assert torch.equal(fused(times().flip(0)), plain[1])


def test_float_activations_need_no_tables() -> None:
    simulated = simulation("nearest", "w4a32").network
    assert not timed_quantizers(simulated)
    assert not [name for name, _ in simulated.named_modules() if name == "time_proj.time_proj"]
    assert [layer for layer in simulated.modules() if isinstance(layer, SimulatedLayer)]
