"""Key maps: where the weight of a diffusers network lies in an original checkpoint.

A map is a function `source(name) -> Source` from a name of the diffusers network to one of the checkpoint. In that
direction the network says which names there have to be, so that missing and foreign entries of a file come out by
themselves. Two ways of naming cover all models:

    unet_source     UNetModel of CompVis: input_blocks.N.0, middle_block.N, output_blocks.N.0; N counts layers
    level_source    ermongroup/ddim, and the first stages of CompVis that descend from it: down.I.block.J, up.I.attn.J

Source: the `state_dict` of the classes of CompVis/latent-diffusion and ermongroup/ddim. diffusers has such maps for
Stable Diffusion alone, and they pass over entries that they do not know; the tests compare ours with them there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.errors import ModelError

_QKV = {"to_q": 0, "to_k": 1, "to_v": 2}


@dataclass(frozen=True)
class Source:
    """Where a weight lies.

    Attributes:
        key: name of the entry in the checkpoint, below the prefix of its part.
        third: 0, 1 or 2 where the entry holds query, key and value of an attention, in the legacy order.
        heads: of that attention.
    """

    key: str
    third: int | None = None
    heads: int = 1

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the entry, if the weight has `shape`; 1x1 kernels are left to the reader."""
        return shape if self.third is None else (3 * shape[0], *shape[1:])

    def take(self, entry: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The weight of `shape` out of its entry."""
        return (entry if self.third is None else split_qkv(entry, self.heads)[self.third]).reshape(shape)


def split_qkv(qkv: Float[Tensor, "channels3 *rest"], heads: int) -> Float[Tensor, "3 channels *rest"]:
    """Query, key and value out of CompVis' legacy order, in which each head has its own three, side by side.

    The rows of `qkv` are (head, which of the three, row within the head); those of the result (which, head, row).
    """
    return qkv.reshape(heads, 3, -1, *qkv.shape[1:]).transpose(0, 1).reshape(3, -1, *qkv.shape[1:])


_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet_source(name: str, network: Any) -> Source:
    """Where CompVis' `UNetModel` keeps the weight `name` of the diffusers `network`.

    With L layers a level, input block 1 + i (L + 1) + j is layer j of level i, the one after its last layer goes down;
    output block i (L + 1) + j is layer j of L + 1, and what goes up is the last part of the last of them.
    """
    period = network.config.layers_per_block + 1
    match name.split("."):
        case ["down_blocks", i, "resnets", j, *rest]:
            return _unet_resnet(f"input_blocks.{1 + int(i) * period + int(j)}.0", rest)
        case ["down_blocks", i, "attentions", j, *rest]:
            return _unet_attention(f"input_blocks.{1 + int(i) * period + int(j)}.1", rest, name, network)
        case ["down_blocks", i, "downsamplers", "0", "conv", leaf]:
            return Source(f"input_blocks.{(int(i) + 1) * period}.0.op.{leaf}")
        case ["down_blocks", i, "downsamplers", "0", *rest]:
            return _unet_resnet(f"input_blocks.{(int(i) + 1) * period}.0", rest)
        case ["mid_block", "resnets", j, *rest]:
            return _unet_resnet(f"middle_block.{2 * int(j)}", rest)
        case ["mid_block", "attentions", "0", *rest]:
            return _unet_attention("middle_block.1", rest, name, network)
        case ["up_blocks", i, "resnets", j, *rest]:
            return _unet_resnet(f"output_blocks.{int(i) * period + int(j)}.0", rest)
        case ["up_blocks", i, "attentions", j, *rest]:
            return _unet_attention(f"output_blocks.{int(i) * period + int(j)}.1", rest, name, network)
        case ["up_blocks", i, "upsamplers", "0", *rest]:
            attends = hasattr(network.up_blocks[int(i)], "attentions")
            place = f"output_blocks.{(int(i) + 1) * period - 1}.{2 if attends else 1}"
            return Source(f"{place}.{'.'.join(rest)}") if rest[0] == "conv" else _unet_resnet(place, rest)
        case [*parts, leaf] if ".".join(parts) in _UNET_ENDS:
            return Source(f"{_UNET_ENDS['.'.join(parts)]}.{leaf}")
    raise ModelError(f"{name}: {type(network).__name__} has a weight that no CompVis network has")


def _unet_resnet(place: str, rest: list[str]) -> Source:
    part, leaf = rest
    return Source(f"{place}.{_UNET_RESNET[part]}.{leaf}")


def _unet_attention(place: str, rest: list[str], name: str, network: nn.Module) -> Source:
    """Transformers have the same names in both; plain attentions keep query, key and value in one convolution."""
    match rest:
        case ["group_norm", leaf]:
            return Source(f"{place}.norm.{leaf}")
        case ["to_q" | "to_k" | "to_v" as which, leaf]:
            attention: Any = network.get_submodule(name.removesuffix(f".{which}.{leaf}"))
            return Source(f"{place}.qkv.{leaf}", _QKV[which], attention.heads)
        case ["to_out", "0", leaf]:
            return Source(f"{place}.proj_out.{leaf}")
    return Source(f"{place}.{'.'.join(rest)}")


_LEVEL_PARTS = {"conv_shortcut": "nin_shortcut", "time_emb_proj": "temb_proj"}
_LEVEL_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
_LEVEL_ENDS = {
    "time_embedding.linear_1": "temb.dense.0",
    "time_embedding.linear_2": "temb.dense.1",
    "conv_norm_out": "norm_out",
}


def level_source(name: str, levels: int) -> Source:
    """Where ermongroup/ddim, or a first stage of CompVis, keeps the weight `name` of a diffusers network.

    Both count levels from the largest, on the way up too; diffusers counts up blocks in the order in which they run.

    Args:
        levels: resolutions of the network.
    """
    stage, inner = "", name
    if name.startswith(("encoder.", "decoder.")):
        stage, inner = name[:8], name[8:]
    return Source(stage + _level_key(inner, levels))


def _level_key(name: str, levels: int) -> str:
    match name.split("."):
        case ["down_blocks", i, "resnets", j, part, leaf]:
            return f"down.{i}.block.{j}.{_LEVEL_PARTS.get(part, part)}.{leaf}"
        case ["up_blocks", i, "resnets", j, part, leaf]:
            return f"up.{levels - 1 - int(i)}.block.{j}.{_LEVEL_PARTS.get(part, part)}.{leaf}"
        case ["mid_block", "resnets", j, part, leaf]:
            return f"mid.block_{int(j) + 1}.{_LEVEL_PARTS.get(part, part)}.{leaf}"
        case ["down_blocks", i, "attentions", j, part, *_, leaf]:
            return f"down.{i}.attn.{j}.{_LEVEL_ATTENTION[part]}.{leaf}"
        case ["up_blocks", i, "attentions", j, part, *_, leaf]:
            return f"up.{levels - 1 - int(i)}.attn.{j}.{_LEVEL_ATTENTION[part]}.{leaf}"
        case ["mid_block", "attentions", "0", part, *_, leaf]:
            return f"mid.attn_1.{_LEVEL_ATTENTION[part]}.{leaf}"
        case ["down_blocks", i, "downsamplers", "0", "conv", leaf]:
            return f"down.{i}.downsample.conv.{leaf}"
        case ["up_blocks", i, "upsamplers", "0", "conv", leaf]:
            return f"up.{levels - 1 - int(i)}.upsample.conv.{leaf}"
    owner, _, leaf = name.rpartition(".")
    return f"{_LEVEL_ENDS.get(owner, owner)}.{leaf}"


def clip_source(name: str) -> Source:
    """Where CompVis' `FrozenCLIPEmbedder` keeps the weight `name` of a transformers `CLIPTextModel` (4 or 5)."""
    return Source(f"transformer.text_model.{name.removeprefix('text_model.')}")
