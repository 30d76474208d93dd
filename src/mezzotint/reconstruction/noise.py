"""Measuring the quantization noise of eps that `sampling.correction` takes out (PTQD, arXiv 2305.10657, section 3.2).

Both networks see the x_t of float trajectories. At each time of the sampler, over all samples and pixels, by least
squares with an intercept for each channel:

    eps_q = g eps + b + r        g = sum_c cov_c(eps, eps_q) / sum_c var_c(eps)                               (1)
                                 b_c = mean_c(eps_q) - g mean_c(eps)
    v     = mean r^2 / g^2                                                                                    (2)

Differs from the paper, which regresses through the origin and takes the mean of what is left for b: the same where eps
has mean zero. Where g falls below one half, eps_q has lost the signal and a division would blow up what is left; there
g is 1 and only b is taken out.
"""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.config import QuantizeConfig
from mezzotint.models.time_block import distinct_times
from mezzotint.progress import Progress
from mezzotint.reconstruction.paired import PairedTrajectories
from mezzotint.sampling.correction import NoiseCorrection

LEAST_GAIN = 0.5


@torch.no_grad()
def measure_noise(
    pipeline: DiffusionPipeline,
    simulated: nn.Module,
    config: QuantizeConfig,
    device: torch.device,
    progress: Progress,
) -> NoiseCorrection:
    """The correction of `simulated` on the sampler of `config`, from `config.correction_trajectories` trajectories."""
    run = PairedTrajectories(pipeline, config, config.correction_trajectories, device)
    times = distinct_times(run.scheduler.times)
    moments = [Moments(run.drawing["shape"][0]) for _ in times]
    progress.start("measure the noise", run.count * run.steps)
    for rows in run.batches(run.count):
        for state, eps in run.pairs(simulated, rows):
            moments[times.index(state.t)].add(state.eps, eps)
            progress.advance(len(eps))
    progress.finish()
    fits = [moment.fit() for moment in moments]
    return NoiseCorrection(
        times=tuple(times),
        gain=tuple(gain for gain, _, _ in fits),
        bias=tuple(tuple(bias.tolist()) for _, bias, _ in fits),
        variance=tuple(variance for _, _, variance in fits),
        guidance_scale=config.sampler.guidance_scale,
    )


class Moments:
    """First and second moments of pairs (eps, eps_q), per channel, in float64."""

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._sums = torch.zeros(5, channels, dtype=torch.float64)  # eps, eps_q, eps^2, eps eps_q, eps_q^2

    def add(self, eps: Float[Tensor, "b c h w"], eps_q: Float[Tensor, "b c h w"]) -> None:
        e, q = (x.double().movedim(1, 0).flatten(1) for x in (eps, eps_q))  # [C, n]
        self._sums += torch.stack([e.sum(1), q.sum(1), (e * e).sum(1), (e * q).sum(1), (q * q).sum(1)]).cpu()
        self._count += e.shape[1]

    def fit(self) -> tuple[float, Float[Tensor, " c"], float]:
        """(g, b, v) of (1) and (2)."""
        mean_e, mean_q, ee, eq, qq = self._sums / self._count
        var_e, cov, var_q = ee - mean_e**2, eq - mean_e * mean_q, qq - mean_q**2
        spread = float(var_e.sum())
        gain = float(cov.sum()) / spread if spread > 0 else 1.0
        if not gain > LEAST_GAIN:
            gain = 1.0
        rest = var_q - 2 * gain * cov + gain**2 * var_e
        return gain, mean_q - gain * mean_e, max(0.0, float(rest.mean())) / gain**2
