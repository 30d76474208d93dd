from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mezzotint.errors import ModelError
from mezzotint.evaluation.features import Basis, basis_for, extract, fit_basis, load_basis, small, train_statistics
from mezzotint.evaluation.frechet import frechet_distance, statistics


def images(count: int, size: int = 16) -> Tensor:
    return torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(count)) * 2 - 1


def shipped(folder: Path, size: int = 16) -> dict[str, Tensor]:
    axes, _ = torch.linalg.qr(torch.randn((3 * size * size, 64), generator=torch.Generator().manual_seed(1)))
    tensors = {"mean": torch.full((3 * size * size,), 0.25), "components": axes.T.contiguous()}
    save_file(tensors, folder / "features.safetensors")
    return tensors


def test_256_features_of_colour_images_with_a_shipped_basis(tmp_path: Path) -> None:
    tensors, x = shipped(tmp_path), images(5)
    basis = basis_for(tmp_path, x)
    features = extract(x, basis)
    assert features.shape == (5, 256)
    torch.testing.assert_close(features[:, :64].float(), (x.flatten(1) - tensors["mean"]) @ tensors["components"].T)
    windows = x.unflatten(3, (8, 2)).unflatten(2, (8, 2)).mean(dim=(3, 5))  # [N, C, 8, 8]
    torch.testing.assert_close(features[:, 64:].float(), windows.flatten(1))


def test_label_says_where_the_basis_comes_from(tmp_path: Path) -> None:
    x = images(80)
    assert "fitted to the float model's images" in basis_for(tmp_path, x).label
    assert "fitted to the float model's images" in basis_for(None, x).label
    shipped(tmp_path)
    assert f"shipped with {tmp_path.name}" in basis_for(tmp_path, x).label
    assert basis_for(None, x).label.startswith("64 PCA")


def test_fitted_axes_are_orthonormal_and_ordered_by_variance() -> None:
    x = images(90)
    basis = fit_basis(x)
    torch.testing.assert_close(basis.components @ basis.components.T, torch.eye(64), atol=1e-5, rtol=0)
    variance = extract(x, basis)[:, :64].var(dim=0)
    assert bool((variance[:-1] >= variance[1:] - 1e-9).all())
    # No set of 64 directions holds more variance than the principal ones.
    other, _ = torch.linalg.qr(torch.randn((768, 64), generator=torch.Generator().manual_seed(3)))
    assert variance.sum() > ((x.flatten(1) - basis.mean) @ other).var(dim=0).sum()


def test_few_images_span_few_axes() -> None:
    basis = fit_basis(images(10))
    assert basis.components.shape == (9, 768)
    assert basis.label.startswith("9 PCA")


def test_images_smaller_than_the_pooled_grid_still_have_features() -> None:
    x = images(10, size=4)
    assert extract(x, fit_basis(x)).shape == (10, 9 + 3 * 64)


def test_a_basis_for_other_images_is_named(tmp_path: Path) -> None:
    shipped(tmp_path, size=8)
    with pytest.raises(ModelError, match=r"for images of 192 values, got \[3, 16, 16\] = 768"):
        extract(images(4), basis_for(tmp_path, images(4)))


def test_a_damaged_basis_is_named(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(ModelError, match=r"features\.safetensors"):
        load_basis(tmp_path)
    save_file({"mean": torch.zeros(10)}, path)
    with pytest.raises(ModelError, match=r"components"):
        load_basis(tmp_path)
    save_file({"mean": torch.zeros(10), "components": torch.zeros(3, 11)}, path)
    with pytest.raises(ModelError, match=r"\[10\] and \[3, 11\]"):
        load_basis(tmp_path)


def test_no_basis_is_none(tmp_path: Path) -> None:
    assert load_basis(tmp_path) is None
    assert isinstance(fit_basis(images(3)), Basis)


@pytest.mark.parametrize("size", [33, 64, 128, 100])
def test_large_images_are_averaged_down_and_the_label_says_so(tmp_path: Path, size: int) -> None:
    x = images(6, size=size)
    assert small(x).shape == (6, 3, 32, 32)
    if size % 32 == 0:
        windows = x.unflatten(3, (32, size // 32)).unflatten(2, (32, size // 32)).mean(dim=(3, 5))
        torch.testing.assert_close(small(x), windows)
    shipped(tmp_path, size=32)
    for basis in (basis_for(tmp_path, x), basis_for(None, x)):
        assert basis.label.endswith("pooled pixels of the images averaged down to 32x32")
        torch.testing.assert_close(extract(x, basis), extract(small(x), basis))


@pytest.mark.parametrize("size", [4, 16, 32])
def test_small_images_are_left_alone(size: int) -> None:
    x = images(6, size=size)
    assert small(x) is x
    assert "averaged" not in basis_for(None, x).label


def test_training_statistics_need_their_basis(tmp_path: Path) -> None:
    x = images(300)
    assert train_statistics(None) is None
    assert train_statistics(tmp_path) is None
    shipped(tmp_path)
    assert train_statistics(tmp_path) is None
    expected = statistics(extract(x, basis_for(tmp_path, x)))
    stored = {"mean": expected.mean.float(), "cov": expected.cov.float()}
    save_file(stored, tmp_path / "train_stats.safetensors")
    found = train_statistics(tmp_path)
    assert found is not None
    assert frechet_distance(found, expected) < 1e-3
    assert not found.enough_samples  # how many there were is not recorded
    (tmp_path / "features.safetensors").unlink()
    assert train_statistics(tmp_path) is None


def test_damaged_training_statistics_are_named(tmp_path: Path) -> None:
    shipped(tmp_path)
    save_file({"mean": torch.zeros(10), "cov": torch.zeros(3, 10)}, tmp_path / "train_stats.safetensors")
    with pytest.raises(
        ModelError, match=r"train_stats.safetensors: expected `mean` \[F\] and `cov` \[F, F\], got \[10\]"
    ):
        train_statistics(tmp_path)
