"""Where along the trajectory the quantized network goes wrong.

At ten steps of the float model's trajectory, spread evenly with the first and the last among them, both networks get
the same float x_t and

    SQNR(step) = 10 log10( sum |eps_f|^2 / sum |eps_f - eps_q|^2 )  dB                             (1)

with sums over all trajectories, in two places:

    network   eps as the network gives it for the rows it sees. With guidance those are the unconditional and the
              conditional rows of every trajectory, before they are combined: combining them multiplies the errors of
              both by the guidance scale, which is no property of the network.
    sampler   eps as the sampler uses it: guided, and corrected where the network has a correction
              (`sampling.correction`). Without either it is the same number.

Errors do not build up in it: it is one call. Means are of the ten dB values (not the dB of a pooled ratio), so that the
late steps, where eps is easy and errors are large, count. A correction makes eps unbiased, which need not make it
nearer; what it does to the sampler's own noise is in no SQNR, only in the images.
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
from mezzotint.sampling.correction import corrector_for
from mezzotint.sampling.ddim import DDIM
from mezzotint.sampling.guidance import combine, is_guided, network_rows
from mezzotint.sampling.trajectory import Shape, iterate

MEASURED_STEPS = 10


class StepSqnr(BaseModel):
    """SQNR of eps at one step of the sampler (index `step`, the model's timestep `t`).

    Attributes:
        sqnr_db: of the network.
        sampler_db: of the sampler; None in records of before it was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    step: int
    t: int
    sqnr_db: float
    sampler_db: float | None = None


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
    """Equation (1) at each of `steps`, in both places, over the float trajectories of `seeds`.

    Args:
        conditions: a row for each seed; None for unconditional networks.
        progress: called with (done, total), counting trajectories.
    """
    device = device_of(float_network)
    inside, outside = ({step: _Energies() for step in steps} for _ in range(2))
    corrector = corrector_for(quantized_network, scheduler, guidance_scale, device)
    for first in range(0, len(seeds), batch_size):
        rows = slice(first, min(first + batch_size, len(seeds)))
        batch, told = seeds[rows], None if conditions is None else conditions.rows(rows).to(device)
        drawing: dict[str, Any] = {"shape": shape, "conditions": told, "guidance_scale": guidance_scale, "replay": True}
        for state in iterate(float_network, scheduler, batch, **drawing):
            if state.step in inside:
                x, cond = network_rows(state.x_t, told, guidance_scale)
                guided = is_guided(told, guidance_scale)
                expected = predict_eps(float_network, x, state.t, cond) if guided else state.eps
                eps = predict_eps(quantized_network, x, state.t, cond)
                inside[state.step].add(expected, eps)
                used = combine(eps, told, guidance_scale)
                if corrector is not None:
                    used = corrector.corrected(used, state.t)
                outside[state.step].add(state.eps, used)
        if progress is not None:
            progress(first + len(batch), len(seeds))
    times = scheduler.times
    return [StepSqnr(step=s, t=times[s], sqnr_db=inside[s].db, sampler_db=outside[s].db) for s in steps]


def mean_sqnr(rows: Sequence[StepSqnr]) -> float:
    """Mean of the dB values of the network."""
    return statistics.fmean(row.sqnr_db for row in rows)


def mean_sampler_sqnr(rows: Sequence[StepSqnr]) -> float | None:
    """Mean of the dB values of the sampler; None if a step has none, or there is no step."""
    values = [row.sampler_db for row in rows if row.sampler_db is not None]
    return statistics.fmean(values) if values and len(values) == len(rows) else None


class _Energies:
    """Sums of squares of what was expected and of the error."""

    def __init__(self) -> None:
        self._signal, self._noise = 0.0, 0.0

    def add(self, expected: Tensor, found: Tensor) -> None:
        self._signal += float(expected.double().square().sum())
        self._noise += float((expected - found).double().square().sum())

    @property
    def db(self) -> float:
        return sqnr_db(self._signal, self._noise)
