"""PLMS against its equations in float64, against diffusers' PNDM, and step by step in trajectories."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler
from torch import Tensor

from families import COMPVIS, tiny_sd
from mezzotint.errors import ConfigError, ModelError
from mezzotint.sampling.config import SamplerConfig
from mezzotint.sampling.ddim import DDIM
from mezzotint.sampling.plms import PLMS
from mezzotint.sampling.schedulers import make_scheduler
from mezzotint.sampling.trajectory import iterate, start_noise

STABLE: dict[str, Any] = {**COMPVIS, "beta_start": 0.00085, "beta_end": 0.012}
SHAPE = (4, 8, 8)


def plms(steps: int, config: dict[str, Any] = STABLE) -> PLMS:
    scheduler = make_scheduler(config, steps, "uniform", kind="plms")
    assert isinstance(scheduler, PLMS)
    return scheduler


def wavy(x: Tensor, t: int) -> Tensor:
    """A smooth made-up network that depends on x and t."""
    return torch.sin(1.3 * x + 0.004 * t) + 0.2 * x


def alpha_bars() -> np.ndarray:
    betas = np.linspace(STABLE["beta_start"] ** 0.5, STABLE["beta_end"] ** 0.5, 1000, dtype=np.float64) ** 2
    return np.cumprod(1 - betas)


def written_out(x: Tensor, steps: int) -> list[Tensor]:
    """The samples after each step in float64, from the published formulas alone: CompVis' times, DDIM update, PLMS."""
    bars = alpha_bars()
    times = [1 + step * (1000 // steps) for step in range(steps)]
    bar = {t: float(bars[t]) for t in times}
    before = dict(zip(times, [float(bars[0]), *(bar[t] for t in times[:-1])], strict=True))

    def move(x: Tensor, e: Tensor, t: int) -> Tensor:
        x_0 = (x - (1 - bar[t]) ** 0.5 * e) / bar[t] ** 0.5
        return before[t] ** 0.5 * x_0 + (1 - before[t]) ** 0.5 * e

    found: list[Tensor] = []
    old: list[Tensor] = []
    for number, t in enumerate(reversed(times)):
        e = wavy(x, t)
        if number == 0:
            slope = (e + wavy(move(x, e, t), times[-2])) / 2
        elif number == 1:
            slope = (3 * e - old[-1]) / 2
        elif number == 2:
            slope = (23 * e - 16 * old[-1] + 5 * old[-2]) / 12
        else:
            slope = (55 * e - 59 * old[-1] + 37 * old[-2] - 9 * old[-3]) / 24
        old.append(e)
        x = move(x, slope, t)
        found.append(x)
    return found


def ours(x: Tensor, scheduler: DDIM) -> list[Tensor]:
    """The samples after each step."""
    found: list[Tensor] = []
    past: list[Tensor] = []
    for step in range(len(scheduler.times)):
        x = scheduler.advance(wavy, step, x, None, past).x_prev
        found.append(x)
    return found


def noise(count: int = 2) -> Tensor:
    return start_noise(range(count), SHAPE)


@pytest.mark.parametrize("steps", [2, 3, 10, 50])
def test_equals_the_formulas_in_float64(steps: int) -> None:
    x = noise().double()
    for mine, expected in zip(ours(x, plms(steps)), written_out(x, steps), strict=True):
        torch.testing.assert_close(mine, expected, rtol=2e-5, atol=2e-5)  # alpha-bars are float32 in the scheduler


@pytest.mark.parametrize("steps", [2, 4, 10, 50])
def test_equals_pndm_of_diffusers(steps: int) -> None:
    x = noise()
    theirs = PNDMScheduler(**STABLE, skip_prk_steps=True)
    theirs.set_timesteps(steps)
    y = x
    for t in theirs.timesteps:
        y = theirs.step(wavy(y, int(t)), t, y).prev_sample
    torch.testing.assert_close(ours(x, plms(steps))[-1], y, rtol=1e-4, atol=1e-5)


def test_times_are_those_of_compvis() -> None:
    assert plms(10).times[::-1] == [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]
    assert plms(50).times == make_scheduler(STABLE, 50, "uniform").times


def test_fifty_steps_are_51_calls_and_the_states_chain() -> None:
    pipeline = tiny_sd()
    calls: list[int] = []
    handle = pipeline.unet.register_forward_pre_hook(lambda _, args: calls.append(int(args[1][0])))
    text = torch.zeros(2, 16, 12)

    class Bound(torch.nn.Module):
        """The network with its text inside."""

        def __init__(self) -> None:
            super().__init__()
            self.unet = pipeline.unet

        def forward(self, x: Tensor, t: Tensor, return_dict: bool = True) -> Any:
            return self.unet(x, t, text, return_dict=return_dict)

    scheduler = make_scheduler(pipeline, SamplerConfig(kind="plms", steps=50, spacing="uniform"))
    states = list(iterate(Bound(), scheduler, [0, 1], shape=SHAPE))
    handle.remove()
    assert len(calls) == 51
    assert calls == [scheduler.times[0], *scheduler.times[1:2], *scheduler.times[1:]]
    assert [state.t for state in states] == scheduler.times
    assert all(torch.equal(a.x_prev, b.x_t) for a, b in pairwise(states))


def test_one_step_is_possible() -> None:
    assert torch.isfinite(ours(noise(), plms(1))[-1]).all()


def test_memory_is_of_one_batch() -> None:
    scheduler, x = plms(5), noise()
    first = ours(x, scheduler)[-1]
    assert torch.equal(ours(x, scheduler)[-1], first)  # nothing is left in the scheduler
    with pytest.raises(ValueError, match="step 2 of PLMS needs 2 outputs of the steps before, got 0"):
        scheduler.advance(wavy, 2, x, None, [])
    with pytest.raises(NotImplementedError, match="PNDMScheduler"):
        scheduler.step(x, 1, x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing": "quadratic"}, "^plms needs evenly spaced times: choose spacing uniform, not quadratic$"),
        ({"spacing": "uniform", "eta": 0.5}, r"^plms adds no noise: choose eta 0, not 0\.5$"),
        ({"kind": "euler"}, "kind: .*'euler'"),
    ],
)
def test_what_does_not_go_together_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_scheduler(STABLE, 10, **{"kind": "plms", **changes})


def test_models_that_predict_no_noise_are_refused() -> None:
    with pytest.raises(ModelError, match="plms is for models that predict noise .* predicts v_prediction"):
        plms(10, {**STABLE, "prediction_type": "v_prediction"})
