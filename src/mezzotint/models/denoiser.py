"""The network inside a pipeline: where it is, what it eats, one call.

A *network* here is the denoiser, an `nn.Module` network(x_t, t, **cond) -> eps. What it predicts may be noise, the
clean sample or a velocity; the scheduler knows. We call the raw output eps everywhere: it is what quantization sees.

    name  dtype    shape         meaning
    x_t   float32  [B, C, H, W]  sample at time t
    t     int64    [] or [B]     model time; rows of one batch may lie at different times
    cond  any      [B, ...]      keyword arguments of the network: class_labels, encoder_hidden_states
    eps   float32  [B, C, H, W]  the network's output
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel, UNet2DModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from mezzotint.errors import ModelError
from mezzotint.models.conditions import Cond

DENOISERS: tuple[Any, ...] = (UNet2DModel, UNet2DConditionModel)
EXAMPLE_TOKENS = 8  # length of the text states in example inputs


def network_of(pipeline: DiffusionPipeline) -> nn.Module:
    """The denoiser of `pipeline`. ModelError if it has none that is supported."""
    network, kind = getattr(pipeline, "unet", None), type(pipeline).__name__
    expected = " or ".join(denoiser.__name__ for denoiser in DENOISERS)
    if network is None:
        parts = ", ".join(sorted(getattr(pipeline, "components", {}))) or "no parts"
        raise ModelError(f"{kind} has no denoiser: expected a unet ({expected}), it has {parts}")
    if not isinstance(network, DENOISERS):
        raise ModelError(f"{kind}.unet is no supported denoiser: expected {expected}, got {type(network).__name__}")
    config = _config(network)
    if config.in_channels != config.out_channels:
        raise ModelError(
            f"{kind}.unet maps {config.in_channels} channels to {config.out_channels}: "
            f"networks that take extra channels or predict a variance are not supported"
        )
    return network


def sample_shape(pipeline: DiffusionPipeline) -> tuple[int, int, int]:
    """(C, H, W) of one sample x_t."""
    return _shape(network_of(pipeline))


def device_of(network: nn.Module) -> torch.device:
    """Where the tensors of `network` lie."""
    return next(tensor.device for tensor in (*network.parameters(), *network.buffers()))


def example_inputs(network: nn.Module, batch: int = 1) -> tuple[Tensor, ...]:
    """Positional inputs (x_t, t, ...) with which `network` runs once; the same every time."""
    generator = torch.Generator().manual_seed(0)
    dtype, device, config = _float_dtype(network), device_of(network), _config(network)
    inputs = [torch.randn((batch, *_shape(network)), generator=generator), torch.full((batch,), 500)]
    if isinstance(network, UNet2DConditionModel):
        if config.addition_embed_type is not None:
            raise ModelError(f"networks with addition_embed_type={config.addition_embed_type!r} are not supported")
        width = config.encoder_hid_dim or config.cross_attention_dim
        width = width if isinstance(width, int) else width[0]
        inputs.append(torch.randn((batch, EXAMPLE_TOKENS, width), generator=generator))
    if config.class_embed_type == "identity":
        embedding: Any = network.get_submodule("time_embedding.linear_2")
        inputs.append(torch.zeros(batch, embedding.out_features))
    elif config.class_embed_type is not None or config.num_class_embeds is not None:
        inputs.append(torch.zeros(batch, dtype=torch.int64))
    return tuple(value.to(device, dtype if value.is_floating_point() else None) for value in inputs)


def predict_eps(
    network: nn.Module,
    x_t: Float[Tensor, "b c h w"],
    t: int | Int[Tensor, ""] | Int[Tensor, " b"],
    cond: Cond | None = None,
) -> Float[Tensor, "b c h w"]:
    """The network's output in the dtype of x_t; computed in the network's own dtype."""
    t, dtype = torch.as_tensor(t, dtype=torch.int64, device=x_t.device).expand(len(x_t)), _float_dtype(network)
    cond = {name: rows.to(dtype) if rows.is_floating_point() else rows for name, rows in (cond or {}).items()}
    eps = network(x_t.to(dtype), t, **cond, return_dict=False)[0]
    return eps.to(x_t.dtype)


def mid_feature_module(network: nn.Module) -> nn.Module:
    """The module whose *input* is the feature map that TDAC scores: the output of the middle block's first resnet.

    That is the middle attention, or, in a middle block without attention, the second resnet.
    """
    middle: Any = getattr(network, "mid_block", None)
    if middle is None:
        raise ModelError(f"{type(network).__name__} has no mid_block, so there are no features to score time steps by")
    attentions = [module for module in getattr(middle, "attentions", []) if module is not None]
    return attentions[0] if attentions else middle.resnets[1]


def _shape(network: nn.Module) -> tuple[int, int, int]:
    config = _config(network)
    size = config.sample_size
    if size is None:
        raise ModelError(f"{type(network).__name__}: its config does not say the sample_size")
    height, width = (size, size) if isinstance(size, int) else size
    return config.in_channels, height, width


def _config(network: nn.Module) -> Any:
    """The diffusers config of `network`; torch's typing takes every attribute of a module for a tensor."""
    return network.config


def _float_dtype(network: nn.Module) -> torch.dtype:
    """The dtype that `network` computes in: that of its first float parameter (integer layers have none)."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
