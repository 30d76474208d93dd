"""The fast quantizer equals the plain one, bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mezzotint.grid.affine import quantize
from mezzotint.grid.spec import activation_spec
from mezzotint.kernels.codes import activation_codes


def plain(x: torch.Tensor, scale: torch.Tensor, zero_point: int, bits: int) -> torch.Tensor:
    return quantize(x, scale.view(1), torch.tensor([zero_point], dtype=torch.int32), activation_spec(bits))


@settings(deadline=None, max_examples=150)
@given(
    bits=st.integers(2, 8),
    zero_share=st.floats(0, 1),
    scale=st.floats(1e-6, 1e3),
    size=st.sampled_from([0.1, 1.0, 3.0, 1e6]),
    seed=st.integers(0, 2**20),
)
def test_codes_are_those_of_the_grid(bits: int, zero_share: float, scale: float, size: float, seed: int) -> None:
    top = 2**bits - 1
    zero_point, step = round(zero_share * top), torch.tensor(scale)
    noise = torch.randn(500, generator=torch.Generator().manual_seed(seed)) * (size * top)
    ties = torch.arange(-2 * top, 2 * top + 1) + 0.5
    for steps in (noise, ties, ties.nextafter(torch.tensor(0.0)), ties.nextafter(torch.tensor(1e9))):
        x = steps * step
        assert torch.equal(activation_codes(x, step, zero_point, top), plain(x, step, zero_point, bits))


@pytest.mark.parametrize("zero_point", [0, 1, 127, 128, 255])
def test_whatever_is_big_saturates_on_its_side(zero_point: int) -> None:
    big = torch.tensor([2.0**22, 2.0**22 + 0.5, 2.0**23, 2.0**24, 2.0**31, 1e30, float("inf")])
    one = torch.tensor(1.0)
    assert activation_codes(big, one, zero_point, 255).tolist() == [255] * len(big)
    assert activation_codes(-big, one, zero_point, 255).tolist() == [0] * len(big)


def test_the_layout_is_kept() -> None:
    x = torch.randn(2, 5, 4, 3).contiguous(memory_format=torch.channels_last)
    for layout in (x, x.contiguous(), x.transpose(2, 3)):
        codes = activation_codes(layout, torch.tensor(0.1), 128, 255)
        assert codes.stride() == layout.stride()
