"""Tiny integer networks, made once for each process: ranges of one batch, rounding to nearest."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import nn

from mezzotint.calibration.plan import plan_layers
from mezzotint.calibration.ranges import fit_ranges
from mezzotint.calibration.rows import CalibrationSet
from mezzotint.config import RangeConfig
from mezzotint.layers.swap import prepare, to_integer
from mezzotint.models.denoiser import example_inputs
from mezzotint.models.units import layers_by_role, split_shortcuts
from mezzotint.progress import NullProgress
from mezzotint.recipes.registry import make_config
from tiny import tiny_text_unet, tiny_unet

SMALL: dict[str, Any] = {  # one level: every kind of block but those between levels, half the time to trace
    "sample_size": 8,
    "block_out_channels": (16,),
    "down_block_types": ("AttnDownBlock2D",),
    "up_block_types": ("AttnUpBlock2D",),
}
NETWORKS = {
    "pixels": tiny_unet,
    "small": functools.partial(tiny_unet, **SMALL),
    "edges": functools.partial(tiny_unet, **SMALL),  # inputs of conv_in and conv_out stay float
    "text": tiny_text_unet,
}


@functools.cache
def integer_network(kind: str, bits: str = "w8a8", *, matmuls: bool = True) -> nn.Module:
    """One of NETWORKS on integers, to be left as it is; without `matmuls` the products of attention stay float."""
    network = NETWORKS[kind]()
    config = make_config("nearest", bits).model_copy(update={"ranges": RangeConfig(candidates=2)})
    config = config.model_copy(update={"edge_layers": "float-inputs" if kind == "edges" else "by-name"})
    inputs = example_inputs(network, batch=2)
    plan = plan_layers(network, config, splits=split_shortcuts(network, *inputs), edges=layers_by_role(network))
    plan = {name: spec for name, spec in plan.items() if matmuls or spec.kind != "matmul"}
    simulated = prepare(network, plan)
    cond = dict(zip(("encoder_hidden_states",), inputs[2:], strict=False))
    rows = CalibrationSet(inputs[0], inputs[1], cond)
    fit_ranges(simulated, rows, config, torch.device("cpu"), NullProgress())
    return to_integer(simulated)


def fresh(kind: str, bits: str = "w8a8", *, matmuls: bool = True) -> Any:
    """A copy of it, to be changed."""
    return copy.deepcopy(integer_network(kind, bits, matmuls=matmuls))
