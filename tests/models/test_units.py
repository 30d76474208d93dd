"""Units: traced order, each layer once, and the declarations say the truth about what makes a block's output."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from families import FAMILIES
from mezzotint.errors import ModelError
from mezzotint.models.denoiser import example_inputs
from mezzotint.models.units import UNIT_TYPES, Unit, layers_by_role, list_units, split_shortcuts
from tiny import tiny_text_unet, tiny_unet

CIFAR: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": (16, 32, 32, 32),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}

NETWORKS = {
    "tiny": tiny_unet,
    "cifar layout": lambda: tiny_unet(**CIFAR),
    "no attention in the middle": lambda: tiny_unet(add_attention=False),
    "resnet samplers": lambda: tiny_unet(downsample_type="resnet", upsample_type="resnet"),
    "scale and shift": lambda: tiny_unet(resnet_time_scale_shift="scale_shift"),
    "text": tiny_text_unet,
    **{family: lambda family=family: FAMILIES[family]().unet for family in FAMILIES},
}


@pytest.fixture(params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> nn.Module:
    return NETWORKS[request.param]()


def layer_names(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def test_every_layer_is_in_one_unit(network: nn.Module) -> None:
    counts = Counter(layer for unit in list_units(network, *example_inputs(network)) for layer in unit.layers)
    assert counts == Counter(layer_names(network))


def test_units_come_in_the_order_of_their_layers_first_calls(network: nn.Module) -> None:
    """Traced here over all layers, there over the units only: the first layers of the units come in the same order."""
    units = list_units(network, *example_inputs(network))
    unit_of = {layer: unit.name for unit in units for layer in unit.layers}
    calls: list[str] = []
    handles = [
        network.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name)) for name in unit_of
    ]
    network(*example_inputs(network))
    for handle in handles:
        handle.remove()
    assert list(dict.fromkeys(unit_of[layer] for layer in calls)) == [unit.name for unit in units]


def test_the_tiny_network_in_full() -> None:
    """Registration would put the middle block last."""
    network = tiny_unet()
    assert [unit.name for unit in list_units(network, *example_inputs(network))] == [
        "time_embedding.linear_1",
        "time_embedding.linear_2",
        "conv_in",
        "down_blocks.0.resnets.0",
        "down_blocks.0.downsamplers.0.conv",
        "down_blocks.1.resnets.0",
        "down_blocks.1.attentions.0",
        "mid_block.resnets.0",
        "mid_block.attentions.0",
        "mid_block.resnets.1",
        "up_blocks.0.resnets.0",
        "up_blocks.0.attentions.0",
        "up_blocks.0.resnets.1",
        "up_blocks.0.attentions.1",
        "up_blocks.0.upsamplers.0.conv",
        "up_blocks.1.resnets.0",
        "up_blocks.1.resnets.1",
        "conv_out",
    ]


def test_the_cifar_layout_has_the_published_counts() -> None:
    """22 residual blocks, 6 attention layers, 10 single layers: the 38 units of EDA-DM's own walk."""
    network = tiny_unet(**CIFAR)
    kinds = Counter(unit.kind for unit in list_units(network, *example_inputs(network)))
    assert kinds == {"resnet": 22, "attention": 6, "layer": 10}


def test_a_transformer_block_is_one_unit_with_its_last_layer_as_output() -> None:
    network = tiny_text_unet()
    units = {unit.name: unit for unit in list_units(network, *example_inputs(network))}
    block = units["mid_block.attentions.0.transformer_blocks.0"]
    assert block.output == ("ff.net.2",)
    assert "attn2.to_out.0" in block.inner
    assert units["mid_block.attentions.0.proj_in"] == Unit("mid_block.attentions.0.proj_in", "layer", (), ("",))


def ramp(x: Tensor) -> Tensor:
    """A bump that differs from channel to channel, so that no norm removes it; broadcasts against x."""
    channel_axis = 1 if x.ndim == 4 else -1
    values = torch.linspace(-1, 2, x.shape[channel_axis], dtype=x.dtype)
    return values[:, None, None] if x.ndim == 4 else values


def outputs_of(network: nn.Module, units: list[Unit], bump: str | None = None) -> dict[str, Tensor]:
    """The outputs of all units, with `ramp` added to what the layer `bump` gives."""
    outputs: dict[str, Tensor] = {}
    handles = [
        network.get_submodule(unit.name).register_forward_hook(
            lambda module, args, out, name=unit.name: outputs.setdefault(name, out)
        )
        for unit in units
    ]
    if bump is not None:
        layer = network.get_submodule(bump)
        handles.append(layer.register_forward_hook(lambda module, args, out: out + ramp(out), prepend=True))
    network(*example_inputs(network))
    for handle in handles:
        handle.remove()
    return outputs


@pytest.mark.parametrize("build", [tiny_unet, tiny_text_unet, NETWORKS["ldm-kl"]], ids=["pixels", "text", "church"])
def test_declared_outputs_are_added_to_the_units_output_and_inner_layers_are_not(build: Any) -> None:
    network = build().double()
    units = list_units(network, *example_inputs(network))
    plain = outputs_of(network, units)
    seen = set()
    for unit in units:
        shape = (unit.kind, unit.inner, unit.output)
        if shape in seen:
            continue
        seen.add(shape)
        for layer in unit.layers:
            change = outputs_of(network, units, bump=layer)[unit.name] - plain[unit.name]
            is_output = layer.removeprefix(unit.name).lstrip(".") in unit.output
            assert torch.allclose(change, ramp(change).expand_as(change)) == is_output, layer
    assert {kind for kind, _, _ in seen} >= {"resnet", "layer"}


def test_a_block_type_nobody_declared_falls_to_layers_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(UNIT_TYPES, ResnetBlock2D)
    network = tiny_unet()
    with caplog.at_level(logging.WARNING, logger="mezzotint"):
        units = list_units(network, *example_inputs(network))
    assert Counter(unit.kind for unit in units) == {"layer": 35, "attention": 4}
    assert [record.getMessage() for record in caplog.records] == [
        "undeclared block types, whose layers are units of their own: ResnetBlock2D (29 layers)"
    ]


def test_a_block_with_a_layer_beyond_its_declaration_falls_to_layers(caplog: pytest.LogCaptureFixture) -> None:
    network = tiny_unet()
    network.mid_block.attentions[0].to_out[0] = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 32))
    with caplog.at_level(logging.WARNING, logger="mezzotint"):
        units = list_units(network, *example_inputs(network))
    assert "mid_block.attentions.0: its declaration lacks ['to_out.0.0', 'to_out.0.1']" in caplog.text
    names = [unit.name for unit in units if unit.name.startswith("mid_block.attentions")]
    assert names == [
        f"mid_block.attentions.0.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0.0", "to_out.0.1")
    ]
    assert Counter(layer for unit in units for layer in unit.layers) == Counter(layer_names(network))


def test_the_shipped_layouts_log_nothing(network: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    list_units(network, *example_inputs(network))
    assert not caplog.records


def test_a_layer_that_does_not_run_is_an_error() -> None:
    network = tiny_unet()
    network.conv_spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(ModelError, match="conv_spare: did not run with these inputs"):
        list_units(network, *example_inputs(network))


def test_tracing_leaves_no_hooks_even_after_an_error() -> None:
    network = tiny_unet()
    with pytest.raises(RuntimeError, match="size mismatch|channels"):
        list_units(network, torch.zeros(1, 5, 16, 16), torch.zeros(1, dtype=torch.int64))
    list_units(network, *example_inputs(network))
    split_shortcuts(network, *example_inputs(network))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())


def test_split_shortcuts_are_the_channels_of_h_and_skip(network: nn.Module) -> None:
    """Checked against what the up blocks are given: skip i is the last of `res_hidden_states_tuple`, h the rest."""
    expected: dict[str, tuple[int, int]] = {}

    def note(name: str, block: Any, args: Any, kwargs: Any) -> None:
        states = args[1] if len(args) > 1 else kwargs["res_hidden_states_tuple"]
        for index, resnet in enumerate(block.resnets):
            skip = states[-1 - index].shape[1]
            expected[f"{name}.resnets.{index}.conv_shortcut"] = (resnet.in_channels - skip, skip)

    for index, block in enumerate(network.up_blocks):
        block.register_forward_pre_hook(
            lambda block, args, kwargs, name=f"up_blocks.{index}": note(name, block, args, kwargs), with_kwargs=True
        )
    network(*example_inputs(network))
    assert split_shortcuts(network, *example_inputs(network)) == expected
    assert any(h != skip for h, skip in expected.values())


def test_roles_go_by_name() -> None:
    assert layers_by_role(tiny_unet()) == {"conv_in": "conv_in", "conv_out": "conv_out"}
    network = tiny_unet()
    network.conv_in = nn.Identity()
    with pytest.raises(ModelError, match="UNet2DModel has no convolution called conv_in"):
        layers_by_role(network)


def test_attention_blocks_inside_transformers_are_not_units_of_their_own() -> None:
    network = tiny_text_unet()
    units = list_units(network, *example_inputs(network))
    assert any(isinstance(module, Attention) for module in network.modules())
    assert not [unit for unit in units if unit.kind == "attention"]
