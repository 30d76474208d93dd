"""The Inception network against torch-fidelity's on the same weights and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from metric_cases import FIXTURE, PLACES, inception_state, pictures
from mezzotint.errors import WeightsError
from mezzotint.evaluation.images import from_uint8
from mezzotint.evaluation.inception import RESIZES, Inception, load_inception, to_299


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(inception_state(), path)
    return path


def test_all_three_outputs_are_torch_fidelitys(weights: Path) -> None:
    recorded = json.loads(FIXTURE.read_text())["inception"]
    found = load_inception(path=weights)(from_uint8(pictures()))
    shapes = {name: list(values.shape) for name, values in found.items()}
    assert shapes == {"pool3": [2, 2048], "spatial": [2, 2023], "logits": [2, 1008]}
    for name, values in found.items():
        torch.testing.assert_close(values[:, :: PLACES[name]], torch.tensor(recorded[name]), rtol=1e-3, atol=1e-4)


def test_spatial_features_are_in_the_order_of_the_graph(weights: Path) -> None:
    """Row, column, channel: mu_s of guided-diffusion's files means the same features."""
    network = load_inception(path=weights)
    seen: list[torch.Tensor] = []
    network.Mixed_6d.get_submodule("branch1x1").register_forward_hook(lambda *call: seen.append(call[-1]))
    spatial = network(from_uint8(pictures()[:1]))["spatial"].view(17, 17, 7)
    torch.testing.assert_close(spatial.permute(2, 0, 1), seen[0][0, :7])


@pytest.mark.parametrize("resize", RESIZES)
def test_resizing_keeps_flat_pictures_flat_and_scales_to_one(resize: str) -> None:
    for value, expected in ((-1.0, -1.0), (1.0, 127 / 128 if resize != "pytorch-fid" else 1.0)):
        x = to_299(torch.full((1, 3, 32, 20), value), resize)
        torch.testing.assert_close(x, torch.full((1, 3, 299, 299), expected), rtol=0, atol=1e-4)


def test_resizings_differ_where_they_should() -> None:
    x = from_uint8(pictures())
    usual = F.interpolate(x, (299, 299), mode="bilinear", align_corners=False)
    torch.testing.assert_close(to_299(x, "pytorch-fid"), usual, rtol=0, atol=1e-5)
    assert (to_299(x, "tf1") - to_299(x, "pytorch-fid")).abs().max() > 0.1
    assert (to_299(x, "clean") - to_299(x, "pytorch-fid")).abs().max() > 0.1
    same = torch.rand(1, 3, 299, 299) * 2 - 1
    torch.testing.assert_close(to_299(same, "tf1"), (same * 127.5 - 0.5) / 128, rtol=0, atol=1e-5)


def test_a_file_that_is_not_this_network_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"weights.pth: not the weights of the Inception network"):
        load_inception(path=path)
    path.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="not the weights of the Inception network"):
        load_inception(path=path)


def test_layers_have_the_names_of_the_published_file() -> None:
    names = set(Inception().state_dict())
    assert {"Conv2d_1a_3x3.conv.weight", "Mixed_5b.branch_pool.bn.running_var", "fc.bias"} <= names
    assert {"Mixed_6e.branch7x7dbl_5.conv.weight", "Mixed_7c.branch3x3dbl_3b.bn.weight"} <= names
    assert sum(name.endswith("conv.weight") for name in names) == 94
