"""Own networks: the number of heads at every level, and a config that comes back from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention

from mezzotint.errors import ModelError
from mezzotint.models.unets import NETWORK_CLASSES, MultiHeadUNet2DModel

CONFIG: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
}


def make(heads: int, **changes: Any) -> MultiHeadUNet2DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MultiHeadUNet2DModel(heads, **{**CONFIG, **changes}).eval().requires_grad_(False)


def attentions(network: torch.nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, Attention)]


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_every_level_has_as_many_heads(heads: int) -> None:
    network = make(heads)
    found = attentions(network)
    assert {attention.inner_dim for attention in found} == {16, 32}
    for attention in found:
        assert attention.heads == attention.sliceable_head_dim == heads
        assert attention.scale == (attention.inner_dim // heads) ** -0.5


def test_where_all_levels_are_as_wide_it_is_the_stock_network() -> None:
    ours = make(4, block_out_channels=(16, 16))
    theirs = UNet2DModel(**{**CONFIG, "block_out_channels": (16, 16), "attention_head_dim": 4}).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x, 3).sample, theirs(x, 3).sample)
    one_head = make(1, block_out_channels=(16, 16))
    one_head.load_state_dict(ours.state_dict())
    assert not torch.allclose(one_head(x, 3).sample, ours(x, 3).sample, atol=1e-4)


def test_a_folder_brings_the_heads_back(tmp_path: Path) -> None:
    network = make(2, resnet_time_scale_shift="scale_shift", attn_norm_num_groups=8, attention_head_dim=3)
    network.save_pretrained(tmp_path)
    again = NETWORK_CLASSES["MultiHeadUNet2DModel"].from_pretrained(tmp_path)
    assert isinstance(again, MultiHeadUNet2DModel)
    assert isinstance(again, UNet2DModel)
    assert {attention.heads for attention in attentions(again)} == {2}
    assert again.config.num_attention_heads == 2
    assert again.config.resnet_time_scale_shift == "scale_shift"
    x = torch.ones(1, 3, 8, 8)
    torch.testing.assert_close(again(x, 3).sample, network(x, 3).sample)


def test_a_config_makes_the_network_anew() -> None:
    network = make(2, dropout=0.25)
    assert MultiHeadUNet2DModel.from_config(network.config).to_json_string() == network.to_json_string()
    with torch.device("meta"):
        empty = MultiHeadUNet2DModel.from_config(dict(network.config))
    assert {attention.heads for attention in attentions(empty)} == {2}


@pytest.mark.parametrize("heads", [3, 0, -8])
def test_heads_that_do_not_divide(heads: int) -> None:
    message = f"attentions.0: 16 channels cannot be split into num_attention_heads={heads}"
    with pytest.raises(ModelError, match=message):
        make(heads)
