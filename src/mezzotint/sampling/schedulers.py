"""DDIM and PLMS along an explicit list of times.

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

The quadratic times of the DDIM code are truncated squares: 100 steps give 0, 0, 0, 0, 1, 2, 2, 3, ... Repeated times
are kept, so that `steps` is the number of network calls, and a step that goes nowhere (s = t) returns x_t itself. That
is what (1)-(3) say in exact arithmetic. Differs from the formula evaluated in floats: rounding does not creep in, and a
clipped x_0 does not move a sample that stands still.

PLMS (Liu et al. 2022, arXiv 2202.09778, equations 9, 12 and 13, as CompVis' PLMSSampler computes it) is the same step
with eta = 0 and, for eps, a linear multistep estimate of the last network outputs e_i (newest first: e, e', ...):

    step 0   (e + e(x~, t_1)) / 2                  x~ = x after a DDIM step with e: the network is called twice      (4)
    step 1   (3 e - e') / 2                                                                                          (5)
    step 2   (23 e - 16 e' + 5 e'') / 12                                                                             (6)
    then     (55 e - 59 e' + 37 e'' - 9 e''') / 24                                                                  (7)

The output at x~ is used once and not remembered. diffusers' PNDMScheduler(skip_prk_steps=True) says the same with a
repeated time; here a step is a step, so that step i of PLMS is at the same time as step i of DDIM. The paper's
Runge-Kutta start (four calls for each of three steps) is not what CompVis does.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor

from mezzotint.errors import ConfigError, ModelError
from mezzotint.sampling.config import SamplerConfig

logger = logging.getLogger("mezzotint")

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PLMS_WEIGHTS = {  # by the number of outputs before this one: weights of the output, the one before, ...
    1: (3 / 2, -1 / 2),
    2: (23 / 12, -16 / 12, 5 / 12),
    3: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
PLMS_MEMORY = 3
QUADRATIC_REACH = 0.8  # share of the training times that the quadratic schedule of the DDIM code spans


def uniform_times(train_steps: int, steps: int) -> list[int]:
    """The first `steps` of 0, k, 2k, ... with k = train_steps // steps, ascending."""
    stride = train_steps // steps
    return [step * stride for step in range(steps)]


def quadratic_times(train_steps: int, steps: int) -> list[int]:
    """int(linspace(0, sqrt(0.8 train_steps), steps) ** 2), ascending; small times repeat."""
    return [int(time) for time in np.linspace(0, math.sqrt(train_steps * QUADRATIC_REACH), steps) ** 2]


class Advance(NamedTuple):
    """One step of a sampler: the network's output at the step's own time, and the sample after the step."""

    eps: Tensor
    x_prev: Tensor


SPACINGS: dict[str, Callable[[int, int], list[int]]] = {"uniform": uniform_times, "quadratic": quadratic_times}


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


class PLMS(DDIM):
    """Equations (4) to (7) of the module's docstring on the times of `DDIM`."""

    def advance(
        self,
        predict: Callable[[Tensor, int], Tensor],
        step: int,
        x_t: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"] | None,
        past: list[Tensor],
    ) -> Advance:
        """As `DDIM.advance`; step 0 calls `predict` twice. Take the steps in order, with one `past`."""
        needed = min(step, PLMS_MEMORY)
        if len(past) != needed:
            raise ValueError(f"step {step} of PLMS needs {needed} outputs of the steps before, got {len(past)}")
        eps = predict(x_t, self._times[step])
        if step == 0:
            ahead = predict(self.move(eps, step, x_t), self._times[min(1, len(self._times) - 1)])
            slope = (eps + ahead) / 2
        else:
            weights = PLMS_WEIGHTS[len(past)]
            slope = sum((w * e for w, e in zip(weights[1:], reversed(past), strict=True)), weights[0] * eps)
        past[:] = [*past, eps][-PLMS_MEMORY:]
        return Advance(eps, self.move(slope, step, x_t))

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: diffusers' own pipelines know PLMS as PNDMScheduler(skip_prk_steps=True)."""
        raise NotImplementedError("PLMS calls the network itself, see advance; diffusers has PNDMScheduler for its own")


SCHEDULERS: dict[str, type[DDIM]] = {"ddim": DDIM, "plms": PLMS}


def make_scheduler(
    source: DiffusionPipeline | Mapping[str, Any],
    steps: int | SamplerConfig | None = None,
    spacing: str | None = None,
    eta: float | None = None,
    kind: str | None = None,
) -> DDIM:
    """A scheduler of SCHEDULERS with its times set.

    Args:
        source: a pipeline, whose scheduler says how the model was trained, or such a scheduler's config.
        steps: number of steps, or a whole SamplerConfig. What is not given is SamplerConfig's default.

    Raises:
        ModelError: the model was not trained on a discrete schedule of betas.
        ConfigError: a value outside its range, or more steps than the model was trained on.
    """
    sampler = steps if isinstance(steps, SamplerConfig) else _sampler(steps=steps, spacing=spacing, eta=eta, kind=kind)
    if sampler is steps and not spacing is eta is kind is None:
        raise ConfigError("kind, spacing and eta are in the SamplerConfig already; give them there")
    config = _ddim_config(source)
    predicted = config.get("prediction_type", "epsilon")
    if sampler.kind == "plms" and predicted != "epsilon":
        raise ModelError(f"plms is for models that predict noise (epsilon), this one predicts {predicted}; choose ddim")
    scheduler = SCHEDULERS[sampler.kind](spacing=sampler.spacing, eta=sampler.eta, **config)
    _check_steps(sampler.steps, sampler.spacing, int(scheduler.config.num_train_timesteps))
    scheduler.set_timesteps(sampler.steps)
    return scheduler


def _sampler(**given: Any) -> SamplerConfig:
    """SamplerConfig with the values that are not None, its complaint as one line."""
    try:
        return SamplerConfig(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(sampler_complaint(error)) from error


def sampler_complaint(error: ValidationError, prefix: str = "") -> str:
    """What pydantic found wrong with a SamplerConfig, in one line; `prefix` goes before the name of a field."""
    first = error.errors()[0]
    if not first["loc"]:  # two fields that do not go together
        return first["msg"].removeprefix("Value error, ")
    return f"{prefix}{first['loc'][0]}: {first['msg']} (got {first['input']!r})"


def _check_steps(steps: int, spacing: str, train_steps: int) -> None:
    if steps > train_steps:
        raise ConfigError(f"steps: expected 1 to {train_steps}, the times the model was trained on, got {steps}")
    if spacing == "uniform" and train_steps % steps:
        reached = uniform_times(train_steps, steps)[-1]
        logger.warning(
            "%d uniform steps do not divide %d: the first time is %d; choose a divisor for the best images",
            steps,
            train_steps,
            reached,
        )


def _ddim_config(source: DiffusionPipeline | Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of DDIMScheduler that the config in `source` holds."""
    scheduler: Any = None if isinstance(source, Mapping) else source.scheduler
    config: Mapping[str, Any] = source if isinstance(source, Mapping) else scheduler.config
    if config.get("trained_betas") is None and config.get("beta_schedule") not in BETA_SCHEDULES:
        kind = "the scheduler" if scheduler is None else type(scheduler).__name__
        raise ModelError(f"{kind}: DDIM needs a model trained on betas, got {config.get('beta_schedule')!r}")
    known = inspect.signature(DDIMScheduler.__init__).parameters.keys() - {"self", "timestep_spacing"}
    chosen = {name: value for name, value in config.items() if name in known}
    # PNDM and others never clip and do not say so; DDIMScheduler's default would clip their latents.
    chosen.setdefault("clip_sample", False)
    if chosen.get("prediction_type", "epsilon") not in ("epsilon", "sample", "v_prediction"):
        raise ModelError(f"prediction_type {chosen['prediction_type']!r}: expected epsilon, sample or v_prediction")
    return chosen
