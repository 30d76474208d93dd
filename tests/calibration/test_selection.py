"""Which steps calibrate: every method gives N samples, and puts them where it says."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from families import tiny_sd
from mezzotint.calibration import tdac
from mezzotint.calibration.rows import calibration_conditions
from mezzotint.calibration.selection import SELECTORS, Pilot, calibration_seeds, record_trajectory, select_normal
from mezzotint.config import SelectionConfig, with_settings
from mezzotint.models.conditioning import condition_inputs
from mezzotint.models.denoiser import mid_feature_module, network_of, sample_shape
from mezzotint.progress import NullProgress
from mezzotint.recipes.registry import make_config
from mezzotint.sampling.schedulers import make_scheduler
from mezzotint.sampling.trajectory import iterate

CPU = torch.device("cpu")


def pilot(steps: int = 20) -> Pilot:
    similarity = tdac.StepSimilarity()
    similarity.add(torch.randn(steps, 2, 3, 2, 2, generator=torch.Generator().manual_seed(0)))
    return Pilot(list(range(steps)), list(range(1000, 1000 - steps, -1)), similarity)


@given(
    method=st.sampled_from(sorted(SELECTORS)),
    steps=st.integers(1, 40),
    size=st.integers(1, 300),
    weight=st.floats(0, 9),
)
def test_every_method_gives_n_samples_and_never_less_than_none(
    method: str, steps: int, size: int, weight: float
) -> None:
    for allocation in ("largest-remainder", "round"):
        options = SelectionConfig(method=method, calib_size=size, density_weight=weight, allocation=allocation)
        counts = SELECTORS[method].select(pilot(steps), options).counts
        assert len(counts) == steps
        assert sum(counts) == size
        assert min(counts) >= 0


def test_normal_steps_follow_the_distribution_with_its_tails_on_the_ends() -> None:
    size, steps = 100_000, 20
    counts = select_normal(pilot(steps), SelectionConfig(method="normal", calib_size=size)).counts
    law = NormalDist(0.4, 0.4)
    assert counts[0] == round(size * (1 - law.cdf(0.95)))  # the first step is pure noise, and all beyond it
    assert counts[-1] == round(size * law.cdf(0.05))
    assert abs(counts[10] - size * (law.cdf(0.5) - law.cdf(0.45))) <= 1
    assert max(counts[1:-1]) == counts[12] or max(counts[1:-1]) == counts[11]  # 0.4 from the image


def test_scores_are_of_what_is_weighed() -> None:
    density, variety = (torch.tensor(v, dtype=torch.float64) for v in ([0.0, 1.0, 4.0], [7.0, 3.0, 5.0]))
    assert torch.equal(tdac.step_score(density, variety, 0.0), tdac.min_max(density))
    assert torch.equal(tdac.step_score(density, variety, 1.0, 0.0), tdac.min_max(variety))


def features_of_step_0(pipeline: Any, config: Any, call: int) -> torch.Tensor:
    """Mid-block features of the first step, of one of its network calls."""
    conditions = calibration_conditions(pipeline, config, 2)
    seen: list[torch.Tensor] = []
    network = network_of(pipeline)
    handle = mid_feature_module(network).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    scheduler = make_scheduler(pipeline, config.sampler)
    drawing: dict[str, Any] = {"shape": sample_shape(pipeline), "conditions": conditions}
    scale = config.sampler.guidance_scale
    next(iterate(network, scheduler, calibration_seeds(config.seed, 2), **drawing, guidance_scale=scale))
    handle.remove()
    assert len(seen) == 2  # PLMS begins with two calls
    return seen[call]


@pytest.mark.parametrize(("feature_call", "call"), [("first", 0), ("last", 1)])
def test_the_first_step_of_plms_is_scored_by_the_call_that_was_asked_for(
    feature_call: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tiny_sd()
    config = make_config(family="sd", steps=4, pilot_size=2)
    config = with_settings(config, {"selection.feature_call": feature_call})
    recorded: list[torch.Tensor] = []
    monkeypatch.setattr(tdac.StepSimilarity, "add", lambda _, features: recorded.append(features))
    record_trajectory(pipeline, config, calibration_conditions(pipeline, config, 2), CPU, NullProgress())
    torch.testing.assert_close(recorded[0][0], features_of_step_0(pipeline, config, call))


def test_the_released_recipe_calibrates_on_the_conditions_that_are_evaluated_first() -> None:
    pipeline = tiny_sd()
    conditions = calibration_conditions(pipeline, make_config("eda-dm-official", family="sd"), 5)
    assert conditions is not None
    assert list(conditions.labels) == condition_inputs(pipeline, "evaluation", 5)
