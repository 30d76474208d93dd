"""LPIPS against the authors' package with the same backbone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from metric_cases import FIXTURE, alexnet_state, pictures
from mezzotint.errors import ConfigError, MissingExtraError, WeightsError
from mezzotint.evaluation import perceptual
from mezzotint.evaluation.evaluate import compare_pairs
from mezzotint.evaluation.images import from_uint8
from mezzotint.evaluation.perceptual import Lpips, load_lpips, lpips_at_hand, lpips_per_image
from mezzotint.evaluation.weights import WEIGHTS


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Lpips:
    path = tmp_path_factory.mktemp("lpips") / "alexnet.pth"
    torch.save({**alexnet_state(), "classifier.1.weight": torch.zeros(1)}, path)
    return load_lpips(path)


def test_lpips_is_that_of_its_authors(network: Lpips) -> None:
    x = from_uint8(pictures())
    found = lpips_per_image(x, x.flip(0), network)
    torch.testing.assert_close(found, torch.tensor(json.loads(FIXTURE.read_text())["lpips"]), rtol=1e-3, atol=1e-6)


def test_equal_images_are_at_zero_and_it_grows_with_the_difference(
    network: Lpips, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = from_uint8(pictures())[:, :, :, :40]
    other = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lpips_per_image(x, x, network), torch.zeros(2))
    near, far = (lpips_per_image(x, torch.lerp(x, other, share), network) for share in (0.2, 1.0))
    assert bool((near > 0).all())
    assert bool((near < far).all())
    monkeypatch.setattr(perceptual, "BATCH", 1)
    torch.testing.assert_close(lpips_per_image(x, other, network), far)
    grey = x[:, :1]
    torch.testing.assert_close(
        lpips_per_image(grey, other[:, :1], network),
        lpips_per_image(grey.expand(-1, 3, -1, -1), other[:, :1].expand(-1, 3, -1, -1), network),
    )


def test_it_is_used_only_where_its_weights_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEZZOTINT_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    assert lpips_at_hand(32, 32) is None
    torch.save(alexnet_state(), tmp_path / WEIGHTS["alexnet"].names[0])
    with pytest.raises(WeightsError, match="SHA-256 begins with"):
        lpips_at_hand(32, 32)
    assert lpips_at_hand(31, 64) is None
    with pytest.raises(ConfigError, match="32 pixels or more"):
        lpips_per_image(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), Lpips())


def test_missing_pieces_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other.pth: not the weights of LPIPS"):
        load_lpips(tmp_path / "other.pth")
    monkeypatch.setattr(perceptual, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mezzotint\[metrics\]'"):
        load_lpips(tmp_path / "other.pth")


def test_a_comparison_has_it_where_it_can(network: Lpips, monkeypatch: pytest.MonkeyPatch) -> None:
    x = from_uint8(pictures())
    monkeypatch.setattr("mezzotint.evaluation.evaluate.lpips_at_hand", lambda *_: network)
    found = compare_pairs(x, x.flip(0), resamples=2).lpips
    assert found is not None
    assert found.value == pytest.approx(float(lpips_per_image(x, x.flip(0), network).mean()), rel=1e-5)
