from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline

from mezzotint.errors import ConfigError
from mezzotint.evaluation.evaluate import Pairs, compare_pairs, compare_sets, evaluate, sample_pairs
from mezzotint.evaluation.features import extract, fit_basis
from mezzotint.evaluation.frechet import frechet_distance, statistics
from mezzotint.evaluation.result import Evaluation
from mezzotint.sampling.config import SamplerConfig
from tiny import tiny_pipeline

SAMPLER = SamplerConfig(steps=3)
SAMPLES = 6


def rounded_pipeline() -> DDIMPipeline:
    """The tiny model with its weights rounded to steps of 1/16."""
    pipeline = tiny_pipeline()
    for parameter in pipeline.unet.parameters():
        parameter.copy_((parameter * 16).round() / 16)
    return pipeline


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return sample_pairs(
        tiny_pipeline(), rounded_pipeline(), samples=SAMPLES, seed=5, sampler=SAMPLER, batch_size=SAMPLES
    )


@pytest.fixture(scope="module")
def found(pairs: Pairs) -> Evaluation:
    return evaluate(
        tiny_pipeline(), rounded_pipeline(), samples=SAMPLES, seed=5, sampler=SAMPLER, pairs=pairs, resamples=3
    )


def test_json_round_trip_changes_nothing(found: Evaluation) -> None:
    assert Evaluation.model_validate_json(found.model_dump_json()) == found
    assert Evaluation.model_validate(json.loads(json.dumps(found.model_dump(mode="json")))) == found


def test_inputs_are_recorded(found: Evaluation) -> None:
    assert (found.samples, found.seed, found.sampler) == (SAMPLES, 5, SAMPLER.model_dump())
    assert found.shape == (3, 16, 16)
    assert found.device.startswith("cpu")
    assert found.bits == "float"
    assert found.versions.torch == torch.__version__
    assert "fitted to the float model's images" in found.distance.features


def test_few_samples_leave_a_warning(found: Evaluation) -> None:
    needed = 2 * found.distance.count
    assert f"{SAMPLES} images for {found.distance.count} features" in found.warnings[0]
    assert f"at least {needed} images" in found.warnings[0]


def test_values_are_those_of_the_images(found: Evaluation, pairs: Pairs) -> None:
    error = (pairs.float_images - pairs.quantized_images).double().square()
    assert found.paired.psnr_pooled.value == pytest.approx(10 * math.log10(4 / error.mean()))
    assert found.paired.psnr_images == pytest.approx([10 * math.log10(4 / e.mean()) for e in error])
    assert found.paired.psnr_low == min(found.paired.psnr_images)  # a tenth of six images is the worst one
    assert found.sqnr_db == pytest.approx(sum(row.sqnr_db for row in found.steps) / 3)
    assert [row.step for row in found.steps] == [0, 1, 2]


def test_a_model_against_itself_is_perfect() -> None:
    found = evaluate(tiny_pipeline(), tiny_pipeline(), samples=3, sampler=SAMPLER, batch_size=3, resamples=2)
    assert found.paired.psnr_mean.value == found.paired.psnr_pooled.value == found.sqnr_db == math.inf
    assert found.paired.ssim is not None
    assert found.paired.ssim.value == pytest.approx(1.0)
    assert found.distance.fd.value < 1e-5
    assert found.cost.network.ratio == 1.0
    assert found.cost.float_bops == found.cost.quantized_bops == found.cost.macs * 1024
    assert Evaluation.model_validate_json(found.model_dump_json()) == found


def test_worse_models_are_farther_away_in_every_measure() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand((40, 3, 16, 16), generator=generator) * 2 - 1
    noise = torch.randn(a.shape, generator=generator)
    near, far = (a + scale * noise for scale in (0.05, 0.4))
    basis = fit_basis(a)
    images = [compare_pairs(a, b) for b in (near, far)]
    sets = [compare_sets(a, b, basis, resamples=2) for b in (near, far)]
    assert images[0].psnr_mean.value > images[1].psnr_mean.value
    assert images[0].ssim is not None
    assert images[1].ssim is not None
    assert images[0].ssim.value > images[1].ssim.value
    assert sets[0].fd.value < sets[1].fd.value
    assert sets[0].fd_pca < sets[1].fd_pca < sets[1].fd.value


def test_distances_to_the_training_images_are_those_of_the_sets() -> None:
    a, b, real = (torch.rand((40, 3, 16, 16), generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    basis = fit_basis(real)
    train = statistics(extract(real, basis))
    found = compare_sets(a, b, basis, train=train, resamples=2).train
    assert found is not None
    assert found.float_fd == pytest.approx(frechet_distance(statistics(extract(a, basis)), train))
    assert found.quantized_fd == pytest.approx(frechet_distance(statistics(extract(b, basis)), train))
    assert compare_sets(a, b, basis, resamples=2).train is None


def test_measures_do_not_depend_on_how_many_images_are_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.rand(5, 3, 16, 16), torch.rand(5, 3, 16, 16)
    whole = compare_pairs(a, b)
    monkeypatch.setattr("mezzotint.evaluation.evaluate.CHUNK_VALUES", 2 * 3 * 16 * 16)
    assert compare_pairs(a, b) == whole


def test_images_too_small_for_ssim_say_so() -> None:
    a = torch.rand(4, 3, 8, 8)
    assert compare_pairs(a, a * 0.9).ssim is None


def test_progress_counts_the_images_of_both_models() -> None:
    seen: list[tuple[int, int]] = []
    told: dict[str, Any] = {"progress": lambda *x: seen.append(x), "decode_progress": lambda *x: pytest.fail("pixels")}
    sample_pairs(tiny_pipeline(), tiny_pipeline(), samples=2, sampler=SamplerConfig(steps=1), **told)
    assert seen[-1] == (4, 4)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 6}, "sampled with seed 5, the evaluation asks for 6"),
        ({"samples": 7}, "sampled with samples 6, the evaluation asks for 7"),
        ({"sampler": SamplerConfig(steps=4)}, "sampled with sampler"),
    ],
)
def test_foreign_images_are_refused(pairs: Pairs, changes: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {"samples": SAMPLES, "seed": 5, "sampler": SAMPLER, **changes}
    with pytest.raises(ConfigError, match=message):
        evaluate(tiny_pipeline(), rounded_pipeline(), pairs=pairs, **asked)


def test_one_image_is_too_few() -> None:
    with pytest.raises(ConfigError, match="at least 2 images, got 1"):
        sample_pairs(tiny_pipeline(), tiny_pipeline(), samples=1)
