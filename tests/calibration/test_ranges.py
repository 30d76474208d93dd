"""First ranges: min-max clips nothing; running ranges average what each batch says, on the side the first one chose."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mezzotint.calibration.ranges import fit_activation, fit_ranges
from mezzotint.calibration.value_sample import Weighted
from mezzotint.config import QuantizeConfig, RangeConfig
from mezzotint.grid.spec import activation_spec, weight_spec
from mezzotint.layers.simulated import FakeQuantLinear
from mezzotint.layers.spec import LayerSpec
from mezzotint.progress import NullProgress

CPU = torch.device("cpu")


class Batches:
    """Rows for one linear layer."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def calls(self, size: int, device: torch.device) -> Iterator[Callable[[nn.Module], Tensor]]:
        for part in self.rows.split(size):
            yield lambda network, part=part: network(part)  # type: ignore[misc]


def fitted(rows: Tensor, ranges: RangeConfig, forward_batch: int = 64) -> FakeQuantLinear:
    torch.manual_seed(0)
    linear = nn.Linear(rows.shape[1], 3)
    layer = FakeQuantLinear(linear, LayerSpec(kind="linear", weight=weight_spec(4), input=activation_spec(8)))
    config = QuantizeConfig(ranges=ranges, forward_batch=forward_batch)
    fit_ranges(nn.Sequential(layer), Batches(rows), config, CPU, NullProgress())
    return layer


def input_range(layer: FakeQuantLinear) -> tuple[float, float]:
    grid = layer.input_quantizer
    assert grid is not None
    scale, zero = float(grid.scale), int(grid.zero_point)
    return -zero * scale, (255 - zero) * scale


def test_min_max_ranges_reach_the_extremes() -> None:
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    rows[7, 3] = 60.0  # an outlier that a search would clip
    layer = fitted(rows, RangeConfig(candidates=1))
    low, high = input_range(layer)
    assert_close(high, 60.0, rtol=0, atol=(high - low) / 255)
    assert_close(low, float(rows.min()), rtol=0, atol=(high - low) / 255)
    assert_close(layer.weight_scale[0], layer.weight.abs().amax(dim=1) * 2 / 15)


@pytest.mark.parametrize("forward_batch", [1, 64])
def test_running_ranges_keep_nine_tenths_whatever_the_batch_of_the_network(forward_batch: int) -> None:
    parts = [torch.randn(4, 5, generator=torch.Generator().manual_seed(i)) * (1 + i) for i in range(3)]
    ranges = RangeConfig(method="ema", ema_batch=4, symmetric_activations=True, candidates=1)
    low, high = input_range(fitted(torch.cat(parts), ranges, forward_batch))
    reach = [float(part.abs().max()) for part in parts]
    expected = 0.9 * (0.9 * reach[0] + 0.1 * reach[1]) + 0.1 * reach[2]
    assert_close(high - low, 2 * expected, rtol=1e-5, atol=0)


def test_the_first_batch_decides_which_side_of_a_running_range_is_open() -> None:
    rows = torch.cat([torch.rand(4, 5) + 0.1, -torch.rand(4, 5) - 0.1])
    ranges = RangeConfig(method="ema", ema_batch=4, symmetric_activations=True)
    low, high = input_range(fitted(rows, ranges))
    assert low == 0
    assert high > 0
    both = input_range(fitted(rows, RangeConfig(symmetric_activations=True)))
    assert both[0] < 0 < both[1]


def test_running_asymmetric_ranges_move_their_zero_with_them() -> None:
    rows = torch.cat([torch.rand(4, 5) + 1, *(-torch.rand(4, 5) - 1 for _ in range(3))])
    low, high = input_range(fitted(rows, RangeConfig(method="ema", ema_batch=4, candidates=1)))
    assert_close(high, 0.9**3 * float(rows.max()), rtol=0, atol=(high - low) / 255)
    assert -0.6 < low < -0.25


def test_a_given_side_wins_over_the_values() -> None:
    values, spec = torch.linspace(-1, 1, 50), activation_spec(8)
    options = RangeConfig(symmetric_activations=True)
    for side in (spec.quant_min, 128, spec.quant_max):
        assert int(fit_activation(Weighted(values, torch.ones(50)), spec, options, side)[1]) == side
