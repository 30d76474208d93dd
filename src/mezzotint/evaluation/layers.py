"""Which layers add the error: every quantized layer on the very input that its float twin gets.

    SQNR(layer) = 10 log10( sum |y|^2 / sum |y - y_q|^2 ),   y = layer(x),  y_q = quantized layer(x)               (1)

x is what the layer sees inside the *float* network, so nothing that earlier layers did wrong counts: the numbers name
causes. (Comparing two whole networks layer by layer instead names the last layers of whatever is long.) How much a
layer's error matters for the picture they do not say. Sums run over trajectories, over a few steps from the first to
the last, and with guidance over both rows of a trajectory. Products of attention have no float twin and are left out,
and so are layers with a grid for every time, whose input says the time as well (`layers.timed`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mezzotint.evaluation.paired import sqnr_db
from mezzotint.layers.spec import LayerSpec
from mezzotint.models.conditions import Conditions
from mezzotint.models.denoiser import predict_eps
from mezzotint.sampling.ddim import DDIM
from mezzotint.sampling.guidance import network_rows
from mezzotint.sampling.trajectory import Shape, iterate

LAYER_STEPS = 3  # of the sampler: first, middle, last
LAYER_TRAJECTORIES = 8


class LayerSqnr(BaseModel):
    """Equation (1) of one layer, in dB; infinite for a layer that changes nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    name: str
    sqnr_db: float


@torch.no_grad()
def layer_sqnr(
    float_network: nn.Module,
    quantized_network: nn.Module,
    scheduler: DDIM,
    seeds: Sequence[int],
    *,
    shape: Shape,
    steps: Sequence[int],
    conditions: Conditions | None = None,
    guidance_scale: float = 1.0,
) -> list[LayerSqnr]:
    """Equation (1) of every quantized convolution and linear layer, worst first.

    Args:
        steps: of the sampler, at which the layers are looked at.
        conditions: a row for each seed; None for unconditional networks.
    """
    energies: dict[str, list[float]] = {}
    twins = _twins(float_network, quantized_network)
    told = None if conditions is None else conditions.to(next(float_network.parameters()).device)
    drawing: dict[str, Any] = {"shape": shape, "conditions": told, "guidance_scale": guidance_scale}
    for state in iterate(float_network, scheduler, seeds, **drawing, replay=True):
        if state.step not in steps:
            continue
        x, cond = network_rows(state.x_t, told, guidance_scale)
        handles = [
            layer.register_forward_hook(_compare(twin, energies.setdefault(name, [0.0, 0.0])))
            for name, (layer, twin) in twins.items()
        ]
        try:
            predict_eps(float_network, x, state.t, cond)
        finally:
            for handle in handles:
                handle.remove()
    found = [LayerSqnr(name=name, sqnr_db=sqnr_db(*pair)) for name, pair in energies.items()]
    return sorted(found, key=lambda layer: layer.sqnr_db)


def _twins(float_network: nn.Module, quantized_network: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Float layers whose place in the quantized network holds a quantized one, with that."""
    places = dict(quantized_network.named_modules())
    return {
        name: (layer, places[name])
        for name, layer in float_network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and _takes_the_same(places.get(name))
    }


def _takes_the_same(twin: nn.Module | None) -> bool:
    """Whether a module is a quantized layer and its input that of the float layer."""
    spec = getattr(twin, "spec", None)
    return isinstance(spec, LayerSpec) and not spec.times


def _compare(twin: nn.Module, energy: list[float]) -> Callable[[nn.Module, Any, Tensor], None]:
    """A hook that adds the energies of a layer's output and of its twin's error to `energy`."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        error = output - twin(*inputs)
        energy[0] += float(output.double().square().sum())
        energy[1] += float(error.double().square().sum())

    return hook
