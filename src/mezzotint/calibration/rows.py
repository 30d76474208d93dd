"""The rows that calibrate, and the conditions of the trajectories they come from.

A row is what the network sees in one call: x_t, a time, and the rows of its keyword arguments. Where guidance is on,
every step of a sampler calls the network with and without its condition, so every trajectory gives two rows, at the
same x_t and t; the guidance scale does not weigh them (as in the released code).

    rows       unconditional model, or without guidance    2 k                  2 k + 1
    x_t, t     of trajectory k = the row's index           of trajectory k      the same
    cond       its condition, if it has one                unconditional        its condition
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float, Int
from torch import Tensor, nn

from mezzotint.config import QuantizeConfig
from mezzotint.models.conditioning import condition_inputs, encode_conditions
from mezzotint.models.conditions import Conditions
from mezzotint.models.denoiser import predict_eps
from mezzotint.sampling.guidance import network_rows

COND_PREFIX = "cond."


@runtime_checkable
class Rows(Protocol):
    """Rows that a network can be run on, batch by batch; whatever that network takes."""

    def __len__(self) -> int: ...

    def calls(self, size: int, device: torch.device) -> Iterator[Callable[[nn.Module], Tensor]]:
        """One call for every run of up to `size` rows."""


@dataclass(frozen=True)
class CalibrationSet:
    """The rows that calibrate.

    Attributes:
        x_t: float32 [R, C, H, W] on the CPU.
        t: int64 [R], model time steps.
        cond: keyword arguments of the network, rows [R, ...] each; empty for an unconditional network.
    """

    x_t: Float[Tensor, "r c h w"]
    t: Int[Tensor, " r"]
    cond: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of_trajectories(
        cls,
        x_t: Float[Tensor, "n c h w"],
        t: Int[Tensor, " n"],
        conditions: Conditions | None,
        guidance_scale: float,
    ) -> CalibrationSet:
        """The rows of one sample from each of n trajectories; see the module's table."""
        x, cond = network_rows(x_t, conditions, guidance_scale)  # [n or 2n, ...], the unconditional ones first
        calls = len(x) // max(len(x_t), 1)
        order = torch.arange(len(x)).view(calls, -1).t().flatten()
        return cls(x[order], t.repeat(calls)[order], {name: rows[order] for name, rows in cond.items()})

    def __len__(self) -> int:
        return self.x_t.shape[0]

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[slice, Tensor, Tensor, dict[str, Tensor]]]:
        """(rows, x_t, t, cond) on `device` for consecutive runs of up to `size` rows; the remainder is kept."""
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            cond = {name: values[rows].to(device) for name, values in self.cond.items()}
            yield rows, self.x_t[rows].to(device), self.t[rows].to(device), cond

    def calls(self, size: int, device: torch.device) -> Iterator[Callable[[nn.Module], Tensor]]:
        """One call of the network for each of `batches`."""
        for _, x_t, t, cond in self.batches(size, device):
            yield lambda network, x_t=x_t, t=t, cond=cond: predict_eps(network, x_t, t, cond)  # type: ignore[misc]

    def state(self) -> dict[str, Tensor]:
        """All tensors by name, for a checkpoint."""
        return {"x_t": self.x_t, "t": self.t, **{f"{COND_PREFIX}{name}": rows for name, rows in self.cond.items()}}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> CalibrationSet:
        """The rows that `state` came from."""
        cond = {name.removeprefix(COND_PREFIX): rows for name, rows in state.items() if name.startswith(COND_PREFIX)}
        return cls(state["x_t"], state["t"], cond)


def calibration_conditions(pipeline: DiffusionPipeline, config: QuantizeConfig, count: int) -> Conditions | None:
    """The conditions of `count` trajectories that calibrate, None for an unconditional pipeline.

    `config.conditions`, in their order and over again if they are few; without them the calibration half of the
    prompts or classes that come with the model, which evaluation never draws, or the very ones that it draws first
    (`condition_split`).

    Raises:
        ConfigError: `config.conditions` is not what the pipeline takes.
    """
    given: Any = config.conditions
    inputs: Any = None if given is None else list(islice(cycle(given), count))
    if given is None:
        seen = config.condition_split == "evaluation"
        inputs = condition_inputs(pipeline, config.condition_split, count, 0 if seen else config.seed)
    return encode_conditions(pipeline, inputs)
