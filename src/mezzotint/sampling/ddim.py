"""DDIM along an explicit list of times.

One step of DDIM (Song et al. 2021, equations 12 and 16) from time t to the previous time s <= t, a = alpha-bar:

    x_0   = (x_t - sqrt(1 - a_t) eps) / sqrt(a_t)                          clipped where the scheduler says so       (1)
    sigma = eta sqrt((1 - a_s) / (1 - a_t)) sqrt(1 - a_t / a_s)                                                      (2)
    x_s   = sqrt(a_s) x_0 + sqrt(1 - a_s - sigma^2) eps + sigma z          z ~ N(0, I)                               (3)

    name       dtype    shape        meaning
    x_t, x_s   float32  [B, C, H, W] samples at times t and s
    a          float32  []           product of the alphas up to a time; after the last step 1 (DDIM) or a_0 (CompVis)
    timesteps  int64    [steps]      model times, descending; step i goes from timesteps[i] to timesteps[i + 1]

diffusers' DDIMScheduler derives s as t - 1000 // steps, which is right for uniform times only. Here s is the next time
of the list, so any list works. On uniform times both agree.

A list may repeat a time (`mezzotint.sampling.spacings`), and a step that goes nowhere (s = t) returns x_t itself. That
is what (1)-(3) say in exact arithmetic. Differs from the formula evaluated in floats: rounding does not creep in, and a
clipped x_0 does not move a sample that stands still.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from mezzotint.sampling.spacings import SPACINGS


class Advance(NamedTuple):
    """One step of a sampler: the network's output at the step's own time, and the sample after the step."""

    eps: Tensor
    x_prev: Tensor


class DDIM(DDIMScheduler):
    """diffusers' DDIM scheduler with the previous time of every step made explicit; see the module's docstring.

    `move` needs no memory: it is told the step. `step`, for diffusers' own pipelines, counts from `set_timesteps` on.

    Args:
        config: arguments of `DDIMScheduler`.
        spacing: a key of SPACINGS; the config's `timestep_spacing` is not used.
        eta: of equation (2), for `move`.
    """

    def __init__(self, *, spacing: str = "uniform", eta: float = 0.0, **config: Any) -> None:
        super().__init__(**config)
        self.spacing = spacing
        self.eta = eta
        self._times: list[int] = []
        self._counted = 0

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Sets the times. The config's `steps_offset` (1 for CompVis) is added to each, up to the last trained time."""
        last = int(self.config.num_train_timesteps) - 1
        times = SPACINGS[self.spacing](last + 1, num_inference_steps)
        offset = int(self.config.steps_offset)
        self.timesteps = torch.tensor([min(time + offset, last) for time in reversed(times)], device=device)
        self.num_inference_steps = num_inference_steps
        self._times = self.timesteps.tolist()
        self._counted = 0

    @property
    def times(self) -> list[int]:
        """Model times, descending, as plain integers."""
        return list(self._times)

    def previous_time(self, step: int) -> int:
        """The time that `step` goes to; -1 after the last, which stands for clean samples."""
        return self._times[step + 1] if step + 1 < len(self._times) else -1

    def move(
        self,
        model_output: Float[Tensor, "b c h w"],
        step: int,
        x_t: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """x at the next time of the list. `noise` is z of (3), needed where eta > 0."""
        if self.eta > 0 and noise is None:
            raise ValueError(f"eta is {self.eta}: a step needs noise")
        return self._move(model_output, step, x_t, self.eta, noise)[0]

    def advance(
        self,
        predict: Callable[[Tensor, int], Tensor],
        step: int,
        x_t: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"] | None,
        past: list[Tensor],
    ) -> Advance:
        """Step `step` from x_t with the network in it: predict(x, t) -> eps.

        Args:
            noise: as `move`.
            past: memory of one batch of trajectories, empty before step 0; DDIM leaves it alone, PLMS keeps its last
                outputs there, newest last.
        """
        eps = predict(x_t, self._times[step])
        return Advance(eps, self.move(eps, step, x_t, noise))

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = False,
        generator: Any = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """As diffusers' `step`. Take the steps in order: a repeated time does not say which one is meant."""
        if use_clipped_model_output:
            raise ValueError("use_clipped_model_output is not supported")
        if self._counted >= len(self._times) or int(timestep) != self._times[self._counted]:
            raise ValueError(
                f"step {self._counted} is not at time {int(timestep)}; call set_timesteps, take all in order"
            )
        if eta > 0 and variance_noise is None:
            variance_noise = randn_tensor(
                model_output.shape, generator=generator, device=model_output.device, dtype=model_output.dtype
            )
        previous, x_0 = self._move(model_output, self._counted, sample, eta, variance_noise)
        self._counted += 1
        return DDIMSchedulerOutput(previous, x_0) if return_dict else (previous, x_0)

    def _move(
        self, model_output: Tensor, step: int, x_t: Tensor, eta: float, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(x_s, x_0) of equations (1) to (3)."""
        t, s = self._times[step], self.previous_time(step)
        x_0, eps = self._predict(model_output, t, x_t)
        if s == t:
            return x_t, x_0
        a_s = self.alphas_cumprod[s] if s >= 0 else self.final_alpha_cumprod
        sigma = eta * self._get_variance(t, s) ** 0.5
        x_s = a_s**0.5 * x_0 + (1 - a_s - sigma**2) ** 0.5 * eps
        return (x_s + sigma * noise if eta > 0 and noise is not None else x_s), x_0

    def _predict(self, model_output: Tensor, t: int, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """(x_0, eps) that the network's output stands for; x_0 clipped as the config says, eps not."""
        a_t = self.alphas_cumprod[t]
        signal, spread = a_t**0.5, (1 - a_t) ** 0.5
        if self.config.prediction_type == "epsilon":
            x_0, eps = (x_t - spread * model_output) / signal, model_output
        elif self.config.prediction_type == "sample":
            x_0, eps = model_output, (x_t - signal * model_output) / spread
        else:
            x_0, eps = signal * x_t - spread * model_output, signal * model_output + spread * x_t
        if self.config.thresholding:
            x_0 = self._threshold_sample(x_0)
        elif self.config.clip_sample:
            x_0 = x_0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        return x_0, eps
