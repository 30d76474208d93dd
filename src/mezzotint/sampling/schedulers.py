"""A sampler's scheduler from how a model was trained and a SamplerConfig, which it is checked against."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from pydantic import ValidationError

from mezzotint.errors import ConfigError, ModelError
from mezzotint.sampling.config import SamplerConfig
from mezzotint.sampling.ddim import DDIM
from mezzotint.sampling.plms import PLMS
from mezzotint.sampling.spacings import uniform_times

logger = logging.getLogger("mezzotint")

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
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
