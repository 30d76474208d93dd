"""The network of an artifact, empty: every leaf has its name, shape and dtype, and no memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, PretrainedConfig, PreTrainedModel

from mezzotint.errors import ModelError
from mezzotint.layers.spec import LayerSpec
from mezzotint.layers.swap import empty_integer_network_
from mezzotint.models.unets import NETWORK_CLASSES

# Networks of transformers that an artifact may hold, with the class of their configuration.
TEXT_ENCODERS: dict[str, tuple[type[PreTrainedModel], type[PretrainedConfig]]] = {
    "CLIPTextModel": (CLIPTextModel, CLIPTextConfig)
}


def network_class(name: str) -> type[ModelMixin]:
    """The network class called `name`, our own or of diffusers. Raises ModelError if there is none."""
    found = NETWORK_CLASSES.get(name) or getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, ModelMixin)):
        raise ModelError(f"{name} is no network class of diffusers {diffusers.__version__}; only those are supported")
    return found


def config_of(network: Any) -> dict[str, Any]:
    """The configuration of a network of diffusers or transformers, as plain data."""
    return network.config.to_dict() if isinstance(network, PreTrainedModel) else dict(network.config)


def save_config(network: Any, folder: Path) -> None:
    """Writes `folder`/config.json."""
    if isinstance(network, PreTrainedModel):
        network.config.save_pretrained(folder)
    else:
        network.save_config(folder)


def empty_float_network(class_name: str, config: Mapping[str, Any]) -> nn.Module:
    """The float network of `config` on the meta device."""
    with torch.device("meta"):
        if class_name in TEXT_ENCODERS:
            kind, kind_of_config = TEXT_ENCODERS[class_name]
            return kind(kind_of_config.from_dict(dict(config))).eval()
        return network_class(class_name).from_config(dict(config)).eval()


def empty_quantized_network(class_name: str, config: Mapping[str, Any], layers: Mapping[str, LayerSpec]) -> nn.Module:
    """The network of `config` with the layers named in `layers` exchanged for empty integer ones.

    Raises:
        ModelError: `class_name` is unknown, or `layers` names a layer that the network does not have.
    """
    network = empty_float_network(class_name, config)
    _count_positions_(network)
    try:
        with torch.device("meta"):
            return empty_integer_network_(network, layers)
    except (AttributeError, TypeError) as error:
        raise ModelError(f"the layers of the manifest do not fit {class_name}: {error}") from error


def _count_positions_(network: nn.Module) -> None:
    """Gives a text encoder the position numbers that it does not keep in its state."""
    stored = network.state_dict().keys()
    for name, leaf in list(network.named_buffers()):
        owner, _, last = name.rpartition(".")
        if last == "position_ids" and name not in stored:
            network.get_submodule(owner).position_ids = torch.arange(leaf.shape[-1]).expand(leaf.shape)
