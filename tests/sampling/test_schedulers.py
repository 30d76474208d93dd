"""DDIM and PLMS with explicit previous times against diffusers, against the equations, and for every list of times."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mezzotint.errors import ConfigError, ModelError
from mezzotint.sampling.config import SamplerConfig
from mezzotint.sampling.schedulers import make_scheduler
from mezzotint.sampling.spacings import SPACINGS
from tiny import tiny_pipeline

LINEAR: dict[str, Any] = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": False}
COMPVIS: dict[str, Any] = {
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def outputs(count: int, seed: int) -> Tensor:
    """Made-up network outputs, [count, 2, 3, 4, 4]."""
    return torch.randn((count, 2, 3, 4, 4), generator=torch.Generator().manual_seed(seed))


def alpha_bar(t: int, config: dict[str, Any] = LINEAR) -> float:
    """The product of the alphas up to t, in float64, straight from the definition; 1 for t = -1."""
    return float(np.prod(1 - np.linspace(config["beta_start"], config["beta_end"], 1000, dtype=np.float64)[: t + 1]))


def ddim_step(eps: Tensor, t: int, s: int, x: Tensor, eta: float, z: Tensor) -> Tensor:
    """Equations 12 and 16 of Song et al. 2021 as the original code has them (generalised steps), in float64."""
    a_t, a_s = alpha_bar(t), alpha_bar(s)
    x_0 = (x - eps * (1 - a_t) ** 0.5) / a_t**0.5
    c1 = eta * ((1 - a_t / a_s) * (1 - a_s) / (1 - a_t)) ** 0.5
    c2 = ((1 - a_s) - c1**2) ** 0.5
    return a_s**0.5 * x_0 + c1 * z + c2 * eps


@pytest.mark.parametrize("config", [LINEAR, COMPVIS], ids=["ddim", "compvis"])
@pytest.mark.parametrize("steps", [1, 2, 10, 50, 7, 333])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_uniform_times_equal_diffusers(config: dict[str, Any], steps: int, eta: float) -> None:
    ours, theirs = make_scheduler(config, steps, "uniform", eta), DDIMScheduler(**config)
    theirs.set_timesteps(steps)
    assert ours.times == theirs.timesteps.tolist()
    eps, noise = outputs(steps, 0), outputs(steps, 1)
    x = y = outputs(1, 2)[0]
    for step, t in enumerate(theirs.timesteps):
        x = ours.move(eps[step], step, x, noise[step])
        y = theirs.step(eps[step], t, y, eta=eta, variance_noise=noise[step] if eta else None).prev_sample
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    "limit", [{"clip_sample": True}, {"clip_sample": True, "clip_sample_range": 0.3}, {"thresholding": True}]
)
def test_prediction_types_and_limits_equal_diffusers(prediction_type: str, limit: dict[str, Any]) -> None:
    config = {**LINEAR, **limit, "prediction_type": prediction_type}
    ours, theirs = make_scheduler(config, 10, "uniform"), DDIMScheduler(**config)
    theirs.set_timesteps(10)
    eps, x = outputs(10, 0), outputs(1, 1)[0]
    for step, t in enumerate(theirs.timesteps):
        expected = theirs.step(eps[step], t, x).prev_sample
        torch.testing.assert_close(ours.move(eps[step], step, x), expected, rtol=1e-6, atol=1e-6)
        x = expected


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [20, 100])
def test_quadratic_times_equal_the_equations(steps: int, eta: float) -> None:
    scheduler = make_scheduler(LINEAR, steps, "quadratic", eta)
    eps, noise, x = outputs(steps, 0), outputs(steps, 1), outputs(1, 2)[0]
    for step, t in enumerate(scheduler.times):
        s = scheduler.times[step + 1] if step + 1 < steps else -1
        expected = ddim_step(eps[step].double(), t, s, x.double(), eta, noise[step].double())
        x = scheduler.move(eps[step], step, x, noise[step])
        # 1 - alpha-bar in float32 keeps three digits at the last times, and no more are there to agree
        torch.testing.assert_close(x.double(), expected, rtol=1e-3 if t < 10 else 1e-4, atol=1e-4)


def test_quadratic_times_are_those_of_the_original_code() -> None:
    known = [0, 2, 8, 19, 35, 55, 79, 108, 141, 179, 221, 268, 319, 374, 434, 498, 567, 640, 718, 800]
    assert make_scheduler(LINEAR, 20).times[::-1] == known
    hundred = make_scheduler(LINEAR, 100).times[::-1]
    assert hundred[:8] == [0, 0, 0, 0, 1, 2, 2, 3]
    assert len(set(hundred)) == 96


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("clip", [False, True])
def test_step_to_its_own_time_changes_nothing(eta: float, clip: bool) -> None:
    scheduler = make_scheduler({**LINEAR, "clip_sample": clip}, 100, "quadratic", eta)
    eps, x = outputs(1, 0)[0], 3 * outputs(1, 1)[0]
    still = [step for step in range(100) if scheduler.previous_time(step) == scheduler.times[step]]
    assert len(still) == 4
    for step in still:
        assert torch.equal(scheduler.move(eps, step, x, torch.ones_like(x)), x)


def test_eta_one_has_the_posterior_variance_of_ddpm() -> None:
    """Between neighbouring times: beta_t (1 - abar_{t-1}) / (1 - abar_t), equation 7 of Ho et al. 2020."""
    scheduler = make_scheduler(LINEAR, 1000, "uniform", 1.0)
    x = eps = torch.zeros(1, 1, 1, 1)
    for t in (999, 500, 20):
        step = scheduler.times.index(t)
        variance = scheduler.move(eps, step, x, torch.ones_like(x)).item() ** 2
        beta = 1 - alpha_bar(t) / alpha_bar(t - 1)
        assert variance == pytest.approx(beta * (1 - alpha_bar(t - 1)) / (1 - alpha_bar(t)), rel=2e-3)


def test_last_step_reaches_clean_samples_or_the_first_alpha() -> None:
    """x_t = 1, eps = 1 and a final alpha-bar a give x = sqrt(a) x_0 + sqrt(1 - a)."""
    one = torch.ones(1, 1, 1, 1)
    for config in (LINEAR, COMPVIS):
        scheduler = make_scheduler(config, 10, "uniform")
        a_t = float(scheduler.alphas_cumprod[scheduler.times[-1]])
        final = 1.0 if config is LINEAR else float(scheduler.alphas_cumprod[0])
        x_0 = (1 - (1 - a_t) ** 0.5) / a_t**0.5
        assert scheduler.move(one, 9, one).item() == pytest.approx(final**0.5 * x_0 + (1 - final) ** 0.5, rel=1e-6)


@settings(max_examples=80, deadline=None)
@given(steps=st.integers(1, 1000), spacing=st.sampled_from(sorted(SPACINGS)), config=st.sampled_from([LINEAR, COMPVIS]))
def test_times_of_any_length(steps: int, spacing: str, config: dict[str, Any]) -> None:
    scheduler = make_scheduler(config, steps, spacing)
    times, previous = scheduler.times, [scheduler.previous_time(step) for step in range(steps)]
    assert len(times) == steps == len(scheduler.timesteps)
    assert all(0 <= t < 1000 for t in times)
    assert all(s <= t for s, t in zip(previous, times, strict=True))
    assert previous == [*times[1:], -1]
    assert times[-1] == config.get("steps_offset", 0)
    assert scheduler.timesteps.tolist() == times


def test_steps_in_order_are_the_moves() -> None:
    """`step`, as diffusers' pipelines call it, knows which of the repeated times is meant."""
    scheduler = make_scheduler(LINEAR, 100)
    eps = outputs(100, 0)
    x = y = outputs(1, 1)[0]
    for step, t in enumerate(scheduler.timesteps):
        x, y = scheduler.move(eps[step], step, x), scheduler.step(eps[step], t, y).prev_sample
        assert torch.equal(x, y)
    with pytest.raises(ValueError, match="step 100 is not at time 0"):
        scheduler.step(eps[0], 0, x)
    scheduler.set_timesteps(100)
    with pytest.raises(ValueError, match="step 0 is not at time 783"):
        scheduler.step(eps[0], scheduler.timesteps[1], x)


def test_a_sampler_config_says_the_same_as_its_values() -> None:
    pipeline = tiny_pipeline()
    whole = make_scheduler(pipeline, SamplerConfig(steps=12, spacing="uniform", eta=0.25))
    parts = make_scheduler(pipeline, 12, spacing="uniform", eta=0.25)
    assert (whole.times, whole.eta) == (parts.times, parts.eta)
    assert make_scheduler(pipeline).times == make_scheduler(pipeline, SamplerConfig()).times
    with pytest.raises(ConfigError, match="in the SamplerConfig already"):
        make_scheduler(pipeline, SamplerConfig(), eta=1.0)


def test_schedulers_that_never_clip_stay_unclipped() -> None:
    theirs = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler = make_scheduler(theirs.config, 10)
    assert scheduler.config.clip_sample is False
    torch.testing.assert_close(scheduler.alphas_cumprod, theirs.alphas_cumprod)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps: .* greater than or equal to 1"),
        ({"steps": 1001}, "steps: expected 1 to 1000, .* got 1001"),
        ({"spacing": "cubic"}, "spacing: .*'cubic'"),
        ({"eta": 1.5}, "eta: .* less than or equal to 1"),
    ],
)
def test_values_outside_their_range_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_scheduler(LINEAR, **values)


def test_models_without_betas_are_refused() -> None:
    pipeline = tiny_pipeline()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ModelError, match="FlowMatchEulerDiscreteScheduler: DDIM needs a model trained on betas"):
        make_scheduler(pipeline)
    with pytest.raises(ModelError, match="prediction_type 'score': expected epsilon"):
        make_scheduler({**LINEAR, "prediction_type": "score"})


def test_noise_is_not_forgotten() -> None:
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"eta is 0\.5: a step needs noise"):
        make_scheduler(LINEAR, 10, eta=0.5).move(x, 0, x)


def test_uniform_steps_that_do_not_divide_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="mezzotint"):
        make_scheduler(LINEAR, 600, "uniform")
        make_scheduler(LINEAR, 500, "uniform")
    assert [record.getMessage() for record in caplog.records] == [
        "600 uniform steps do not divide 1000: the first time is 599; choose a divisor for the best images"
    ]


def test_sampler_config_is_frozen_and_knows_its_keys() -> None:
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        SamplerConfig(step=5)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="frozen"):
        SamplerConfig().steps = 5  # type: ignore[misc]
    config = SamplerConfig(steps=7, eta=0.5)
    assert SamplerConfig.model_validate_json(config.model_dump_json()) == config
