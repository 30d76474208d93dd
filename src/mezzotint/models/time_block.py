"""The part of a network that sees nothing but the time: its embedding, and what every residual block makes of it.

    t ── time_proj ──> sinusoids ── linear_1, SiLU, linear_2 ──> temb ── SiLU, time_emb_proj ──> one vector a block

TFMQ-DM (Huang et al. 2024, arXiv 2311.16503, section 4) calls it the temporal information block: a sampler visits a
finite set of times, so all of its outputs can be listed, whatever x_t is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float, Int
from torch import Tensor, nn

from mezzotint.errors import ModelError

TIME_PROJ, TIME_EMBEDDING = "time_proj", "time_embedding"
_PROJECTION = "time_emb_proj"


def time_layers(network: nn.Module) -> list[str]:
    """Names of the linear layers of `network` that see the time alone, those of its time embedding first.

    Raises:
        ModelError: there are none, or what the blocks are told depends on a class too.
    """
    if getattr(network, "class_embedding", None) is not None or getattr(network, "add_embedding", None) is not None:
        raise ModelError(
            f"{type(network).__name__} adds the embedding of a condition to that of the time, so its time layers have "
            "no finite set of inputs; choose time_layers='as-others' or another recipe"
        )
    embedding = [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and name.startswith(f"{TIME_EMBEDDING}.")
    ]
    projections = [f"{name}.{_PROJECTION}" for name in _told_blocks(network)]
    if not embedding or not projections:
        raise ModelError(f"{type(network).__name__} has no time embedding that its residual blocks project")
    return [*embedding, *projections]


class TimeBlock(nn.Module):
    """The time layers of a network as a block of its own, sharing its modules: t -> what all residual blocks are told.

    Float, simulated or integer network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        blocks: list[Any] = list(_told_blocks(network).values())
        self.time_proj = network.get_submodule(TIME_PROJ)
        self.time_embedding = network.get_submodule(TIME_EMBEDDING)
        self.projections = nn.ModuleList(block.time_emb_proj for block in blocks)
        self.activations = nn.ModuleList(
            nn.Identity() if block.skip_time_act else block.nonlinearity for block in blocks
        )

    def forward(self, t: Int[Tensor, " n"]) -> Float[Tensor, "n c"]:
        """The outputs of all projections at the times `t`, side by side."""
        temb = self.time_embedding(self.time_proj(t))
        pairs = zip(self.activations, self.projections, strict=True)
        return torch.cat([projection(activation(temb)) for activation, projection in pairs], dim=1)


def distinct_times(times: Sequence[int]) -> list[int]:
    """The times of a sampler, each once, in their order."""
    return list(dict.fromkeys(times))


def _told_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """The residual blocks of `network` that project the time embedding, by name."""
    blocks = ((name, module) for name, module in network.named_modules() if isinstance(module, ResnetBlock2D))
    return {name: block for name, block in blocks if getattr(block, _PROJECTION, None) is not None}
