"""The feature network of FD-zoo: its training draws what it says, its export is read back, what ships works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ship_features
import torch
import train_feature_net
from latents import plain_drawings
from train_feature_net import DAMAGES, NO_CLASS, PATCH, label_table, measure_damage, shift, shrink, spoil
from training import GROUPS, load_table, to_float

from mezzotint.errors import ModelError
from mezzotint.evaluation.frechet import statistics
from mezzotint.evaluation.zoo_net import FEATURES, WEIGHTS, FeatureNet, load_feature_net, resize


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def pictures(count: int = 6, size: int = 64) -> torch.Tensor:
    coarse = torch.rand((count, 3, 8, 8), generator=generator()) * 2 - 1
    return coarse.repeat_interleave(size // 8, 2).repeat_interleave(size // 8, 3)


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_grows_with_its_strength_and_keeps_the_shape(name: str) -> None:
    x = pictures(16)
    errors = []
    for strength in (0.1, 0.4, 1.0):
        y = DAMAGES[name](x, torch.full((16, 1, 1, 1), strength), generator())
        assert y.shape == x.shape
        errors.append((y - x).square().mean().item())
    assert 0 < errors[0] < errors[1] < errors[2]


def test_half_the_drawings_are_left_alone_and_the_others_have_one_damage_each() -> None:
    small = pictures(1)[..., ::4, ::4].expand(2000, -1, -1, -1).contiguous()
    y, amounts = spoil(small, generator())
    damaged = amounts > 0
    clean = ~damaged.any(dim=1)
    assert abs(clean.double().mean() - 0.5) < 0.05
    assert torch.equal(y[clean], small[clean])
    assert bool((damaged.sum(dim=1) <= 1).all())
    assert bool((damaged.double().mean(dim=0) - 0.1).abs().max() < 0.03)
    assert float(amounts.max()) <= 1
    changed = (y - small).square().flatten(1).mean(1)
    noise, tint = damaged[:, 0] & (amounts[:, 0] > 0.1), damaged[:, 2] & (amounts[:, 2] > 0.1)
    assert bool((changed[noise | tint] > 0).all())
    assert list(DAMAGES)[PATCH] == "patch"


def test_moved_drawings_have_white_borders_and_the_rest_in_place() -> None:
    x = -torch.ones(64, 3, 16, 16)
    y = shift(x, generator())
    assert set(y.unique().tolist()) == {-1.0, 1.0}
    assert len({tuple(row) for row in (y[:, 0] < 0).flatten(1).int().tolist()}) > 20
    assert bool((y[:, :, 4:12, 4:12] == -1).all())  # never more than 4 pixels


def test_small_drawings_are_averages_of_four_pixels() -> None:
    x = pictures(2)
    y = shrink(x, torch.tensor([True, False]))
    assert torch.equal(y[1], x[1])
    torch.testing.assert_close(y[0].mean(), x[0].mean(), atol=0.02, rtol=0)
    assert not torch.equal(y[0], x[0])


def test_labels_are_those_of_the_table(data: Path) -> None:
    splits, artists = label_table(data / "emoji-64.npz", GROUPS)
    assert artists == ["fluent-emoji", "fluent-emoji-flat", "noto", "noto-v1"]
    assert len(splits["held_out"].images) == 4
    assert int((splits["train"].classes == NO_CLASS).sum()) < len(splits["train"].classes)
    assert splits["train"].artists.bincount().tolist() == [12, 12, 12, 12]


def test_a_short_training_writes_a_network_that_can_be_shipped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_feature_net, "MEASURED", 8)
    run = tmp_path / "run"
    options = {"batch": 4, "seed": 0, "steps": 3, "minutes": 1.0, "graph": False}
    train_feature_net.main(data=data / "emoji-64.npz", out=run, checkpoint=None, **options)
    report = json.loads((run / "training.json").read_text())
    assert report["steps"] == 3
    assert set(report["right"]["held_out"]) == {"class", "artist", "damage"}
    assert (run / "model.safetensors").stat().st_size < 1_000_000
    net = load_feature_net(run / "model.safetensors")
    assert not net.training
    assert net(pictures(2)).shape == (2, FEATURES)
    text = ship_features.card(report)
    assert "FD-zoo" in text
    assert "| noise |" in text


def test_weighted_statistics_count_mirrored_drawings_half(data: Path) -> None:
    pixels, rows = load_table(data / "emoji-32.npz", GROUPS)
    drawings, net = plain_drawings(pixels[:9], rows[:9]), load_feature_net()
    found = ship_features.drawing_statistics(net, drawings, batch=4)
    x = to_float(drawings.images)
    both = torch.cat([x, torch.where(drawings.flippable[:, None, None, None], x.flip(-1), x)])
    expected = statistics(net(both))
    torch.testing.assert_close(found.mean, expected.mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.cov, expected.cov * (len(both) - 1) / len(both), atol=1e-5, rtol=1e-4)


def test_the_shipped_network_is_small_and_sees_damage() -> None:
    net = load_feature_net()
    assert sum(p.numel() for p in net.parameters()) <= 500_000
    assert WEIGHTS.stat().st_size <= 1_000_000
    distances = measure_damage(net, ((pictures(10) + 1) * 127.5).byte(), seed=0)
    for name, values in distances.items():
        assert values[0] < values[-1], name


def test_sizes_are_brought_to_64_pixels() -> None:
    net = load_feature_net()
    large = pictures(3, 128)
    torch.testing.assert_close(net(large), net(pictures(3, 64)), atol=0.3, rtol=0.3)
    assert net(pictures(3, 32)).shape == (3, FEATURES)
    stripes = torch.ones(1, 3, 128, 128)
    stripes[..., ::2] = -1
    assert float(resize(stripes)[..., 4:-4].abs().max()) < 1e-5  # averaged, not skipped


def test_other_files_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot read the feature network"):
        load_feature_net(tmp_path / "a.safetensors")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(ModelError, match="not the weights of the feature network"):
        load_feature_net(tmp_path / "b.safetensors")
    assert len(FeatureNet().state_dict()) > 20
