"""Denoisers that diffusers has no class for, and the table of all that a model folder may name.

The unconditional CompVis models with `num_heads: 8` split *every* level into eight heads, whatever its width.
`UNet2DModel` takes one width of a head for all levels, so that wide levels get more heads than narrow ones; with those
heads the predicted noise of the LSUN-Church model is wrong by 24 %. `MultiHeadUNet2DModel` is the same network with a
number of heads instead. Weights and their names are those of `UNet2DModel`.
"""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import ModelMixin  # diffusers looks for this name in modules that are not its own

from mezzotint.errors import ModelError


class MultiHeadUNet2DModel(UNet2DModel):
    """A `UNet2DModel` whose attentions all have `num_attention_heads` heads of channels / heads each.

    Args:
        num_attention_heads: at every level and in the middle; it must divide their channels.
        config: of `UNet2DModel`; `attention_head_dim` is left alone.

    Raises:
        ModelError: some attention cannot be split into so many heads.
    """

    def __init__(self, num_attention_heads: int = 8, **config: Any) -> None:
        super().__init__(**{**config, "attention_head_dim": None})  # one head each, as wide as its level
        self.register_to_config(num_attention_heads=num_attention_heads)
        for name, module in self.named_modules():
            if isinstance(module, Attention):
                _split_heads_(module, num_attention_heads, name)

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        """What diffusers takes from a config.json: it reads signatures, and `**config` does not say."""
        return {"num_attention_heads", *UNet2DModel._get_init_keys(UNet2DModel)}


def _split_heads_(attention: Any, heads: int, name: str) -> None:
    channels = attention.inner_dim
    if heads < 1 or channels % heads:
        raise ModelError(f"{name}: {channels} channels cannot be split into num_attention_heads={heads}")
    attention.heads = attention.sliceable_head_dim = heads
    attention.scale = (channels // heads) ** -0.5


# What `_class_name` in a folder's unet/config.json may be.
NETWORK_CLASSES: dict[str, type[ModelMixin]] = {
    kind.__name__: kind for kind in (UNet2DModel, UNet2DConditionModel, MultiHeadUNet2DModel)
}
