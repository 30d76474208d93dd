from __future__ import annotations

import math

import pytest
import torch

from mezzotint.evaluation.steps import StepSqnr, eps_sqnr, mean_sampler_sqnr, mean_sqnr, measured_steps
from mezzotint.models.denoiser import predict_eps
from mezzotint.sampling.correction import NoiseCorrection, correct_
from mezzotint.sampling.schedulers import make_scheduler
from mezzotint.sampling.trajectory import iterate
from tiny import tiny_pipeline

SHAPE = (3, 16, 16)


def test_ten_steps_with_the_first_and_the_last() -> None:
    assert measured_steps(100) == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    assert measured_steps(20)[0] == 0
    assert measured_steps(20)[-1] == 19
    assert len(measured_steps(20)) == 10


@pytest.mark.parametrize("total", range(1, 13))
def test_short_samplers_measure_every_step_once(total: int) -> None:
    steps = measured_steps(total)
    assert len(steps) == min(10, total) == len(set(steps))
    assert (steps[0], steps[-1]) == (0, total - 1)


def noisy_pair(scale: float) -> tuple[torch.nn.Module, torch.nn.Module, object]:
    """A network, the same with its last bias moved by `scale` (so eps moves by exactly that much), and a scheduler."""
    pipeline, other = tiny_pipeline(), tiny_pipeline()
    other.unet.conv_out.bias.add_(scale)
    return pipeline.unet, other.unet, make_scheduler(pipeline, 4)


def test_a_known_error_gives_the_known_ratio_at_every_step() -> None:
    network, other, scheduler = noisy_pair(0.01)
    rows = eps_sqnr(network, other, scheduler, range(3), shape=SHAPE, steps=[0, 2, 3], batch_size=3)
    assert [row.step for row in rows] == [0, 2, 3]
    assert [row.t for row in rows] == [scheduler.times[step] for step in (0, 2, 3)]
    states = {state.step: state for state in iterate(network, scheduler, range(3), shape=SHAPE)}
    for row in rows:
        eps = states[row.step].eps
        expected = 10 * math.log10(float(eps.double().square().mean()) / 0.01**2)
        assert row.sqnr_db == pytest.approx(expected, abs=0.01)


def test_both_networks_see_the_float_trajectory() -> None:
    """A second network that is wrong early must not be judged on where its own trajectory would have gone."""
    network, other, scheduler = noisy_pair(0.5)
    rows = eps_sqnr(network, other, scheduler, range(2), shape=SHAPE, steps=[3], batch_size=2)
    last = list(iterate(network, scheduler, range(2), shape=SHAPE))[-1]
    wrong = predict_eps(other, last.x_t, last.t) - last.eps
    expected = 10 * math.log10(float(last.eps.double().square().sum() / wrong.double().square().sum()))
    assert rows[0].sqnr_db == pytest.approx(expected, abs=1e-3)


def test_ratio_is_of_pooled_sums_so_batches_do_not_matter() -> None:
    network, other, scheduler = noisy_pair(0.1)
    results = [
        eps_sqnr(network, other, scheduler, range(5), shape=SHAPE, steps=[0, 3], batch_size=size) for size in (5, 2)
    ]
    for one, two in zip(*results, strict=True):
        assert one.sqnr_db == pytest.approx(two.sqnr_db, abs=1e-3)


def test_equal_networks_have_infinite_ratio_and_progress_counts_trajectories() -> None:
    network, _, scheduler = noisy_pair(0.0)
    seen: list[tuple[int, int]] = []
    rows = eps_sqnr(
        network,
        network,
        scheduler,
        range(3),
        shape=SHAPE,
        steps=[0],
        batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert rows[0].sqnr_db == math.inf
    assert seen == [(2, 3), (3, 3)]


def test_mean_is_of_decibels() -> None:
    rows = [StepSqnr(step=0, t=9, sqnr_db=40.0), StepSqnr(step=1, t=0, sqnr_db=0.0)]
    assert mean_sqnr(rows) == 20.0


def test_in_the_sampler_a_correction_is_seen() -> None:
    network, other, scheduler = noisy_pair(0.5)
    plain = eps_sqnr(network, other, scheduler, range(2), shape=SHAPE, steps=[0, 3], batch_size=2)
    assert [row.sampler_db for row in plain] == [row.sqnr_db for row in plain]
    times = tuple(scheduler.times)
    table = {"gain": (1.0,) * 4, "bias": ((0.5,) * 3,) * 4, "variance": (0.0,) * 4}
    correct_(other, NoiseCorrection(times=times, guidance_scale=1.0, **table))
    corrected = eps_sqnr(network, other, scheduler, range(2), shape=SHAPE, steps=[0, 3], batch_size=2)
    assert [row.sqnr_db for row in corrected] == [row.sqnr_db for row in plain]
    assert all(row.sampler_db is not None and row.sampler_db > 100 for row in corrected)


def test_mean_in_the_sampler_needs_every_step() -> None:
    rows = [StepSqnr(step=s, t=9 - s, sqnr_db=1.0, sampler_db=db) for s, db in ((0, 40.0), (1, 20.0))]
    assert mean_sampler_sqnr(rows) == 30.0
    assert mean_sampler_sqnr([*rows, StepSqnr(step=2, t=0, sqnr_db=1.0)]) is None
    assert mean_sampler_sqnr([]) is None
