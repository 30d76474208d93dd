"""Output correction: conv_out's bias takes up the mean error of eps that the sampler would pile up.

In the coordinate x / sqrt(a) (a = alpha-bar) a DDIM step from time t_i to t_{i+1} only adds noise prediction:

    x_{i+1} / sqrt(a_{i+1}) = x_i / sqrt(a_i) - (s_i - s_{i+1}) eps_i          s = sqrt((1 - a) / a)                 (1)

So if the quantized network is off by e_i on average, per channel, the sample ends off by

    drift = -sum_i w_i e_i          w_i = s_i - s_{i+1}, s = 0 after the last step                                   (2)

A constant b taken off eps at every step removes sum_i w_i b of it; the drift vanishes for

    b = sum_i w_i e_i / sum_i w_i                                                                                    (3)

Nearly all the weight lies on the first steps: at t = 800 of the linear schedule s is 25, so an error of 0.002 in eps,
which no loss of a block notices, tints the picture by 0.05. The network answers to such a tint, so (2) is a bound and
not the tint itself; what (3) brings is measured in docs/LOG.md.

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

from typing import Any

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.calibration.rows import calibration_conditions
from mezzotint.calibration.selection import calibration_seeds
from mezzotint.config import QuantizeConfig
from mezzotint.errors import ConfigError
from mezzotint.models.denoiser import network_of, sample_shape
from mezzotint.models.units import layers_by_role
from mezzotint.progress import Progress
from mezzotint.sampling.guidance import guided_eps
from mezzotint.sampling.schedulers import DDIM, make_scheduler
from mezzotint.sampling.trajectory import iterate


@torch.no_grad()
def correct_output_(
    pipeline: DiffusionPipeline,
    simulated: nn.Module,
    config: QuantizeConfig,
    device: torch.device,
    progress: Progress,
) -> dict[str, Any]:
    """Takes (3) off the bias of `simulated`'s conv_out, in place; what was found, for the manifest.

    Returns:
        {"trajectories": how many, "bias": b, "drift": (2) before the correction}, the vectors as lists [C].

    Raises:
        ConfigError: conv_out has no bias.
    """
    conv_out: Any = simulated.get_submodule(layers_by_role(network_of(pipeline))["conv_out"])
    if conv_out.bias is None:
        raise ConfigError("drift_trajectories: conv_out of this network has no bias to correct; set it to 0")
    scheduler = make_scheduler(pipeline, config.sampler)
    error = mean_errors(pipeline, simulated, scheduler, config, device, progress)
    weight = drift_weights(scheduler).to(error)
    drift = -(weight[:, None] * error).sum(0)
    bias = -drift / weight.sum()
    conv_out.bias -= bias.to(conv_out.bias)
    return {"trajectories": config.drift_trajectories, "bias": bias.tolist(), "drift": drift.tolist()}


def drift_weights(scheduler: DDIM) -> Float[Tensor, " steps"]:
    """w_i k_i of the network's output at every step, float64; zero for a step that goes nowhere."""
    alphas = scheduler.alphas_cumprod.double()[scheduler.times]
    noise = ((1 - alphas) / alphas).sqrt()
    steps = noise - torch.cat([noise[1:], torch.zeros(1, dtype=noise.dtype)])
    factors = {"epsilon": torch.ones_like(alphas), "v_prediction": alphas.sqrt(), "sample": -1 / noise}
    return steps * factors[scheduler.config.prediction_type]


def mean_errors(
    pipeline: DiffusionPipeline,
    simulated: nn.Module,
    scheduler: DDIM,
    config: QuantizeConfig,
    device: torch.device,
    progress: Progress,
) -> Float[Tensor, "steps c"]:
    """e_i of every step on float trajectories, float64 on the CPU."""
    floating, shape, count = network_of(pipeline), sample_shape(pipeline), config.drift_trajectories
    used, scale = config.selection.calib_size, config.sampler.guidance_scale
    seeds = calibration_seeds(config.seed, used + count)[used:]
    conditions = calibration_conditions(pipeline, config, count)
    total = torch.zeros(len(scheduler.times), shape[0], dtype=torch.float64, device=device)
    progress.start("correct the output", count * len(scheduler.times))
    for rows in _batches(count, config.forward_batch):
        told = None if conditions is None else conditions.rows(rows).to(device)
        drawing: dict[str, Any] = {"shape": shape, "conditions": told, "guidance_scale": scale, "device": device}
        for state in iterate(floating, scheduler, seeds[rows], **drawing):
            error = guided_eps(simulated, state.x_t, state.t, told, scale) - state.eps
            total[state.step] += error.double().mean((2, 3)).sum(0)
            progress.advance(len(error))
    progress.finish()
    return total.cpu() / count


def _batches(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
