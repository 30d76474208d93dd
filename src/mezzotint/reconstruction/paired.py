"""Float trajectories on which the quantized network is compared with the float one, from seeds no calibration has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from mezzotint.calibration.rows import calibration_conditions
from mezzotint.calibration.selection import calibration_seeds
from mezzotint.config import QuantizeConfig
from mezzotint.models.conditions import Conditions
from mezzotint.models.denoiser import network_of, sample_shape
from mezzotint.sampling.replay import Predict, eps_of
from mezzotint.sampling.schedulers import make_scheduler
from mezzotint.sampling.trajectory import State, iterate


class PairedTrajectories:
    """`count` trajectories, batch by batch, with their seeds and conditions.

    Attributes:
        floating: the float network.
        scheduler, steps: the sampler of the config and how many steps it has.
        drawing: how the samplers are called.
    """

    def __init__(self, pipeline: DiffusionPipeline, config: QuantizeConfig, count: int, device: torch.device) -> None:
        used = config.selection.calib_size
        self.count = count
        self.floating = network_of(pipeline)
        self.scheduler = make_scheduler(pipeline, config.sampler)
        self.steps = len(self.scheduler.times)
        self.seeds = calibration_seeds(config.seed, used + count)[used:]
        self.conditions = calibration_conditions(pipeline, config, count)
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

    def predict(self, network: nn.Module, rows: slice) -> Predict:
        """(x_t, t) -> eps of `network` for these trajectories, guided where there is guidance."""
        return eps_of(network, self.told(rows), self.drawing["guidance_scale"], replay=True)

    def iterate(self, network: nn.Module, rows: slice) -> Iterator[State]:
        return iterate(network, self.scheduler, self.seeds[rows], conditions=self.told(rows), **self.drawing)

    def pairs(self, simulated: nn.Module, rows: slice) -> Iterator[tuple[State, Tensor]]:
        """(the float trajectories at a step, eps of `simulated` at the same x_t), see `predict`."""
        predict = self.predict(simulated, rows)
        for state in self.iterate(self.floating, rows):
            yield state, predict(state.x_t, state.t)
