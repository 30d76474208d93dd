"""Which layer gets which bits, where the released code does otherwise."""

from __future__ import annotations

import pytest

from families import FAMILIES
from mezzotint.calibration.plan import plan_layers
from mezzotint.layers.spec import LayerSpec
from mezzotint.models.denoiser import example_inputs
from mezzotint.models.units import layers_by_role, split_shortcuts
from mezzotint.recipes.registry import make_config

LATE = {
    "ddim": "up_blocks.0.upsamplers.0.conv",
    "ldm-vq": "up_blocks.1.resnets.1.conv_shortcut",
    "ldm-kl": "up_blocks.1.resnets.1.conv_shortcut",
    "ldm-class": "up_blocks.1.attentions.1.proj_out",
    "sd": "up_blocks.1.attentions.1.proj_out",
}


def plan(family: str, recipe: str, bits: str = "w4a4") -> dict[str, LayerSpec]:
    network = FAMILIES[family]().unet
    splits, edges = split_shortcuts(network, *example_inputs(network)), layers_by_role(network)
    return plan_layers(network, make_config(recipe, bits, family=family), splits=splits, edges=edges)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_released_edges_are_the_time_embedding_and_one_late_input(family: str) -> None:
    made = plan(family, "eda-dm-official")
    weights = {name for name, spec in made.items() if spec.weight is not None and spec.weight.bits == 8}
    inputs = {
        n for n, spec in made.items() if spec.kind != "matmul" and spec.input is not None and spec.input.bits == 8
    }
    assert weights == {"time_embedding.linear_1", "conv_out"}
    assert inputs == {LATE[family]}
    assert made["conv_out"].input is None


def test_edges_are_eight_bit_by_name_and_so_is_softmax() -> None:
    made = plan("ddim", "nearest")
    bits = {name: (spec.weight and spec.weight.bits, spec.input and spec.input.bits) for name, spec in made.items()}
    assert bits["conv_in"] == bits["conv_out"] == (8, 8)
    assert bits["time_embedding.linear_1"] == (4, 4)
    softmax = made["mid_block.attentions.0.processor.pv"]
    assert softmax.input is not None
    assert softmax.other is not None
    assert (softmax.input.bits, softmax.other.bits) == (8, 4)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_shortcuts_are_split_but_in_the_released_stable_diffusion(family: str) -> None:
    split = {name for name, spec in plan(family, "eda-dm").items() if spec.weight is not None and spec.weight.groups}
    released = {
        name for name, spec in plan(family, "eda-dm-official").items() if spec.weight is not None and spec.weight.groups
    }
    assert split
    assert released == (set() if family == "sd" else split)
    late = plan(family, "eda-dm-official")[LATE[family]]
    assert late.input is not None
    assert late.input.groups == late.weight.groups  # type: ignore[union-attr]


@pytest.mark.parametrize("recipe", ["eda-dm", "eda-dm-official"])
def test_float_activations_stay_float_at_the_edges(recipe: str) -> None:
    assert all(spec.input is None for spec in plan("ddim", recipe, "w4a32").values())
