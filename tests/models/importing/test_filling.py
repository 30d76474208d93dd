"""Filling a network: every entry in its place, and whatever is missing, foreign or of another shape is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mezzotint.errors import ModelError
from mezzotint.models.importing.filling import Part, fill_, is_training_buffer
from mezzotint.models.importing.keys import Source


def make_part(kernel: bool = False) -> Part:
    """Five layers of four features, without weights."""
    with torch.device("meta"):
        layers = [nn.Conv2d(4, 4, 1) if kernel else nn.Linear(4, 4) for _ in range(5)]
    return Part("unet", "net.", nn.Sequential(*layers), Source)


def make_entries() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (4, 4), "bias": (4,)}
    return {
        f"net.{i}.{leaf}": torch.randn(shape, generator=generator) for i in range(5) for leaf, shape in shapes.items()
    }


def test_weights_come_in_float32_and_keep_no_part_of_a_larger_entry() -> None:
    entries = {key: value.half() for key, value in make_entries().items()}
    part = make_part()
    assert fill_(part, {**entries, "other.weight": torch.ones(1)})
    for name, weight in part.network.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, entries[f"net.{name}"].float())


@pytest.mark.parametrize("kernel", [False, True])
def test_matrices_and_kernels_of_size_one_are_the_same(kernel: bool) -> None:
    """Attention is written as 1x1 convolutions by some and as products by others."""
    shape = (4, 4) if kernel else (4, 4, 1, 1)
    entries = {key: value.reshape(shape) if value.ndim == 2 else value for key, value in make_entries().items()}
    part = make_part(kernel)
    assert fill_(part, entries)
    assert torch.equal(part.network.state_dict()["0.weight"].flatten(), entries["net.0.weight"].flatten())


def test_an_absent_network_is_left_alone() -> None:
    part = make_part()
    assert not fill_(part, {"other.weight": torch.ones(1), "net.position_ids": torch.ones(1)})
    assert all(weight.is_meta for weight in part.network.state_dict().values())


def spoil(change: Callable[[dict[str, Tensor]], Any]) -> dict[str, Tensor]:
    entries = make_entries()
    change(entries)
    return entries


WRONG: dict[str, tuple[dict[str, Tensor], str]] = {
    "missing": (spoil(lambda e: e.pop("net.2.bias")), "^unet: 1 entry is missing: net.2.bias; is this"),
    "several missing": (
        spoil(lambda e: [e.pop(f"net.{i}.bias") for i in range(5)]),
        "^unet: 5 entries are missing: net.0.bias, net.1.bias, net.2.bias, ...; is this",
    ),
    "extra": (
        spoil(lambda e: e.update({"net.5.weight": torch.ones(4, 4)})),
        "^unet: 1 entry is not expected: net.5.weight; is this the YAML of this checkpoint",
    ),
    "shape": (
        spoil(lambda e: e.update({"net.1.weight": torch.ones(4, 5)})),
        r"^unet: 1 entry is of another shape: net.1.weight \(expected \[4, 4\], got \[4, 5\]\); is this",
    ),
    "as many values": (
        spoil(lambda e: e.update({"net.1.weight": torch.ones(2, 8)})),
        r"^unet: 1 entry is of another shape: net.1.weight \(expected \[4, 4\], got \[2, 8\]\); is this",
    ),
    "all": (
        spoil(lambda e: (e.pop("net.2.bias"), e.update({"net.x": torch.ones(1), "net.1.bias": torch.ones(2)}))),
        "1 entry is missing: net.2.bias, 1 entry is not expected: net.x, 1 entry is of another shape: net.1.b",
    ),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_what_does_not_fit_is_named(what: str) -> None:
    entries, message = WRONG[what]
    part = make_part()
    with pytest.raises(ModelError, match=message):
        fill_(part, entries)
    assert all(weight.is_meta for weight in part.network.state_dict().values())  # nothing done by halves


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("betas", True),
        ("posterior_mean_coef1", True),
        ("logvar", True),
        ("scale_factor", True),
        ("model_ema.decay", True),
        ("model_ema.num_updates", True),
        ("first_stage_model.loss.discriminator.main.0.weight", True),
        ("cond_stage_model.transformer.text_model.embeddings.position_ids", True),
        ("model_ema.diffusion_modelout0weight", False),
        ("model.diffusion_model.out.0.weight", False),
        ("first_stage_model.lossless.weight", False),
        ("betas.weight", False),
        ("", False),
    ],
)
def test_training_buffers_are_known_by_name(key: str, known: bool) -> None:
    assert is_training_buffer(key) == known
