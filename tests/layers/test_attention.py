"""Our attention with exact products is diffusers' own, in every form that the supported networks use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from families import FAMILIES
from mezzotint.layers.attention import QuantizedAttnProcessor, has_plain_products
from mezzotint.models.unets import MultiHeadUNet2DModel

CHANNELS, CONTEXT = 16, 12


class Product(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


def attention(**options: Any) -> Attention:
    torch.manual_seed(0)
    return Attention(**{"query_dim": CHANNELS, "heads": 2, "dim_head": 8, **options}).double().eval()


FORMS: dict[str, dict[str, Any]] = {
    "self": {},
    "eight heads": {"heads": 8, "dim_head": 2, "bias": True},
    "norm and residual": {"norm_num_groups": 4, "residual_connection": True, "rescale_output_factor": 1.5},
    "cross": {"cross_attention_dim": CONTEXT},
    "cross with normed context": {"cross_attention_dim": CONTEXT, "cross_attention_norm": "layer_norm"},
    "upcast": {"upcast_attention": True, "upcast_softmax": True},
    "unscaled": {"scale_qk": False},
}


def both(layer: Attention, *args: Tensor, **kwargs: Tensor) -> tuple[Tensor, Tensor]:
    expected = layer(*args, **kwargs)
    layer.set_processor(QuantizedAttnProcessor(Product(), Product()))
    return layer(*args, **kwargs), expected


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("picture", [False, True])
def test_exact_products_give_what_diffusers_gives(form: str, picture: bool) -> None:
    layer = attention(**FORMS[form])
    x = torch.randn(3, CHANNELS, 4, 5).double() if picture else torch.randn(3, 20, CHANNELS).double()
    context = {"encoder_hidden_states": torch.randn(3, 7, CONTEXT).double()} if "cross" in form else {}
    ours, theirs = both(layer, x, **context)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_mask_hides_what_it_hides_in_diffusers() -> None:
    mask = torch.zeros(3, 1, 7).double()
    mask[1, :, 4:] = -10_000.0
    x, context = torch.randn(3, 20, CHANNELS).double(), torch.randn(3, 7, CONTEXT).double()
    layer = attention(cross_attention_dim=CONTEXT)
    ours, theirs = both(layer, x, encoder_hidden_states=context, attention_mask=mask)
    torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(ours[1], layer(x, encoder_hidden_states=context)[1])


@pytest.mark.parametrize("limit", [1, 3000, 9000])
def test_slices_of_heads_change_nothing_and_are_not_made_where_gradients_are_wanted(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, mask = attention(cross_attention_dim=CONTEXT), torch.zeros(3, 1, 7).double()
    mask[1, :, 4:] = -10_000.0
    x, context = torch.randn(3, 20, CHANNELS).double(), torch.randn(3, 7, CONTEXT).double()
    sizes: list[int] = []
    product = Product()
    product.register_forward_hook(lambda _, args, out: sizes.append(len(out)))
    layer.set_processor(QuantizedAttnProcessor(product, Product()))
    monkeypatch.setattr("mezzotint.layers.attention.SLICE_BYTES", limit)
    whole = layer(x, encoder_hidden_states=context, attention_mask=mask)
    with torch.no_grad():
        sliced = layer(x, encoder_hidden_states=context, attention_mask=mask)
    torch.testing.assert_close(sliced, whole.detach())
    row = 20 * 7 * 8
    each = max(1, limit // row)
    assert sizes == [6, *[each] * (6 // each), *([6 % each] if 6 % each else [])]


def test_heads_are_those_of_the_network() -> None:
    """The church model's layout: eight heads at every level, whatever its width."""
    network = FAMILIES["ldm-kl"]().unet
    assert isinstance(network, MultiHeadUNet2DModel)
    layers = [module.double() for module in network.modules() if isinstance(module, Attention)]
    assert {layer.heads for layer in layers} == {2}
    for layer in layers:
        ours, theirs = both(layer, torch.randn(2, layer.query_dim, 4, 4).double())
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({}, True),
        ({"cross_attention_dim": CONTEXT}, True),
        ({"added_kv_proj_dim": CONTEXT}, False),
        ({"qk_norm": "layer_norm"}, False),
        ({"kv_heads": 1}, False),
        ({"added_kv_proj_dim": CONTEXT, "only_cross_attention": True}, False),
    ],
)
def test_other_kinds_of_attention_are_told_apart(options: dict[str, Any], plain: bool) -> None:
    assert has_plain_products(attention(**options)) == plain
