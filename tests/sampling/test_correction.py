"""Noise correction: what it takes out exactly, what it leaves, and that it goes where the network goes."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from mezzotint.artifact import load_quantized, save_quantized
from mezzotint.config import QuantizeConfig, with_settings
from mezzotint.models.denoiser import network_of
from mezzotint.pipeline import quantize, with_network
from mezzotint.progress import NullProgress
from mezzotint.recipes.registry import make_config
from mezzotint.reconstruction.noise import LEAST_GAIN, Moments, measure_noise
from mezzotint.reconstruction.paired import PairedTrajectories
from mezzotint.sampling import correction as module
from mezzotint.sampling.config import SamplerConfig
from mezzotint.sampling.correction import Corrector, NoiseCorrection, correct_, correction_of, eps_factors
from mezzotint.sampling.schedulers import make_scheduler
from mezzotint.sampling.trajectory import sample_latents
from tiny import tiny_pipeline

CPU = torch.device("cpu")
GAIN, BIAS = 1.25, torch.tensor([0.1, -0.2, 0.3])


def config(**sampler: Any) -> QuantizeConfig:
    settings = {f"sampler.{name}": value for name, value in sampler.items()}
    small = {"steps": 6, "calib_size": 4, "forward_batch": 4, "correction": "ptqd", "correction_trajectories": 6}
    return with_settings(make_config("nearest", "w4a8", **small), {"ranges.candidates": 2, **settings})


def off_by_a_line(pipeline: Any) -> Any:
    """The pipeline's network, saying GAIN eps + BIAS."""
    network = copy.deepcopy(network_of(pipeline))
    last: Any = network.conv_out
    last.weight.data *= GAIN
    last.bias.data = GAIN * last.bias.data + BIAS
    return network


def known(times: list[int], variance: float = 0.0, **changes: Any) -> NoiseCorrection:
    table = {"gain": [1.0] * len(times), "bias": [[0.0] * 3] * len(times), "variance": [variance] * len(times)}
    return NoiseCorrection(times=times, guidance_scale=1.0, **{**table, **changes})


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_linear_error_is_measured_and_taken_out(eta: float) -> None:
    pipeline, settings = tiny_pipeline(), config(eta=eta)
    network = off_by_a_line(pipeline)
    found = measure_noise(pipeline, network, settings, CPU, NullProgress())
    assert_close(torch.tensor(found.gain), torch.full((len(found.times),), GAIN), rtol=1e-4, atol=0)
    assert_close(torch.tensor(found.bias), BIAS.expand(len(found.times), 3), rtol=1e-3, atol=1e-4)
    assert max(found.variance) < 1e-8
    correct_(network, found)
    drawing: Any = {"sampler": settings.sampler, "device": "cpu"}
    wanted = sample_latents(pipeline, [1, 2], **drawing)
    assert_close(sample_latents(with_network(pipeline, network), [1, 2], **drawing), wanted, rtol=1e-3, atol=1e-3)


def test_plms_is_corrected_in_every_call() -> None:
    pipeline, settings = tiny_pipeline(), config(kind="plms", spacing="uniform")
    network = off_by_a_line(pipeline)
    correct_(network, measure_noise(pipeline, network, settings, CPU, NullProgress()))
    drawn = [sample_latents(p, [5], sampler=settings.sampler) for p in (pipeline, with_network(pipeline, network))]
    assert_close(drawn[1], drawn[0], rtol=1e-3, atol=1e-3)


def test_moments_do_not_depend_on_the_batches() -> None:
    g = torch.Generator().manual_seed(0)
    eps, noise = torch.randn(8, 3, 4, 4, generator=g), torch.randn(8, 3, 4, 4, generator=g)
    eps_q = 1.1 * eps + 0.2 * noise + BIAS[:, None, None]
    whole, parts = Moments(3), Moments(3)
    whole.add(eps, eps_q)
    for rows in (slice(0, 3), slice(3, 8)):
        parts.add(eps[rows], eps_q[rows])
    for one, other in zip(whole.fit(), parts.fit(), strict=True):
        assert_close(torch.as_tensor(one), torch.as_tensor(other))
    gain, bias, variance = whole.fit()
    rest = eps_q - gain * eps - bias.float()[:, None, None]
    assert abs(float((rest * (eps - eps.mean((0, 2, 3), keepdim=True))).mean())) < 1e-6
    assert float(rest.mean((0, 2, 3)).abs().max()) < 1e-6
    assert_close(variance, float(rest.square().mean()) / gain**2, rtol=1e-4, atol=0)


def test_a_lost_signal_is_not_blown_up() -> None:
    g = torch.Generator().manual_seed(0)
    moments = Moments(3)
    moments.add(torch.randn(8, 3, 4, 4, generator=g), torch.randn(8, 3, 4, 4, generator=g) + 1)
    gain, bias, _ = moments.fit()
    assert gain == 1.0 > LEAST_GAIN
    assert_close(bias, torch.ones(3, dtype=torch.float64), atol=0.3, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("variance", [1e-4, 10.0])
def test_the_noise_left_and_the_noise_added_make_the_scheduled_variance(prediction: str, variance: float) -> None:
    """c is measured by moving the network's output; where c^2 v exceeds sigma^2 nothing is added."""
    pipeline = tiny_pipeline()
    pipeline.register_modules(
        scheduler=type(pipeline.scheduler).from_config(pipeline.scheduler.config, prediction_type=prediction)
    )
    scheduler = make_scheduler(pipeline, SamplerConfig(steps=10, eta=1.0))
    shares = Corrector(known(scheduler.times, variance), scheduler, CPU).shares
    zero, one = torch.zeros(1, 3, 1, 1, dtype=torch.float64), torch.ones(1, 3, 1, 1, dtype=torch.float64)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    assert scheduler.config.clip_sample is False
    lowered = 0
    for step, share in enumerate(shares):
        still = scheduler.move(zero, step, zero, zero)
        sigma = (scheduler.move(zero, step, zero, one) - still).mean()
        c = (scheduler.move(one, step, zero, zero) - still).mean()
        if sigma > 0:
            assert_close((share * sigma) ** 2, (sigma**2 - c**2 * variance).clamp_min(0), rtol=1e-3, atol=1e-9)
            lowered += share < 1
        else:
            assert share == 1
    assert lowered


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_eps_moves_against_the_clean_sample(prediction: str) -> None:
    """At the last step of a sampler, which ends at x_0: x_t = sqrt(a) x_0 + sqrt(1 - a) eps stays where it is."""
    pipeline = tiny_pipeline()
    trained = {**pipeline.scheduler.config, "prediction_type": prediction}
    scheduler = make_scheduler(trained, SamplerConfig(steps=10, spacing="uniform"))
    zero, one, last = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1), len(scheduler.times) - 1
    moved = (scheduler.move(one, last, zero) - scheduler.move(zero, last, zero)).mean()
    a = scheduler.alphas_cumprod[scheduler.times[last]]
    assert_close(float(eps_factors(scheduler)[last]), float(-(a / (1 - a)).sqrt() * moved), rtol=1e-4, atol=0)


def test_without_eta_no_noise_is_scaled() -> None:
    scheduler = make_scheduler(tiny_pipeline(), SamplerConfig(steps=10))
    assert Corrector(known(scheduler.times, 10.0), scheduler, CPU).shares == [1.0] * 10


def test_a_quantized_model_keeps_it_on_the_disk_and_draws_with_it(tmp_path: Path) -> None:
    settings = config()
    quantized: Any = quantize(tiny_pipeline(), config=settings, device="cpu")
    found = correction_of(quantized.unet)
    assert found is not None
    assert quantized.unet.quantization.results["noise_correction"] == found.model_dump(mode="json")
    loaded: Any = load_quantized(save_quantized(quantized, tmp_path / "artifact"))
    assert correction_of(loaded.unet) == found
    drawn = [sample_latents(p, [3, 4], sampler=settings.sampler) for p in (quantized, loaded)]
    assert torch.equal(*drawn)
    del quantized.unet.noise_correction
    assert not torch.equal(sample_latents(quantized, [3, 4], sampler=settings.sampler), drawn[0])


def test_a_corrected_network_has_no_linear_error_left() -> None:
    """Measured again, on the same trajectories, behind the correction."""
    pipeline, settings = tiny_pipeline(), config()
    network = off_by_a_line(pipeline)
    found = measure_noise(pipeline, network, settings, CPU, NullProgress())
    run = PairedTrajectories(pipeline, settings, settings.correction_trajectories, CPU)
    corrector, moments = Corrector(found, run.scheduler, CPU), Moments(3)
    for state, eps in run.pairs(network, slice(0, 4)):
        moments.add(state.eps, corrector.around(lambda _, t, eps=eps: eps)(state.x_t, state.t))  # type: ignore[misc]
    gain, bias, variance = moments.fit()
    assert_close(gain, 1.0, rtol=1e-4, atol=0)
    assert float(bias.abs().max()) < 1e-4
    assert variance < 1e-8


def test_other_times_and_other_guidance_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    module._say.cache_clear()
    pipeline = tiny_pipeline()
    network = copy.deepcopy(network_of(pipeline))
    correct_(network, known([800, 0], bias=[[1.0, 0, 0], [0.0, 0, 0]]))
    with caplog.at_level(logging.WARNING, logger="mezzotint"):
        for _ in range(2):
            sample_latents(with_network(pipeline, network), [0], sampler=SamplerConfig(steps=3, guidance_scale=2.0))
    assert [record.getMessage() for record in caplog.records] == [
        "noise correction: time 200 was not measured and takes the numbers of the nearest time",
        "noise correction: measured with guidance 1, used with 2",
    ]
    scheduler = make_scheduler(pipeline, SamplerConfig(steps=3))
    around = Corrector(correction_of(network), scheduler, CPU).around(lambda x, t: x)  # type: ignore[arg-type]
    assert around(torch.zeros(1, 3, 1, 1), 401).flatten().tolist() == [-1, 0, 0]
    assert around(torch.zeros(1, 3, 1, 1), 399).flatten().tolist() == [0, 0, 0]
