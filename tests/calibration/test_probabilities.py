"""The grid of attention's probabilities is chosen by what it does to their product with the values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from families import FAMILIES
from mezzotint.calibration.probabilities import PAIRS, QUERIES, ProductSample, collect_, fit_probabilities
from mezzotint.calibration.ranges import fit_activation, quantizers
from mezzotint.calibration.value_sample import Weighted
from mezzotint.config import RangeConfig, override, with_settings
from mezzotint.grid.spec import activation_spec
from mezzotint.pipeline import simulate
from mezzotint.recipes.registry import make_config

SPEC = activation_spec(8)


def attention(keys: int, peaked: float) -> tuple[Tensor, Tensor]:
    """p [8, 64, keys], of which a share of the rows has one key far ahead, and v [8, keys, 16] with a mean."""
    generator = torch.Generator().manual_seed(keys)
    scores = torch.randn(8, 64, keys, generator=generator) * 0.5
    scores[:, : int(64 * peaked), 3] += 12
    return scores.softmax(-1), torch.randn(8, keys, 16, generator=generator) + 1


def error(p: Tensor, v: Tensor, scale: Tensor) -> float:
    return float((((p / scale).round().clamp(0, 255) * scale - p) @ v).square().mean())


@pytest.mark.parametrize("keys", [256, 1024])
@pytest.mark.parametrize("peaked", [0.0, 0.1, 0.6])
def test_it_is_better_for_the_product_than_the_search_over_values(keys: int, peaked: float) -> None:
    p, v = attention(keys, peaked)
    sample = ProductSample(1, seed=0)
    sample.add(p, v)
    scale, zero_point = fit_probabilities(sample, SPEC)
    by_values, _ = fit_activation(Weighted(p.flatten(), torch.ones(p.numel())), SPEC, RangeConfig())
    assert int(zero_point) == 0
    assert error(p, v, scale) <= 1.1 * error(p, v, by_values)  # its thresholds are further apart
    if (keys, peaked) == (1024, 0.1):  # values choose the peaks, and uniform rows lose their mass
        assert error(p, v, scale) < 0.7 * error(p, v, by_values)


def test_a_sample_is_bounded() -> None:
    p, v = attention(256, 0.5)
    sample = ProductSample(2, seed=0)
    for _ in range(2):
        sample.add(p.repeat(10, 1, 1), v.repeat(10, 1, 1))
    assert len(sample.pairs) == PAIRS
    assert {pair[0].shape for pair in sample.pairs} == {(QUERIES, 256)}
    assert sample.highest == float(p.max())


def test_eda_dm_takes_it_and_only_probabilities_change() -> None:
    pipeline = FAMILIES["sd"]()
    config = override(make_config("nearest", "w8a8", family="sd"), calib_size=4, pilot_size=4, steps=2)
    grids = []
    for probabilities in ("values", "product"):
        changed = with_settings(config, {"ranges.probabilities": probabilities})
        grids.append({name: float(q.scale[0]) for name, q in quantizers(simulate(pipeline, changed).network).items()})
    moved = {name for name in grids[0] if grids[0][name] != grids[1][name]}
    assert moved
    assert all(name.endswith("pv.input_quantizer") for name in moved)
    assert make_config("eda-dm", "w4a8").ranges.probabilities == "product"
    assert make_config("eda-dm-official", "w4a8").ranges.probabilities == "values"


@pytest.mark.parametrize("setting", [{"ranges.candidates": 1}, {"ranges.clip_activations": False}])
def test_min_max_ranges_reach_the_largest_probability_all_the_same(setting: dict[str, object]) -> None:
    pipeline = FAMILIES["sd"]()
    config = override(make_config("nearest", "w8a8", family="sd"), calib_size=4, pilot_size=4, steps=2)
    by_values, by_product = (
        quantizers(simulate(pipeline, with_settings(config, setting | {"ranges.probabilities": way})).network)
        for way in ("values", "product")
    )
    assert all(torch.equal(by_values[name].scale, by_product[name].scale) for name in by_values)


def test_modules_without_attention_have_nothing_to_sample() -> None:
    assert collect_(nn.Sequential(nn.Linear(2, 2)), 1, 0) == ({}, [])
