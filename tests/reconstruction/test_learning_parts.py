"""Rounding, steps, losses and memory of reconstruction, each on its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mezzotint.errors import ResumeError
from mezzotint.grid.affine import fake_quantize
from mezzotint.grid.search import search_symmetric
from mezzotint.grid.spec import activation_spec, weight_spec
from mezzotint.layers.activation import ActivationQuantizer
from mezzotint.layers.simulated import FakeQuantConv2d, FakeQuantLinear, SimulatedLayer
from mezzotint.layers.spec import LayerSpec
from mezzotint.reconstruction.checkpoints import Checkpoints, grid_state, load_grid_state_
from mezzotint.reconstruction.losses import lp_loss, random_signs
from mezzotint.reconstruction.rounding import LearnedRounding
from mezzotint.reconstruction.steps import LearnedStep


def layer(bits: int = 4, groups: tuple[int, ...] = (), seed: int = 0) -> SimulatedLayer:
    torch.manual_seed(seed)
    conv = nn.Conv2d(6, 5, 3, padding=1)
    made = FakeQuantConv2d(conv, LayerSpec(kind="conv2d", weight=weight_spec(bits, groups), input=None))
    for group, part in enumerate(made.weight_spec.group_slices(6)):
        made.weight_scale[group] = search_symmetric(made.weight.detach()[:, part].flatten(1), made.weight_spec)
    made.round_to_nearest_()
    return made


@pytest.mark.parametrize("groups", [(), (2, 4)])
def test_soft_rounding_starts_at_the_weight_and_hardens_to_nearest(groups: tuple[int, ...]) -> None:
    conv = layer(groups=groups)
    rounding = LearnedRounding(conv)
    inside = (conv.weight / rounding.step).abs() < 7
    assert_close(rounding()[inside], conv.weight.detach()[inside], rtol=1e-4, atol=1e-5)
    assert torch.equal(rounding.codes(), conv.weight_codes)


def test_learned_weights_never_leave_their_two_neighbours() -> None:
    conv = layer()
    rounding = LearnedRounding(conv)
    with torch.no_grad():
        rounding.alpha.copy_(torch.randn_like(rounding.alpha) * 20)
    moved = (rounding.codes().float() - (conv.weight / rounding.step).clamp(-8, 7)).abs()
    assert moved.max() <= 1 + 1e-4


def test_regulariser_is_zero_only_when_every_rounding_is_decided() -> None:
    rounding = LearnedRounding(layer())
    assert rounding.regulariser(2.0) > 1
    with torch.no_grad():
        rounding.alpha.copy_(torch.where(rounding.alpha >= 0, 20.0, -20.0))
    assert rounding.regulariser(2.0) == 0
    assert rounding.undecided() == 0


def quantizer(scale: float, zero_point: int, bits: int = 4) -> ActivationQuantizer:
    made = ActivationQuantizer(activation_spec(bits))
    made.scale.fill_(scale)
    made.zero_point.fill_(zero_point)
    return made


@pytest.mark.parametrize("linear", [True, False])
def test_step_gradient_is_the_published_one(linear: bool) -> None:
    step = LearnedStep(quantizer(0.3, 5), linear=linear, drop=0.0, generator=torch.Generator())
    x = torch.tensor([0.1, 0.4, -9.0, 9.0], requires_grad=True)
    step(x).sum().backward()
    inside = [round(v / 0.3) - v / 0.3 for v in (0.1, 0.4)]
    slope = sum(inside) + (0 - 5) + (15 - 5)
    assert_close(step.value.grad, torch.tensor([slope * (1.0 if linear else 0.3)]), rtol=1e-4, atol=1e-5)
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 0, 0]


def test_a_learned_step_starts_as_the_fixed_grid_and_stays_positive() -> None:
    grid = quantizer(0.1, 3)
    step = LearnedStep(grid, linear=False, drop=0.0, generator=torch.Generator())
    x = torch.randn(100)
    assert_close(step(x), fake_quantize(x, grid.scale, grid.zero_point, grid.spec))
    with torch.no_grad():
        step.value.fill_(-30.0)
    assert (step.scale() > 0).all()


def test_dropping_leaves_the_asked_share_unrounded() -> None:
    step = LearnedStep(quantizer(0.5, 8), linear=False, drop=0.25, generator=torch.Generator().manual_seed(0))
    x = torch.rand(40_000) + 0.01
    assert abs(float((step(x) == x).float().mean()) - 0.25) < 0.02


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_arithmetic_with_masks_is_choosing_bit_for_bit(drop: float) -> None:
    """Value and gradients as written with `where`; the mask is the same numbers of the same generator."""
    grid = quantizer(0.013, 100, bits=8)
    x, gradient = torch.randn(4, 8, 6, 6), torch.randn(4, 8, 6, 6)
    leaf = x.clone().requires_grad_()
    step = LearnedStep(grid, linear=True, drop=drop, generator=torch.Generator().manual_seed(3))
    output = step(leaf)
    output.backward(gradient)
    kept = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < drop
    scaled = x / grid.scale
    codes = torch.round(scaled) + 100
    inside = (codes >= 0) & (codes <= 255)
    assert torch.equal(output, torch.where(kept, x, (codes.clamp(0, 255) - 100) * grid.scale))
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.where(kept | inside, gradient, 0.0))
    slope = torch.where(inside, torch.round(scaled) - scaled, codes.clamp(0, 255) - 100)
    assert torch.equal(step.value.grad, (gradient * torch.where(kept, 0.0, slope)).sum().reshape(1))


def test_losses_of_pictures_and_tokens_are_on_one_scale() -> None:
    a, b = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4)
    tokens = [x.flatten(2).transpose(1, 2) for x in (a, b)]
    assert_close(lp_loss(a, b), lp_loss(*tokens))
    assert_close(lp_loss(a, b, torch.full_like(a, 3.0)), 3 * lp_loss(a, b))


def test_random_signs_are_signs_and_repeat_with_the_seed() -> None:
    x = torch.zeros(50, 3)
    first, second = (random_signs(x, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert set(first.unique().tolist()) == {-1.0, 1.0}


def test_checkpoints_find_what_was_saved_and_refuse_another_run(tmp_path: Path) -> None:
    linear = FakeQuantLinear(nn.Linear(4, 3), LayerSpec(kind="linear", weight=weight_spec(4), input=activation_spec(8)))
    kept = Checkpoints(tmp_path, {"config": {"iters": 3}})
    assert kept.load("unit-000") is None
    kept.save("unit-000", grid_state(linear), {"loss": 1.5})
    again = Checkpoints(tmp_path, {"config": {"iters": 3}})
    state = again.load("unit-000")
    assert state is not None
    assert again.load_json("unit-000") == {"loss": 1.5}
    load_grid_state_(linear, state)
    with pytest.raises(ResumeError, match="another run .*config"):
        Checkpoints(tmp_path, {"config": {"iters": 4}})


def test_a_checkpoint_of_another_layer_is_refused() -> None:
    state = grid_state(layer(4, (2, 4)))
    with pytest.raises(ResumeError, match="weight_scale"):
        load_grid_state_(layer(4), state)


def test_a_damaged_checkpoint_names_the_file(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, {})
    (tmp_path / "unit-000.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ResumeError, match="unit-000.safetensors is damaged"):
        kept.load("unit-000")
