"""The whole method on each of the paper's five families: from seeds to integers, to a folder and back."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from families import CONDITIONAL, FAMILIES
from interrupts import Killer
from mezzotint.artifact import load_quantized, save_quantized
from mezzotint.calibration.rows import CalibrationSet
from mezzotint.config import QuantizeConfig, RangeConfig
from mezzotint.layers.simulated import FakeQuantMatMul, SimulatedLayer
from mezzotint.layers.swap import to_integer
from mezzotint.models.conditioning import condition_inputs, encode_conditions
from mezzotint.models.denoiser import example_inputs
from mezzotint.models.families import family_of
from mezzotint.models.units import UNIT_TYPES
from mezzotint.pipeline import Simulation, quantize, simulate
from mezzotint.recipes.registry import make_config
from mezzotint.sampling.trajectory import sample

N = 6
LAYER_DB = 100  # float32 sums of a few hundred terms: relative error near 1e-6
every_family = pytest.mark.parametrize("family", list(FAMILIES))


def config(family: Any, **changes: Any) -> QuantizeConfig:
    small = {"steps": 4, "calib_size": N, "pilot_size": 2, "forward_batch": 4, "iters": 2, "batch_size": 2}
    made = make_config("eda-dm", "w4a8", family=family, drift_trajectories=1, **{**small, **changes})
    return made.model_copy(update={"ranges": RangeConfig(candidates=6)})  # a coarse search: most of the time is there


@functools.cache
def learned(family: str) -> tuple[DiffusionPipeline, Simulation]:
    pipeline = FAMILIES[family]()
    return pipeline, simulate(pipeline, config(family), device="cpu")


@every_family
def test_all_verbs_run_and_the_results_name_every_unit(family: str) -> None:
    pipeline, simulation = learned(family)
    assert family_of(pipeline) == family
    units = simulation.results["units"]
    kinds = Counter(unit["kind"] for unit in units)
    assert kinds["transformer" if family in CONDITIONAL else "attention"] > 0
    assert kinds["resnet"] >= 8
    assert all(unit["final_loss"] <= unit["nearest_loss"] for unit in units)
    assert simulation.results["output_correction"]["trajectories"] == 1


@every_family
def test_split_shortcuts_act(family: str) -> None:
    """The released code's switch does nothing for Stable Diffusion."""
    simulation = learned(family)[1]
    split = {name for name, spec in simulation.plan.items() if spec.weight is not None and spec.weight.groups}
    assert len(split) == 4
    assert all(name.startswith("up_blocks") and name.endswith("conv_shortcut") for name in split)
    for name in split:
        layer: Any = simulation.network.get_submodule(name)
        assert layer.input_quantizer.scale[0] != layer.input_quantizer.scale[1]


@pytest.mark.parametrize("family", CONDITIONAL)
def test_the_context_is_quantized_where_it_enters(family: str) -> None:
    plan = learned(family)[1].plan
    contexts = [name for name in plan if name.endswith(("attn2.to_k", "attn2.to_v"))]
    assert contexts
    for name in contexts:
        grid = plan[name].input
        assert grid is not None
        assert (grid.bits, grid.groups) == (8, ())
    assert all(f"{name.removesuffix('.to_k')}.processor.qk" in plan for name in contexts if name.endswith("to_k"))


@every_family
def test_every_integer_layer_equals_its_simulated_twin(family: str) -> None:
    pipeline, simulation = learned(family)
    simulated, integer = simulation.network, to_integer(simulation.network)
    layers = {n: m for n, m in simulated.named_modules() if isinstance(m, SimulatedLayer | FakeQuantMatMul)}
    compared = set()

    def compare(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            compared.add(name)
            noise = (output - integer.get_submodule(name)(*args)).double().square().sum()
            assert 10 * torch.log10(output.double().square().sum() / noise.clamp_min(1e-300)) > LAYER_DB, name

        return hook

    handles = [layer.register_forward_hook(compare(name)) for name, layer in layers.items()]
    with torch.no_grad():
        simulated(*example_inputs(pipeline.unet, batch=2))
    for handle in handles:
        handle.remove()
    assert compared == layers.keys()


@every_family
def test_a_saved_model_draws_the_same_images_bit_for_bit(family: str, tmp_path: Path) -> None:
    pipeline, made = FAMILIES[family](), config(family)
    quantized = quantize(pipeline, config=made.model_copy(update={"reconstruction": None}), device="cpu")
    loaded = load_quantized(save_quantized(quantized, tmp_path / "model"))
    assert type(loaded.unet) is type(pipeline.unet)
    conditions = encode_conditions(pipeline, condition_inputs(pipeline, "evaluation", 2))
    first, again = (sample(p, [0, 1], sampler=made.sampler, conditions=conditions) for p in (quantized, loaded))
    assert torch.equal(first, again)


@pytest.mark.slow
def test_a_killed_run_of_a_text_model_goes_on_with_its_conditions(tmp_path: Path) -> None:
    pipeline, whole = learned("sd")
    with pytest.raises(KeyboardInterrupt):
        simulate(pipeline, config("sd"), device="cpu", progress=Killer(), resume_dir=tmp_path)
    assert len(list(tmp_path.glob("unit-*.safetensors"))) == 2
    resumed = simulate(pipeline, config("sd"), device="cpu", resume_dir=tmp_path)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name


@pytest.mark.parametrize(("scale", "rows"), [(3.0, 2 * N), (1.0, N)])
def test_guidance_doubles_the_rows_and_nothing_breaks_without(
    scale: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[CalibrationSet] = []
    build = CalibrationSet.of_trajectories

    def noted(*args: Any) -> CalibrationSet:
        made.append(build(*args))
        return made[-1]

    monkeypatch.setattr(CalibrationSet, "of_trajectories", noted)
    pipeline = FAMILIES["ldm-class"]()
    made_of = config("ldm-class", guidance_scale=scale).model_copy(update={"reconstruction": None})
    simulate(pipeline, made_of, device="cpu")
    assert len(made[0]) == rows
    states = made[0].cond["encoder_hidden_states"]
    nothing = pipeline.class_embedder.embedding.weight[-1]
    assert int((states[:, 0] == nothing).all(1).sum()) == rows - N


@pytest.mark.slow
def test_half_precision_caches_in_files_are_the_same_problems_to_learn() -> None:
    """The first unit's is the same but for rounding; the others follow what was learned, one turned rounding apart."""
    _, full = learned("ldm-class")
    half = simulate(FAMILIES["ldm-class"](), config("ldm-class", cache_dtype="float16", cache_gb=1e-5), device="cpu")
    before, after = ([unit["nearest_loss"] for unit in made.results["units"]] for made in (full, half))
    assert after[0] == pytest.approx(before[0], rel=1e-2)
    assert sum(after) == pytest.approx(sum(before), rel=0.25)
    assert all(unit["final_loss"] <= unit["nearest_loss"] for unit in half.results["units"])


def test_blocks_that_nobody_declared_are_learned_layer_by_layer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(UNIT_TYPES, BasicTransformerBlock)
    pipeline = FAMILIES["ldm-class"]()
    with caplog.at_level(logging.WARNING, logger="mezzotint"):
        simulation = simulate(pipeline, config("ldm-class", iters=1), device="cpu")
    [line] = [record.getMessage() for record in caplog.records if "undeclared" in record.getMessage()]
    assert "GEGLU (4 layers)" in line
    kinds = {unit["name"]: unit["kind"] for unit in simulation.results["units"]}
    block = "mid_block.attentions.0.transformer_blocks.0"
    assert (kinds[f"{block}.attn2"], kinds[f"{block}.ff.net.0.proj"]) == ("attention", "layer")
