"""Where along the trajectory the quantized network goes wrong.

At ten steps of the float model's trajectory, spread evenly with the first and the last among them, both networks get
the same float x_t and

    SQNR(step) = 10 log10( sum |eps_f|^2 / sum |eps_f - eps_q|^2 )  dB                             (1)

with sums over all trajectories. eps is what the network gives for the rows it sees: with guidance those are the
unconditional and the conditional rows of every trajectory, before they are combined. Combining them multiplies the
errors of both by the guidance scale, which is no property of the network.

Errors do not build up in it: it is the network alone, one call. `mean_sqnr` is the mean of the ten dB values (not the
dB of a pooled ratio), so that the late steps, where eps is easy and errors are large, count.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mezzotint.evaluation.paired import sqnr_db
from mezzotint.models.conditions import Conditions
from mezzotint.models.denoiser import device_of, predict_eps
from mezzotint.sampling.guidance import is_guided, network_rows
from mezzotint.sampling.schedulers import DDIM
from mezzotint.sampling.trajectory import Shape, iterate

MEASURED_STEPS = 10


class StepSqnr(BaseModel):
    """SQNR of eps at one step of the sampler (index `step`, the model's timestep `t`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    step: int
    t: int
    sqnr_db: float


def measured_steps(total: int, count: int = MEASURED_STEPS) -> list[int]:
    """At most `count` different steps of 0 ... total-1, evenly spread, first and last among them."""
    return sorted({int(step) for step in torch.linspace(0, total - 1, min(count, total), dtype=torch.float64).round()})


@torch.no_grad()
def eps_sqnr(
    float_network: nn.Module,
    quantized_network: nn.Module,
    scheduler: DDIM,
    seeds: Sequence[int],
    *,
    shape: Shape,
    steps: Sequence[int],
    batch_size: int,
    conditions: Conditions | None = None,
    guidance_scale: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> list[StepSqnr]:
    """Equation (1) at each of `steps`, over the float trajectories of `seeds`.

    Args:
        conditions: a row for each seed; None for unconditional networks.
        progress: called with (done, total), counting trajectories.
    """
    device = device_of(float_network)
    signal, noise, times = dict.fromkeys(steps, 0.0), dict.fromkeys(steps, 0.0), dict.fromkeys(steps, 0)
    for first in range(0, len(seeds), batch_size):
        rows = slice(first, min(first + batch_size, len(seeds)))
        batch, told = seeds[rows], None if conditions is None else conditions.rows(rows).to(device)
        drawing: dict[str, Any] = {"shape": shape, "conditions": told, "guidance_scale": guidance_scale, "replay": True}
        for state in iterate(float_network, scheduler, batch, **drawing):
            if state.step in signal:
                x, cond = network_rows(state.x_t, told, guidance_scale)
                guided = is_guided(told, guidance_scale)
                expected = predict_eps(float_network, x, state.t, cond) if guided else state.eps
                eps = predict_eps(quantized_network, x, state.t, cond)
                signal[state.step] += _energy(expected)
                noise[state.step] += _energy(expected - eps)
                times[state.step] = int(state.t)
        if progress is not None:
            progress(first + len(batch), len(seeds))
    return [StepSqnr(step=s, t=times[s], sqnr_db=sqnr_db(signal[s], noise[s])) for s in steps]


def mean_sqnr(rows: Sequence[StepSqnr]) -> float:
    """Mean of the dB values of the steps."""
    return statistics.fmean(row.sqnr_db for row in rows)


def _energy(x: Tensor) -> float:
    return float(x.double().square().sum())
