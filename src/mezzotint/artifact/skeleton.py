"""The network of an artifact, empty: every leaf has its name, shape and dtype, and no memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin

from mezzotint.errors import ModelError
from mezzotint.layers.spec import LayerSpec
from mezzotint.layers.swap import empty_integer_network_


def network_class(name: str) -> type[ModelMixin]:
    """The diffusers network class called `name`. Raises ModelError if there is none."""
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, ModelMixin)):
        raise ModelError(f"{name} is no network class of diffusers {diffusers.__version__}; only those are supported")
    return found


def empty_float_network(class_name: str, config: Mapping[str, Any]) -> ModelMixin:
    """The float network of `config` on the meta device."""
    with torch.device("meta"):
        return network_class(class_name).from_config(dict(config)).eval()


def empty_quantized_network(class_name: str, config: Mapping[str, Any], layers: Mapping[str, LayerSpec]) -> ModelMixin:
    """The network of `config` with the layers named in `layers` exchanged for empty integer ones.

    Raises:
        ModelError: `class_name` is unknown, or `layers` names a layer that the network does not have.
    """
    network = empty_float_network(class_name, config)
    try:
        with torch.device("meta"):
            return empty_integer_network_(network, layers)
    except (AttributeError, TypeError) as error:
        raise ModelError(f"the layers of the manifest do not fit {class_name}: {error}") from error
