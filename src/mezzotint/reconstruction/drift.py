"""Output correction: conv_out's bias takes up the mean error of eps that the sampler would pile up.

In the coordinate x / sqrt(a) (a = alpha-bar) a DDIM step from time t_i to t_{i+1} only adds noise prediction:

    x_{i+1} / sqrt(a_{i+1}) = x_i / sqrt(a_i) - (s_i - s_{i+1}) eps_i          s = sqrt((1 - a) / a)                 (1)

So if the quantized network is off by e_i on average, per channel, the sample ends off by

    drift = -sum_i w_i e_i          w_i = s_i - s_{i+1}, s = 0 after the last step                                   (2)

A constant b taken off eps at every step removes sum_i w_i b of it; the drift vanishes for

    b = sum_i w_i e_i / sum_i w_i                                                                                    (3)

Nearly all the weight lies on the first steps: at t = 800 of the linear schedule s is 25, so an error of 0.002 in eps,
which no loss of a block notices, tints the picture by 0.05. The network answers to such a tint, so (2) is a bound and
not the tint itself, and in some models (3) overshoots. So all of b, half, or nothing is taken, whichever brings the
samples that the quantized network draws closest to the float ones; what it brings is measured in docs/LOG.md.

Of a network that predicts a velocity or the clean sample, the output's error moves eps by a factor k_i, sqrt(a_i) or
-sqrt(a_i / (1 - a_i)); its weight is w_i k_i. With guidance, e_i is the error of the guided eps: a constant passes
through guidance as it is. PLMS and eta > 0 weigh the steps a little otherwise than (1); the same weights are used.

    name  dtype    shape      meaning
    e_i   float32  [C]        mean over samples and pixels of eps of the simulated minus that of the float network;
                              under guidance of the guided eps, which a bias shifts by as much
    b     float32  [C]        taken off the bias of conv_out

Not in the paper: per-channel bias correction is known from classification networks (Nagel et al. 2019,
arXiv:1906.04721, section 4.2); new is the weight of a sampler's steps. The trajectories are the float model's, from
seeds that no calibration sample has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.calibration.rows import calibration_conditions
from mezzotint.calibration.selection import calibration_seeds
from mezzotint.config import QuantizeConfig
from mezzotint.errors import ConfigError
from mezzotint.models.conditions import Conditions
from mezzotint.models.denoiser import network_of, sample_shape
from mezzotint.models.units import layers_by_role
from mezzotint.progress import Progress
from mezzotint.sampling.replay import eps_of
from mezzotint.sampling.schedulers import DDIM, make_scheduler
from mezzotint.sampling.trajectory import State, iterate

SHARES = (1.0, 0.5, 0.0)  # of b
COMPARED = 32  # trajectories that choose the share


@torch.no_grad()
def correct_output_(
    pipeline: DiffusionPipeline,
    simulated: nn.Module,
    config: QuantizeConfig,
    device: torch.device,
    progress: Progress,
) -> dict[str, Any]:
    """Takes a share of (3) off the bias of `simulated`'s conv_out, in place; what was found, for the manifest.

    Returns:
        {"trajectories": how many, "bias": what was taken off, "drift": (2) before, "share": of b, "sample_mse": {share:
        mean squared error of the samples drawn with it}}; the vectors are lists [C].

    Raises:
        ConfigError: conv_out has no bias.
    """
    conv_out: Any = simulated.get_submodule(layers_by_role(network_of(pipeline))["conv_out"])
    if conv_out.bias is None:
        raise ConfigError("drift_trajectories: conv_out of this network has no bias to correct; set it to 0")
    run = _Trajectories(pipeline, config, device)
    progress.start("correct the output", run.count * run.steps + len(SHARES) * run.compared * run.steps)
    error, ends = mean_errors(run, simulated, progress)
    weight = drift_weights(run.scheduler).to(error)
    drift = -(weight[:, None] * error).sum(0)
    bias, before = -drift / weight.sum(), conv_out.bias.clone()
    mse = {}
    for share in SHARES:
        conv_out.bias.copy_(before - share * bias)
        mse[share] = run.sample_mse(simulated, ends, progress)
    share = min(mse, key=lambda share: mse[share])
    conv_out.bias.copy_(before - share * bias)
    progress.finish()
    return {
        "trajectories": run.count,
        "bias": (share * bias).tolist(),
        "drift": drift.tolist(),
        "share": share,
        "sample_mse": {str(share): value for share, value in mse.items()},
    }


def drift_weights(scheduler: DDIM) -> Float[Tensor, " steps"]:
    """w_i k_i of the network's output at every step, float64; zero for a step that goes nowhere."""
    alphas = scheduler.alphas_cumprod.double()[scheduler.times]
    noise = ((1 - alphas) / alphas).sqrt()
    steps = noise - torch.cat([noise[1:], torch.zeros(1, dtype=noise.dtype)])
    factors = {"epsilon": torch.ones_like(alphas), "v_prediction": alphas.sqrt(), "sample": -1 / noise}
    return steps * factors[scheduler.config.prediction_type]


def mean_errors(
    run: _Trajectories, simulated: nn.Module, progress: Progress
) -> tuple[Float[Tensor, "steps c"], Float[Tensor, "k c h w"]]:
    """(e_i of every step on float trajectories, float64; the first `compared` samples these end in), on the CPU."""
    total = torch.zeros(run.steps, run.drawing["shape"][0], dtype=torch.float64)
    ends = []
    for rows in run.batches(run.count):
        told, scale = run.told(rows), run.drawing["guidance_scale"]
        predict = eps_of(simulated, told, scale, replay=True)
        for state in run.iterate(run.floating, rows):
            error = predict(state.x_t, state.t) - state.eps
            total[state.step] += error.double().mean((2, 3)).sum(0).cpu()
            progress.advance(len(error))
        ends.append(state.x_prev.cpu())
    return total / run.count, torch.cat(ends)[: run.compared]


class _Trajectories:
    """The trajectories of the correction: seeds that no calibration sample has, and their conditions."""

    def __init__(self, pipeline: DiffusionPipeline, config: QuantizeConfig, device: torch.device) -> None:
        used, self.count = config.selection.calib_size, config.drift_trajectories
        self.floating = network_of(pipeline)
        self.scheduler = make_scheduler(pipeline, config.sampler)
        self.steps, self.compared = len(self.scheduler.times), min(self.count, COMPARED)
        self.seeds = calibration_seeds(config.seed, used + self.count)[used:]
        self.conditions = calibration_conditions(pipeline, config, self.count)
        self.device, self.batch = device, config.forward_batch
        self.drawing: dict[str, Any] = {
            "shape": sample_shape(pipeline),
            "guidance_scale": config.sampler.guidance_scale,
            "device": device,
            "replay": True,
        }

    def batches(self, count: int) -> list[slice]:
        return [slice(start, min(start + self.batch, count)) for start in range(0, count, self.batch)]

    def told(self, rows: slice) -> Conditions | None:
        return None if self.conditions is None else self.conditions.rows(rows).to(self.device)

    def iterate(self, network: nn.Module, rows: slice) -> Iterator[State]:
        return iterate(network, self.scheduler, self.seeds[rows], conditions=self.told(rows), **self.drawing)

    def _counted(self, network: nn.Module, rows: slice, progress: Progress) -> Iterator[State]:
        for state in self.iterate(network, rows):
            progress.advance(rows.stop - rows.start)
            yield state

    def sample_mse(self, network: nn.Module, ends: Tensor, progress: Progress) -> float:
        """Mean squared distance of the samples that `network` draws to `ends`, those of the float network."""
        total = 0.0
        for rows in self.batches(self.compared):
            *_, last = self._counted(network, rows, progress)
            total += float((last.x_prev.cpu() - ends[rows]).double().square().sum())
        return total / ends.numel()
