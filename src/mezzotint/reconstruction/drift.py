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

The bias is that of the published model, attention products on codes. A deployment may compute them in floats
(`gpu.network`), and the mean of eps moves by d_i: the grids of the probabilities lose mass, which the floats do not.
There conv_out's bias also loses

    shift = sum_i w_i d_i / sum_i w_i                                                                                (4)

so that its mean error, weighted as in (2), is that of the corrected network on codes, and not zero: which share of (3)
serves best was found by drawing, and the network answers to a tint in floats as it does on codes. d_i does not depend
on conv_out's bias, so it is measured while e_i is; as a mean of differences at equal x_t it needs fewer trajectories.

Of a network that predicts a velocity or the clean sample, the output's error moves eps by a factor k_i, sqrt(a_i) or
-sqrt(a_i / (1 - a_i)); its weight is w_i k_i. With guidance, e_i is the error of the guided eps: a constant passes
through guidance as it is. PLMS and eta > 0 weigh the steps a little otherwise than (1); the same weights are used.

    name  dtype    shape      meaning
    e_i   float32  [C]        mean over samples and pixels of eps of the simulated minus that of the float network;
                              under guidance of the guided eps, which a bias shifts by as much
    b     float32  [C]        taken off the bias of conv_out
    d_i   float32  [C]        mean of eps with attention products in floats minus eps with them on codes
    shift float32  [C]        taken off too, where attention products are in floats: `layers.float_attention`

Not in the paper: per-channel bias correction is known from classification networks (Nagel et al. 2019,
arXiv:1906.04721, section 4.2); new is the weight of a sampler's steps. The trajectories are the float model's, from
seeds that no calibration sample has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.config import QuantizeConfig
from mezzotint.errors import ConfigError
from mezzotint.layers.float_attention import OutputShift, float_products, has_quantized_products, shift_output_
from mezzotint.models.denoiser import network_of
from mezzotint.models.units import layers_by_role
from mezzotint.progress import Progress
from mezzotint.reconstruction.paired import PairedTrajectories
from mezzotint.sampling.correction import eps_factors
from mezzotint.sampling.ddim import DDIM

SHARES = (1.0, 0.5, 0.0)  # of b
COMPARED = 32  # trajectories that choose the share; those of (4) are the batches that they begin in


@dataclass(frozen=True)
class Errors:
    """What float trajectories tell of the simulated network, on the CPU.

    Attributes:
        errors: e_i, float64 [steps, C].
        moves: d_i, float64 [steps, C]; None if no attention product is on codes.
        ends: the samples that the float trajectories end in, [k, C, H, W].
    """

    errors: Float[Tensor, "steps c"]
    moves: Float[Tensor, "steps c"] | None
    ends: Float[Tensor, "k c h w"]


@torch.no_grad()
def correct_output_(
    pipeline: DiffusionPipeline,
    simulated: nn.Module,
    config: QuantizeConfig,
    device: torch.device,
    progress: Progress,
) -> dict[str, Any]:
    """Takes a share of (3) off the bias of `simulated`'s conv_out and gives it the shift (4), in place.

    Returns:
        What was found, for the manifest: {"trajectories": how many, "bias": what was taken off, "drift": (2) before,
        "share": of b, "sample_mse": {share: mean squared error of the samples drawn with it}}, and where attention
        products are on codes "output_shift", the fields of an `OutputShift`; the vectors are lists [C].

    Raises:
        ConfigError: conv_out has no bias.
    """
    name = layers_by_role(network_of(pipeline))["conv_out"]
    conv_out: Any = simulated.get_submodule(name)
    if conv_out.bias is None:
        raise ConfigError("drift_trajectories: conv_out of this network has no bias to correct; set it to 0")
    run = PairedTrajectories(pipeline, config, config.drift_trajectories, device)
    compared = min(run.count, COMPARED)
    progress.start("correct the output", (run.count + len(SHARES) * compared) * run.steps)
    found = mean_errors(run, simulated, progress)
    weight = drift_weights(run.scheduler)[:, None]
    drift = -(weight * found.errors).sum(0)
    bias, before = (-drift / weight.sum()).to(conv_out.bias), conv_out.bias.clone()
    mse = {}
    for share in SHARES:
        conv_out.bias.copy_(before - share * bias)
        mse[share] = _sample_mse(run, simulated, found.ends[:compared], progress)
    share = min(mse, key=lambda share: mse[share])
    conv_out.bias.copy_(before - share * bias)
    results: dict[str, Any] = {
        "trajectories": run.count,
        "bias": (share * bias).tolist(),
        "drift": drift.tolist(),
        "share": share,
        "sample_mse": {str(share): value for share, value in mse.items()},
    }
    if found.moves is not None:
        values = (weight * found.moves).sum(0) / weight.sum()
        shift = OutputShift(layer=name, values=tuple(values.tolist()))
        shift_output_(simulated, shift)
        results["output_shift"] = shift.model_dump(mode="json")
    progress.finish()
    return results


def drift_weights(scheduler: DDIM) -> Float[Tensor, " steps"]:
    """w_i k_i of the network's output at every step, float64; zero for a step that goes nowhere."""
    alphas = scheduler.alphas_cumprod.double()[scheduler.times]
    noise = ((1 - alphas) / alphas).sqrt()
    steps = noise - torch.cat([noise[1:], torch.zeros(1, dtype=noise.dtype)])
    return steps * eps_factors(scheduler)


def mean_errors(run: PairedTrajectories, simulated: nn.Module, progress: Progress) -> Errors:
    """e_i and d_i of every step on the float trajectories of `run`."""
    total = torch.zeros(run.steps, run.drawing["shape"][0], dtype=torch.float64)
    moved, told, ends = torch.zeros_like(total), 0, []
    for rows in run.batches(run.count):
        in_floats = run.predict(simulated, rows)
        moves = rows.start < COMPARED and has_quantized_products(simulated)
        for state, eps in run.pairs(simulated, rows):
            total[state.step] += _pixel_sums(eps - state.eps)
            if moves:
                with float_products(simulated):
                    moved[state.step] += _pixel_sums(in_floats(state.x_t, state.t) - eps)
            progress.advance(len(eps))
        told += len(state.x_prev) if moves else 0
        ends.append(state.x_prev.cpu())
    return Errors(total / run.count, moved / told if told else None, torch.cat(ends))


def _pixel_sums(error: Float[Tensor, "b c h w"]) -> Float[Tensor, " c"]:
    """Means over the pixels, added up over the batch; float64, on the CPU."""
    return error.double().mean((2, 3)).sum(0).cpu()


def _sample_mse(run: PairedTrajectories, network: nn.Module, ends: Tensor, progress: Progress) -> float:
    """Mean squared distance of the samples that `network` draws to `ends`, those of the float network."""
    total = 0.0
    for rows in run.batches(len(ends)):
        for state in run.iterate(network, rows):
            progress.advance(len(state.x_t))
        total += float((state.x_prev.cpu() - ends[rows]).double().square().sum())
    return total / ends.numel()
