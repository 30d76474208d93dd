"""The promises of the integer grid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from mezzotint.errors import BitsError
from mezzotint.grid.affine import dequantize, expand, fake_quantize, quantize
from mezzotint.grid.bits import parse_bits
from mezzotint.grid.spec import GridSpec, activation_spec, weight_spec

BITS = st.integers(2, 8)
SEEDS = st.integers(0, 2**31)


def activation_grid(bits: int, seed: int) -> tuple[GridSpec, torch.Tensor, torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    spec = activation_spec(bits)
    scale = torch.rand(1, generator=generator) * 0.1 + 1e-3
    zero_point = torch.randint(0, 2**bits, (1,), generator=generator, dtype=torch.int32)
    return spec, scale, zero_point, generator


@settings(max_examples=40, deadline=None)
@given(BITS, SEEDS)
def test_inside_the_grid_the_error_is_at_most_half_a_step(bits: int, seed: int) -> None:
    spec, scale, zero_point, generator = activation_grid(bits, seed)
    low, high = (spec.quant_min - zero_point) * scale, (spec.quant_max - zero_point) * scale
    x = low + (high - low) * torch.rand(500, generator=generator)
    assert (fake_quantize(x, scale, zero_point, spec) - x).abs().max() <= scale / 2 * (1 + 1e-4)


@settings(max_examples=40, deadline=None)
@given(BITS, SEEDS)
def test_outside_the_grid_saturates(bits: int, seed: int) -> None:
    spec, scale, zero_point, _ = activation_grid(bits, seed)
    codes = quantize(torch.tensor([-1e6, 1e6]), scale, zero_point, spec)
    assert codes.tolist() == [spec.quant_min, spec.quant_max]


@settings(max_examples=40, deadline=None)
@given(BITS, SEEDS)
def test_quantizing_twice_changes_nothing_and_zero_is_exact(bits: int, seed: int) -> None:
    spec, scale, zero_point, generator = activation_grid(bits, seed)
    once = fake_quantize(torch.randn(300, generator=generator), scale, zero_point, spec)
    assert torch.equal(fake_quantize(once, scale, zero_point, spec), once)
    assert fake_quantize(torch.zeros(1), scale, zero_point, spec).item() == 0.0


@settings(max_examples=40, deadline=None)
@given(BITS, SEEDS)
def test_codes_stand_for_what_fake_quantize_gives(bits: int, seed: int) -> None:
    spec, scale, zero_point, generator = activation_grid(bits, seed)
    x = torch.randn(300, generator=generator)
    codes = quantize(x, scale, zero_point, spec)
    assert codes.dtype == torch.uint8
    assert torch.equal(dequantize(codes, scale, zero_point, spec), fake_quantize(x, scale, zero_point, spec))


def test_rounding_is_half_to_even() -> None:
    spec = activation_spec(4)
    x = torch.tensor([0.5, 1.5, 2.5, 3.5])
    codes = quantize(x, torch.ones(1), torch.zeros(1, dtype=torch.int32), spec)
    assert codes.tolist() == [0, 2, 2, 4]


def test_weight_scales_belong_to_output_channels_and_groups_to_input_channels() -> None:
    spec = weight_spec(8, groups=(2, 1))
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # [group, output]
    expanded = expand(scale, torch.zeros(2, 3, 1, 1), spec)
    assert expanded[:, :, 0, 0].tolist() == [[1.0, 1.0, 3.0], [2.0, 2.0, 4.0]]


def test_activation_groups_round_each_half_on_its_own_grid() -> None:
    spec = activation_spec(8, groups=(1, 2))
    scale, zero_point = torch.tensor([0.5, 0.25]), torch.tensor([0, 128], dtype=torch.int32)
    x = torch.tensor([0.3, 0.3, 0.3]).reshape(1, 3, 1, 1)
    assert fake_quantize(x, scale, zero_point, spec).flatten().tolist() == [0.5, 0.25, 0.25]


@given(BITS)
def test_signed_and_unsigned_bounds(bits: int) -> None:
    assert (weight_spec(bits).quant_min, weight_spec(bits).quant_max) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert (activation_spec(bits).quant_min, activation_spec(bits).quant_max) == (0, 2**bits - 1)


@pytest.mark.parametrize("groups", [(2, -1), (0, 3)])
def test_groups_are_positive(groups: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="positive channel counts"):
        activation_spec(8, groups)


def test_groups_cover_the_channels() -> None:
    with pytest.raises(ValueError, match=r"cover 3 channels, the tensor has 4"):
        activation_spec(8, (1, 2)).group_slices(4)


def test_bits_are_read() -> None:
    assert parse_bits("W4A8") == (4, 8)
    assert parse_bits("w3a32") == (3, None)
    assert str(parse_bits("w3a32")) == "w3a32"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("int4", "cannot be read"), ("w9a8", "weights take"), ("w4a16", "or 32 for float"), ("w1a8", "2 to 8")],
)
def test_unreadable_bits_are_one_clear_line(text: str, complaint: str) -> None:
    with pytest.raises(BitsError, match=complaint):
        parse_bits(text)


def test_fake_quantize_keeps_the_input() -> None:
    x = torch.randn(10)
    before = x.clone()
    fake_quantize(x, torch.ones(1), torch.zeros(1, dtype=torch.int32), activation_spec(8))
    assert_close(x, before, rtol=0, atol=0)
