"""Scores of images, with small networks in place of the large ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mezzotint.errors import ConfigError, WeightsError
from mezzotint.evaluation.frechet import frechet_distance, statistics
from mezzotint.evaluation.images import tensor_images
from mezzotint.evaluation.metrics import METRICS
from mezzotint.evaluation.networks import Network, make_networks
from mezzotint.evaluation.references import Reference, load_reference, write_statistics
from mezzotint.evaluation.scores import score_images, take_statistics


class Tiny(nn.Module):
    """Means over quarters of the picture, [N, 12]; as `logits`, doubled."""

    calls = 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        type(self).calls += len(images)
        x = nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
        return {"pool3": x, "logits": 2 * x}


NETWORKS = {
    "inception": Network("tiny", "none", Tiny, ("pool3", "logits")),
    "fd-zoo": make_networks()["fd-zoo"],
}


def images(count: int, seed: int = 0, size: int = 8) -> Tensor:
    coarse = torch.rand((count, 3, 4, 4), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return nn.functional.interpolate(coarse, (size, size))


def test_scores_in_the_order_asked_for_each_network_once() -> None:
    Tiny.calls = 0
    reference = Reference("real", tensor_images(images(20, seed=1)))
    metrics = ["pr", "fid", "is", "kid"]
    found = score_images(images(30), reference, metrics, networks=NETWORKS, resamples=3, batch_size=7)
    assert [score.name for score in found] == ["precision", "recall", "FID", "IS", "KID"]
    assert Tiny.calls == 50
    assert {score.features for score in found} == {"pool3 of tiny", "logits of tiny"}
    assert [score.reference for score in found] == ["real", "real", "real", "", "real"]
    assert all(score.count == 30 and score.resize == "none" for score in found)
    again = score_images(images(30), reference, metrics, networks=NETWORKS, resamples=3, batch_size=30)
    assert Tiny.calls == 80  # the reference's features are kept
    for a, b in zip(found, again, strict=True):
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), rel=1e-6)


def test_images_against_themselves() -> None:
    x = images(40)
    reference = Reference("same", tensor_images(x))
    scores = score_images(x, reference, ["fid", "kid", "pr", "fd-zoo"], networks=NETWORKS, resamples=0)
    by_name = {score.name: score.value for score in scores}
    assert by_name["FID"] < 1e-6
    assert by_name["FD-zoo"] < 1e-4
    assert by_name["KID"] < 0  # unbiased: no image is compared with itself among its own
    assert by_name["precision"] == by_name["recall"] == 1


def test_fid_is_the_frechet_distance_of_the_features() -> None:
    a, b = images(40), images(50, seed=2)
    score = score_images(a, Reference("b", tensor_images(b)), ["fid"], networks=NETWORKS, resamples=0)[0]
    expected = frechet_distance(*(statistics(Tiny()(x)["pool3"]) for x in (a, b)))
    assert score.value == pytest.approx(expected, rel=1e-2)  # the images are seen with 8 bits


def test_images_and_their_saved_statistics_are_the_same_reference(tmp_path: Path) -> None:
    a, b = images(40), images(50, seed=2)
    stats = take_statistics(b, ["fid", "fd-zoo"], networks=NETWORKS)
    write_statistics(tmp_path / "b.npz", stats)
    with pytest.raises(ConfigError, match=r"pool3: expected a mean \[2048\]"):
        load_reference(tmp_path / "b.npz")  # the tiny network's are not Inception's
    stored = Reference("b", statistics=stats)
    given = [Reference("b", tensor_images(b)), stored]
    values = [score_images(a, x, ["fid", "fd-zoo"], networks=NETWORKS, resamples=2) for x in given]
    for one, other in zip(*values, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-9)


def test_few_images_are_a_warning() -> None:
    reference = Reference("real", tensor_images(images(20, seed=1)))
    score = score_images(images(30), reference, ["fd-zoo"], resamples=0)[0]
    assert score.warning == "30 images, the protocol takes 2,048: compare only with values of as many images"


def test_more_different_images_are_farther() -> None:
    """FD-zoo of the training drawings of a model, spoiled more and more."""
    reference = load_reference("ddim-emoji")
    x = images(24, size=32)
    values = [
        score_images((1 - share) * x + share * torch.randn_like(x), reference, ["fd-zoo"], resamples=0)[0].value
        for share in (0.0, 1.0)
    ]
    assert all(np.isfinite(values))
    assert values[0] != values[1]


def test_what_a_metric_cannot_do_is_an_error() -> None:
    x, one = images(4), Reference("stats", statistics={"fd-zoo": statistics(torch.rand(9, 128))}, resize="clean")
    with pytest.raises(ConfigError, match="metrics: expected some of fid, .* got fit"):
        score_images(x, one, ["fit"])
    with pytest.raises(ConfigError, match="metrics: expected some of .* got none"):
        score_images(x, one, [])
    with pytest.raises(ConfigError, match="fid: needs a reference"):
        score_images(x, None, ["fid"])
    with pytest.raises(ConfigError, match="kid: needs images to compare with, and stats has statistics alone"):
        score_images(x, one, ["kid"])
    with pytest.raises(ConfigError, match="fid: needs pool3 statistics, and stats has fd-zoo"):
        score_images(x, one, ["fid"])
    with pytest.raises(ConfigError, match="clip: needs one caption for each of the 4 images, got none"):
        score_images(x, None, ["clip"])
    with pytest.raises(ConfigError, match="at least 2 images, got 1"):
        score_images(x[:1], None, ["is"])
    with pytest.raises(ConfigError, match="statistics serve fid, sfid, fd-zoo, fd-dino, got kid"):
        take_statistics(x, ["kid"])
    clean = Reference("c", statistics={"pool3": statistics(torch.rand(9, 12))}, resize="clean")
    with pytest.raises(ConfigError, match="was made with resize clean, .* choose --resize clean"):
        score_images(x, clean, ["fid"])


def test_weights_that_are_nowhere_are_an_error_with_a_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEZZOTINT_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("urllib.request.urlopen", _no_network)
    with pytest.raises(WeightsError, match=r"weights-inception-2015-12-05-6726825d.pth .* fetch https://.*put it into"):
        score_images(images(4), None, ["is"])


def test_every_metric_names_a_network() -> None:
    sets = {name for network in make_networks().values() for name in network.sets}
    assert {metric.features for metric in METRICS.values()} <= sets


def _no_network(*_: object, **__: object) -> None:
    raise OSError("no network in a test")
