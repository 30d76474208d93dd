"""What one unit learns from: which layers, along which axis, with whose gradients; rounding and steps apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mezzotint.calibration.plan import plan_layers
from mezzotint.calibration.ranges import fit_ranges
from mezzotint.calibration.rows import CalibrationSet
from mezzotint.config import QuantizeConfig, RangeConfig, ReconstructionConfig
from mezzotint.layers.swap import prepare
from mezzotint.models.denoiser import example_inputs
from mezzotint.models.units import Unit, layers_by_role, list_units
from mezzotint.progress import NullProgress
from mezzotint.reconstruction.learn import TOGETHER, Phase, _Trainer, learn_unit
from mezzotint.reconstruction.losses import lp_loss
from mezzotint.reconstruction.problem import MAIN, UnitProblem, pose
from mezzotint.reconstruction.sources import unit_sources
from mezzotint.reconstruction.store import RowStore
from mezzotint.reconstruction.walk import Walker
from tiny import tiny_text_unet

CPU = torch.device("cpu")
ROWS = 4
LEARNING = ReconstructionConfig(iters=4, batch_size=ROWS, warmup=0.0)


class Setup:
    """A calibrated simulated network with its float one, and the problem of any unit of it."""

    def __init__(self) -> None:
        self.floating = tiny_text_unet()
        inputs = example_inputs(self.floating)
        self.units = list_units(self.floating, *inputs)
        x_t, _, context = example_inputs(self.floating, batch=ROWS)
        self.rows = CalibrationSet(x_t, torch.tensor([900, 500, 20, 0]), {"encoder_hidden_states": context})
        self.sources = unit_sources(self.floating, self.units, lambda: self.floating(*inputs))
        config = QuantizeConfig(ranges=RangeConfig(candidates=10))
        plan = plan_layers(self.floating, config, splits={}, edges=layers_by_role(self.floating))
        self.simulated = prepare(self.floating, plan)
        with torch.no_grad():
            fit_ranges(self.simulated, self.rows, config, CPU, NullProgress())

    def unit(self, kind: str) -> Unit:
        return next(unit for unit in self.units if unit.kind == kind)

    @contextmanager
    def problem(self, kind: str) -> Iterator[UnitProblem]:
        with RowStore(1.0, CPU) as store:
            cond = {name: store.allocate(values.shape) for name, values in self.rows.cond.items()}
            for name, values in self.rows.cond.items():
                cond[name].write(slice(0, ROWS), values)
            walkers = [
                Walker(network, self.rows, batch=ROWS, device=CPU, sources=self.sources, cond=cond)
                for network in (self.floating, self.simulated)
            ]
            yield pose(self.unit(kind), *walkers, store)


@pytest.fixture(scope="module")
def setup() -> Setup:
    return Setup()


def trainer(problem: UnitProblem, phase: Phase = TOGETHER, **options: Any) -> _Trainer:
    made = _Trainer(problem, LEARNING.model_copy(update=options), 0, CPU, phase)
    made._schedule(0)
    made._draw()
    return made


@contextmanager
def training(problem: UnitProblem, phase: Phase = TOGETHER, **options: Any) -> Iterator[_Trainer]:
    made = trainer(problem, phase, **options)
    try:
        yield made
    finally:
        made.detach_()


def test_the_registered_layers_of_a_block_are_those_of_the_released_code(setup: Setup) -> None:
    with setup.problem("transformer") as problem, training(problem) as declared:
        assert set(problem.layers) - set(declared.inner) == {"ff.net.2"}
    with setup.problem("transformer") as problem, training(problem, inner_layers="registered") as registered:
        assert set(problem.layers) - set(registered.inner) == {"attn2.to_out.0"}
    with setup.problem("resnet") as problem, training(problem, inner_layers="registered") as registered:
        assert set(problem.layers) - set(registered.inner) == {list(problem.layers)[-1]}


def test_the_first_axis_of_a_transformer_block_is_its_tokens_and_no_other_blocks(setup: Setup) -> None:
    tokens, picture = torch.randn(2, 5, 7), torch.randn(2, 3, 4, 4)
    with setup.problem("transformer") as problem, training(problem, loss_axis="first") as made:
        assert_close(made._lp(tokens, 0 * tokens), tokens.square().sum(dim=1).mean())
    with setup.problem("resnet") as problem, training(problem, loss_axis="first") as made:
        assert_close(made._lp(tokens, 0 * tokens), tokens.square().sum(dim=-1).mean())
        assert_close(made._lp(picture, 0 * picture), picture.square().sum(dim=1).mean())


def test_losses_of_another_norm_are_sums_of_that_power() -> None:
    error = torch.randn(2, 3, 4, 4)
    assert_close(lp_loss(error, 0 * error, norm=2.4), error.abs().pow(2.4).sum(dim=1).mean())
    assert_close(lp_loss(error, 0 * error, norm=2.0), lp_loss(error, 0 * error))


def gradients(made: _Trainer) -> list[torch.Tensor]:
    made.optimizer.zero_grad()
    made._total_loss().backward()
    return [p.grad.clone() for group in made.optimizer.param_groups for p in group["params"] if p.grad is not None]


def test_layer_losses_of_a_checkpointed_block_move_nothing(setup: Setup) -> None:
    """Without dropping, so that the passes agree: with checkpoints gamma is without effect, otherwise it is not."""
    quiet = {"activation_drop": 0.0, "input_drop": 0.0, "rounding_weight": 0.0}
    with setup.problem("resnet") as problem:
        found = {}
        for name, options in {
            "block": {"layer_weight": 0.0},
            "checkpointed": {"layer_weight": 5.0, "checkpointed": ("resnet",), "separate_layer_pass": True},
            "other kind": {"layer_weight": 5.0, "checkpointed": ("attention",)},
        }.items():
            with training(problem, **quiet, **options) as made:
                found[name] = gradients(made)
    assert all(torch.allclose(a, b) for a, b in zip(found["block"], found["checkpointed"], strict=True))
    assert not all(torch.allclose(a, b) for a, b in zip(found["block"], found["other kind"], strict=True))


def test_a_checkpointed_block_is_differentiated_at_other_masks_than_its_loss(setup: Setup) -> None:
    with setup.problem("resnet") as problem:
        runs: list[torch.Tensor] = []
        options = {"activation_drop": 0.5, "layer_weight": 0.0, "rounding_weight": 0.0}
        with training(problem, checkpointed=("resnet",), **options) as made:
            handle = problem.simulated.register_forward_hook(lambda _, args, output: runs.append(output))
            loss = made._total_loss()
            handle.remove()
        differentiated, shown = runs
        assert differentiated.requires_grad
        assert not shown.requires_grad
        assert not torch.equal(differentiated, shown)
        assert_close(loss.detach(), lp_loss(shown, made.target))


@pytest.mark.parametrize("drop", [0.0, 0.5, 1.0])
def test_of_the_input_so_many_elements_are_the_float_ones(setup: Setup, drop: float) -> None:
    with setup.problem("resnet") as problem, training(problem, input_drop=drop) as made:
        seen: list[torch.Tensor] = []
        handle = problem.simulated.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        made._total_loss()
        handle.remove()
    quantized, floating = (made.buffers[kind][MAIN] for kind in ("quantized", "float"))
    differ = quantized != floating
    taken = seen[0] == floating
    assert bool((taken | (seen[0] == quantized)).all())
    assert abs(float(taken[differ].float().mean()) - drop) <= (0.1 if drop == 0.5 else 0.0)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.named_buffers()}


@pytest.mark.parametrize(
    ("phase", "learned"), [(Phase(steps=False), "weight_codes"), (Phase(rounding=False, norm=2.4), "scale")]
)
def test_a_phase_changes_what_it_learns_and_nothing_else(setup: Setup, phase: Phase, learned: str) -> None:
    with setup.problem("resnet") as problem:
        before = state(problem.simulated)
        learn_unit(problem, LEARNING, seed=0, device=CPU, forward_batch=ROWS, progress=NullProgress(), phase=phase)
        after = state(problem.simulated)
        problem.simulated.load_state_dict(before, strict=False)
    changed = {name.rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {learned}
