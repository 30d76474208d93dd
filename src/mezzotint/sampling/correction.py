"""Quantization noise taken out of a sampler's steps: PTQD (He et al. 2023, arXiv 2305.10657, sections 3.2 and 3.3).

What a quantized network says is split into a multiple of what the float one says, a constant, and a rest that has
nothing to do with either (at each time of the sampler, measured: `reconstruction.noise`):

    eps_q = g eps + b + r          g = 1 + k, k the correlated part; b per channel; r of variance v g^2        (1)

The first two are taken out of every prediction, before the sampler sees it:

    eps' = (eps_q - b) / g = eps + r / g                                                                         (2)

The rest is noise of variance v in eps', and so of variance c^2 v in the next sample, c = d x_s / d eps. A sampler that
adds noise of its own, of variance sigma^2, adds so much less:

    sigma'^2 = max(sigma^2 - c^2 v, 0)                                                                           (3)

With eta = 0 there is no such noise, and r stays. Under guidance all of this is about the guided eps, which is what the
step uses. Of a network that predicts a velocity or the clean sample, (1) and (2) are about its output, c likewise.

    name      dtype    shape   meaning
    times     int      [T]     distinct times of the sampler that was measured
    gain      float    [T]     g
    bias      float    [T, C]  b
    variance  float    [T]     v, of the error that (2) leaves

A time that was not measured takes the numbers of the nearest one, and one log line says so.

The correction hangs on the network as the attribute `noise_correction` and goes where the network goes; `iterate`
applies it. So every sampler of this package draws with it, and the network called as such answers uncorrected.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mezzotint.sampling.ddim import DDIM

logger = logging.getLogger("mezzotint")

Predict = Callable[[Tensor, int], Tensor]


class NoiseCorrection(BaseModel):
    """The numbers of the module's table, and the guidance scale they were measured with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    times: tuple[int, ...] = Field(min_length=1)
    gain: tuple[float, ...]
    bias: tuple[tuple[float, ...], ...]
    variance: tuple[float, ...]
    guidance_scale: float


def correct_(network: nn.Module, correction: NoiseCorrection) -> None:
    """From now on samplers correct what `network` says."""
    network.noise_correction = correction  # type: ignore[assignment]


def correction_of(network: nn.Module) -> NoiseCorrection | None:
    """The correction of `network`, None if it has none."""
    return getattr(network, "noise_correction", None)


class Corrector:
    """A correction on the steps of one sampler.

    Attributes:
        shares: of the sampler's own noise that each step still adds, sigma' / sigma.
    """

    def __init__(self, correction: NoiseCorrection, scheduler: DDIM, device: torch.device) -> None:
        self._correction = correction
        self._bias = torch.tensor(correction.bias, device=device)[:, None, :, None, None]  # [T, 1, C, 1, 1]
        self.shares = [self._share(scheduler, step) for step in range(len(scheduler.times))]

    def around(self, predict: Predict) -> Predict:
        """`predict` with equation (2) behind it."""

        return lambda x_t, t: self.corrected(predict(x_t, t), t)

    def corrected(self, eps: Float[Tensor, "b c h w"], t: int) -> Float[Tensor, "b c h w"]:
        """Equation (2) on what the network said at time `t`."""
        row = self._row(t)
        return (eps - self._bias[row]) / self._correction.gain[row]

    def _row(self, t: int) -> int:
        times = self._correction.times
        return min(range(len(times)), key=lambda row: abs(times[row] - t))

    def _share(self, scheduler: DDIM, step: int) -> float:
        t, s = scheduler.times[step], scheduler.previous_time(step)
        if scheduler.eta == 0 or s == t:
            return 1.0
        a_t, a_s = alpha_at(scheduler, t), alpha_at(scheduler, s)
        sigma_2 = scheduler.eta**2 * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
        if sigma_2 == 0:
            return 1.0
        per_eps = (1 - a_s - sigma_2) ** 0.5 - (a_s * (1 - a_t) / a_t) ** 0.5
        excess = (per_eps * float(eps_factors(scheduler)[step])) ** 2 * self._correction.variance[self._row(t)]
        return max(0.0, 1 - excess / sigma_2) ** 0.5


def corrector_for(network: nn.Module, scheduler: DDIM, guidance_scale: float, device: torch.device) -> Corrector | None:
    """What corrects the steps of `scheduler` with `network`; None if nothing does."""
    correction = correction_of(network)
    if correction is None:
        return None
    unknown = [t for t in scheduler.times if t not in correction.times]
    if unknown:
        _say(f"noise correction: time {unknown[0]} was not measured and takes the numbers of the nearest time")
    if guidance_scale != correction.guidance_scale:
        _say(f"noise correction: measured with guidance {correction.guidance_scale:g}, used with {guidance_scale:g}")
    return Corrector(correction, scheduler, device)


def alpha_at(scheduler: DDIM, t: int) -> float:
    """alpha-bar at time `t`; -1 stands for clean samples."""
    return float(scheduler.alphas_cumprod[t] if t >= 0 else scheduler.final_alpha_cumprod)


def eps_factors(scheduler: DDIM) -> Float[Tensor, " steps"]:
    """How far eps moves when the network's output moves by one, x_t fixed; float64, for each step."""
    alphas = scheduler.alphas_cumprod.double()[scheduler.times]
    factors: dict[str, Any] = {
        "epsilon": torch.ones_like(alphas),
        "v_prediction": alphas.sqrt(),
        "sample": -(alphas / (1 - alphas)).sqrt(),
    }
    return factors[scheduler.config.prediction_type]


@functools.cache
def _say(line: str) -> None:
    """Logs a line, the first time that it comes up."""
    logger.warning(line)
