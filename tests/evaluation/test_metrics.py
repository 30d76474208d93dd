"""The metrics against second implementations on the same features, against closed forms, and their promises."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from metric_cases import FIXTURE, features, logits
from mezzotint.evaluation.clip import SCALE, SIGMA, cmmd
from mezzotint.evaluation.frechet import distance_to, frechet_distance, statistics
from mezzotint.evaluation.inception_score import inception_score
from mezzotint.evaluation.intervals import resample_counts, resample_rows
from mezzotint.evaluation.kid import kernel, kid
from mezzotint.evaluation.metrics import METRICS, Measured
from mezzotint.evaluation.precision_recall import precision_recall, radii

RELATIVE = 1e-3
GENERATED, REAL = features(60, 2), features(60, 3, shift=0.3)


class Identity(nn.Module):
    """Gives torchmetrics features where it expects a network that makes them."""

    num_features = 16

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


@pytest.fixture(scope="module")
def fidelity() -> dict[str, float]:
    """What torch-fidelity makes of the same features."""
    return json.loads(FIXTURE.read_text())["metrics"]


def updated(metric: Any) -> Any:
    metric.set_dtype(torch.float64)
    metric.update(REAL[:, :, None, None], real=True)
    metric.update(GENERATED[:, :, None, None], real=False)
    return metric


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fid_is_that_of_two_other_implementations(fidelity: dict[str, float]) -> None:
    found = frechet_distance(statistics(GENERATED), statistics(REAL))
    assert found == pytest.approx(fidelity["frechet_inception_distance"], rel=RELATIVE)
    other = updated(FrechetInceptionDistance(feature=Identity(), input_img_size=(16, 1, 1)))
    assert found == pytest.approx(float(other.compute()), rel=RELATIVE)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_kid_is_that_of_two_other_implementations(fidelity: dict[str, float]) -> None:
    found = float(kid(GENERATED, REAL))
    assert found == pytest.approx(fidelity["kernel_inception_distance_mean"], rel=RELATIVE)
    other = updated(KernelInceptionDistance(feature=Identity(), subsets=1, subset_size=60))
    assert found == pytest.approx(float(other.compute()[0]), rel=RELATIVE)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_inception_score_is_that_of_two_other_implementations(fidelity: dict[str, float]) -> None:
    assert inception_score(logits()) == pytest.approx(fidelity["inception_score_mean"], rel=RELATIVE)
    other = InceptionScore(feature=Identity(), splits=1)
    other.set_dtype(torch.float64)
    other.update(logits()[:, :, None, None])
    assert inception_score(logits(), splits=1) == pytest.approx(float(other.compute()[0]), rel=RELATIVE)


def test_precision_and_recall_are_torch_fidelitys(fidelity: dict[str, float]) -> None:
    precision, recall = precision_recall(GENERATED, REAL)
    assert float(precision.double().mean()) == pytest.approx(fidelity["precision"], rel=1e-6)
    assert float(recall.double().mean()) == pytest.approx(fidelity["recall"], rel=1e-6)


def test_distance_to_one_reference_is_the_distance() -> None:
    reference = statistics(REAL)
    distance = distance_to(reference)
    for count in (5, 60):  # singular covariances too
        stats = statistics(GENERATED[:count])
        assert distance(stats) == pytest.approx(frechet_distance(stats, reference), rel=1e-6)
    assert distance(reference) < 1e-5


def test_kid_of_weights_is_kid_of_repeated_images_without_pairs_of_copies() -> None:
    x, y = GENERATED[:7], REAL[:9]
    rows = torch.tensor([0, 0, 2, 3, 5, 5, 5])
    drawn, pairs = x[rows], [(i, j) for i in range(7) for j in range(7) if rows[i] != rows[j]]
    own = sum(float(kernel(drawn[i : i + 1], drawn[j : j + 1])) for i, j in pairs) / len(pairs)
    other = (kernel(y, y).sum() - kernel(y, y).trace()) / 72
    expected = own + float(other) - 2 * float(kernel(drawn, y).mean())
    assert float(kid(x, y, torch.bincount(rows, minlength=7)[None].double())) == pytest.approx(expected, rel=1e-9)


def test_kid_is_unbiased() -> None:
    """Of two halves of one distribution it is as often below zero as above."""
    values = [float(kid(features(40, 2 * seed), features(40, 2 * seed + 1))) for seed in range(50)]
    mean, spread = torch.tensor(values).mean(), torch.tensor(values).std()
    assert abs(mean) < 3 * spread / 50**0.5
    assert 10 < sum(value > 0 for value in values) < 40


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (kid(GENERATED, REAL), cmmd(GENERATED, REAL), *precision_recall(GENERATED, REAL))
    for module in ("kid", "clip", "precision_recall"):
        monkeypatch.setattr(f"mezzotint.evaluation.{module}.BLOCK", 7)
    for a, b in zip(
        whole, (kid(GENERATED, REAL), cmmd(GENERATED, REAL), *precision_recall(GENERATED, REAL)), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_cmmd_is_the_mean_of_all_kernel_values() -> None:
    def mean_kernel(a: Tensor, b: Tensor) -> float:
        return float(torch.exp(-(a[:, None] - b[None]).square().sum(-1) / (2 * SIGMA**2)).mean())

    expected = SCALE * (mean_kernel(GENERATED, GENERATED) + mean_kernel(REAL, REAL) - 2 * mean_kernel(GENERATED, REAL))
    assert float(cmmd(GENERATED, REAL)) == pytest.approx(expected, rel=1e-8)
    assert float(cmmd(REAL, REAL)) == pytest.approx(0, abs=1e-9)


def test_a_set_is_precise_and_recalls_itself() -> None:
    assert all(bool(hits.all()) for hits in precision_recall(REAL, REAL))
    far = precision_recall(REAL + 100, REAL)
    assert not any(bool(hits.any()) for hits in far)
    assert radii(REAL[:2]).shape == (2,)  # fewer members than neighbours


def test_one_thing_each_and_all_things_is_the_number_of_things() -> None:
    sure = 100 * torch.eye(8).repeat(10, 1)
    assert inception_score(sure, splits=1) == pytest.approx(8, rel=1e-6)
    assert inception_score(torch.zeros(20, 8)) == pytest.approx(1, rel=1e-6)


def test_counts_and_rows_are_the_same_resamples() -> None:
    rows, counts = resample_rows(9, 5, seed=1), resample_counts(9, 5, seed=1)
    assert counts.shape == (5, 9)
    for drawn, count in zip(rows, counts, strict=True):
        assert torch.equal(torch.bincount(drawn, minlength=9).double(), count)
    assert resample_counts(9, 0, seed=1).shape == (0, 9)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_lies_in_its_interval_and_is_repeatable(name: str) -> None:
    metric, (x, y) = METRICS[name], (GENERATED, REAL)
    if name == "clip":  # unit vectors
        x, y = (nn.functional.normalize(values + 2) for values in (x, y))
    given = Measured(x, statistics(y), y, resamples=6, seed=0)
    found = metric.measure(given)
    assert len(found) == len(metric.names)
    assert all(x.low <= x.value <= x.high for x in found)
    assert any(x.low < x.high for x in found)
    assert found == metric.measure(given)
    narrow = metric.measure(Measured(x, statistics(y), y, resamples=0, seed=0))
    assert [x.value for x in narrow] == pytest.approx([x.value for x in found], rel=1e-9)
    assert all(x.low == x.value == x.high for x in narrow)
