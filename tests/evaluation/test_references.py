from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from metric_cases import features
from mezzotint.errors import ConfigError
from mezzotint.evaluation.frechet import Statistics, statistics
from mezzotint.evaluation.references import ZOO_SET, load_reference, write_statistics, zoo_digest
from mezzotint.evaluation.zoo_net import FEATURES
from mezzotint.models.zoo import model_folders


def gaussian(length: int) -> Statistics:
    return Statistics(torch.rand(length, dtype=torch.float64), torch.eye(length, dtype=torch.float64), 7)


def test_statistics_survive_the_file(tmp_path: Path) -> None:
    stats = {"pool3": gaussian(2048), ZOO_SET: statistics(features(30, 1))}
    write_statistics(tmp_path / "ref.npz", stats, resize="clean")
    found = load_reference(tmp_path / "ref.npz")
    assert (found.name, found.resize, found.images) == ("ref", "clean", None)
    assert set(found.statistics) == set(stats)
    for name, value in stats.items():
        torch.testing.assert_close(found.statistics[name].mean, value.mean, rtol=0, atol=0)
        torch.testing.assert_close(found.statistics[name].cov, value.cov, rtol=0, atol=0)


def test_pytorch_fids_and_guided_diffusions_files_are_read_and_written(tmp_path: Path) -> None:
    """mu and sigma are pool3's, mu_s and sigma_s those of the spatial features; arr_0 holds images."""
    stats, pixels = gaussian(2048), np.zeros((3, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "fid.npz", mu=stats.mean.numpy(), sigma=stats.cov.numpy())
    assert set(load_reference(tmp_path / "fid.npz").statistics) == {"pool3"}
    spatial = {"mu_s": np.zeros(2023), "sigma_s": np.eye(2023)}
    np.savez(tmp_path / "adm.npz", arr_0=pixels, mu=stats.mean.numpy(), sigma=stats.cov.numpy(), **spatial)
    found = load_reference(tmp_path / "adm.npz")
    assert set(found.statistics) == {"pool3", "spatial"}
    assert found.images is not None
    assert found.images.count == 3
    write_statistics(tmp_path / "ours.npz", found.statistics)
    with np.load(tmp_path / "ours.npz") as file:
        assert {"mu", "sigma", "mu_s", "sigma_s"} <= set(file)
        np.testing.assert_array_equal(file["mu"], stats.mean.numpy())


def test_every_model_of_the_zoo_ships_statistics_of_this_feature_network() -> None:
    for name in model_folders():
        found = load_reference(name)
        assert found.name == f"training images of {name}"
        stats = found.statistics[ZOO_SET]
        assert stats.mean.shape == (FEATURES,)
        assert stats.samples is not None
        assert stats.samples > 2000
        assert bool((torch.linalg.eigvalsh(stats.cov) > -1e-6 * stats.cov.trace()).all())


def test_statistics_of_another_feature_network_are_an_error(tmp_path: Path) -> None:
    write_statistics(tmp_path / "ref.npz", {ZOO_SET: statistics(features(30, 1))})
    with np.load(tmp_path / "ref.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "other.npz", **{**arrays, f"digest_{ZOO_SET}": np.array("0" * 16)})
    with pytest.raises(ConfigError, match=rf"of a feature network 0{{16}}, this package has {zoo_digest()}"):
        load_reference(tmp_path / "other.npz")


def test_what_is_no_reference_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: no such reference; .* a model of the zoo \(.*ddim-emoji"):
        load_reference("nowhere")
    np.savez(tmp_path / "empty.npz", other=np.zeros(3))
    with pytest.raises(ConfigError, match="holds neither statistics"):
        load_reference(tmp_path / "empty.npz")
    np.savez(tmp_path / "short.npz", mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(ConfigError, match=r"pool3: expected a mean \[2048\].* got \[64\] and \[64, 64\]"):
        load_reference(tmp_path / "short.npz")
    (tmp_path / "broken.npz").write_text("nothing")
    with pytest.raises(ConfigError, match="cannot be read as npz"):
        load_reference(tmp_path / "broken.npz")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"model: has no fd_zoo.npz"):
        load_reference(tmp_path / "model")
