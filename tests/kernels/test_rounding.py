"""One kernel that rounds to a grid gives what the six operators give."""

from __future__ import annotations

import pytest
import torch

from mezzotint.grid.affine import fake_quantize
from mezzotint.grid.spec import GridSpec
from mezzotint.kernels.rounding import can_round, round_to_grid


def test_tensors_on_the_cpu_are_left_to_the_operators() -> None:
    assert not can_round(torch.zeros(3), torch.ones(1))


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_the_operators_bit_for_bit(bits: int, layout: torch.memory_format) -> None:
    spec = GridSpec(bits=bits, signed=False)
    x = torch.randn(3, 5, 7, 11, device="cuda").to(memory_format=layout) * 3
    scale, zero = torch.full((1,), 0.0371, device="cuda"), torch.full((1,), 2**bits // 3, device="cuda").int()
    ties = (torch.arange(-300, 300, device="cuda") + 0.5) * scale
    for values in (x, ties, x[:0], x * 1e6):
        assert can_round(values, scale)
        expected = fake_quantize(values, scale, zero, spec)
        assert torch.equal(round_to_grid(values, scale, zero, spec.quant_min, spec.quant_max), expected)


@pytest.mark.gpu
def test_gradients_gaps_and_groups_are_left_to_the_operators() -> None:
    x, scale = torch.zeros(4, 6, device="cuda"), torch.ones(1, device="cuda")
    assert not can_round(x[:, ::2], scale)
    assert not can_round(x, torch.ones(2, device="cuda"))
    assert not can_round(x.requires_grad_(), scale)
