"""Fused steps: codes are exact, group norm is torch's to float32 rounding, and nothing depends on the threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mezzotint.kernels import fused, native
from mezzotint.kernels.codes import activation_codes

NEAR = 1e-3  # of a code: what float32 may take from the middle between two
LAYOUTS = ["contiguous", "channels_last", "slice of channels", "transposed", "tokens"]


def picture(layout: str, channels: int, seed: int) -> torch.Tensor:
    x = torch.randn(2, 2 * channels, 5, 7, generator=torch.Generator().manual_seed(seed)) * 3
    if layout == "contiguous":
        return x[:, :channels].contiguous()
    if layout == "transposed":
        return x[:, :channels].transpose(2, 3)
    x = x.contiguous(memory_format=torch.channels_last)
    if layout == "tokens":
        return x.flatten(2)[:, :channels]
    return x[:, channels:] if layout == "slice of channels" else x[:, :channels].clone()


@settings(deadline=None, max_examples=60)
@given(
    layout=st.sampled_from(LAYOUTS),
    channels=st.sampled_from([1, 3, 64, 70]),
    scale=st.floats(2**-13, 1.0, width=32),
    zero_point=st.integers(0, 255),
    bits=st.sampled_from([2, 4, 8]),
    seed=st.integers(0, 99),
)
def test_codes_are_those_of_the_grid(
    layout: str, channels: int, scale: float, zero_point: int, bits: int, seed: int
) -> None:
    x, largest = picture(layout, channels, seed), 2**bits - 1
    zero_point = min(zero_point, largest)
    expected = activation_codes(x, torch.tensor(scale), zero_point, largest)
    assert torch.equal(torch.ops.mezzotint.codes(x, scale, zero_point, largest), expected)


def test_codes_at_ties_and_extremes() -> None:
    x = torch.tensor([-0.5, 0.5, 1.5, 2.5, -1e30, 1e30, float("inf"), -float("inf"), 254.5, 255.5])
    expected = torch.tensor([0, 0, 2, 2, 0, 255, 255, 0, 254, 255], dtype=torch.uint8)
    assert torch.equal(torch.ops.mezzotint.codes(x, 1.0, 0, 255), expected)
    assert torch.ops.mezzotint.codes(torch.empty(0, 3), 1.0, 0, 255).shape == (0, 3)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.sampled_from([(2, 32, 9, 9), (1, 96, 4, 4), (3, 64, 100), (2, 12, 1, 1), (1, 320, 16, 5)]),
    silu=st.booleans(),
    added=st.booleans(),
    affine=st.booleans(),
    channels_last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_group_norm_is_torchs_to_rounding(
    shape: tuple[int, ...], silu: bool, added: bool, affine: bool, channels_last: bool, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g) * 2 + 1
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    more = torch.randn(shape[:2], generator=g) if added else None
    weight, bias = (torch.randn(shape[1], generator=g) if affine else None for _ in range(2))
    whole = x.double() if more is None else x.double() + more.double().view(*shape[:2], *(1,) * (len(shape) - 2))
    exact = F.group_norm(whole, 4, *(None if v is None else v.double() for v in (weight, bias)), 1e-6)
    exact = F.silu(exact) if silu else exact
    y = torch.ops.mezzotint.group_norm(x, more, weight, bias, 4, 1e-6, silu)
    assert torch.allclose(y.double(), exact, rtol=1e-5, atol=2e-5)
    codes = torch.ops.mezzotint.group_norm_codes(x, more, weight, bias, 4, 1e-6, silu, 0.02, 30, 255)
    assert torch.equal(codes, torch.ops.mezzotint.codes(y, 0.02, 30, 255))


@settings(deadline=None, max_examples=40)
@given(
    shape=st.sampled_from([(2, 9, 64), (1, 5, 70), (3, 7), (1, 1, 1), (300, 33)]),
    affine=st.booleans(),
    zero_point=st.sampled_from([0, 30, 255]),
    seed=st.integers(0, 99),
)
def test_layer_norm_and_gates_round_to_the_nearest_code(
    shape: tuple[int, ...], affine: bool, zero_point: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    x, scale = torch.randn(shape, generator=g) * 3 + 5, 0.02
    weight, bias = (torch.randn(shape[-1], generator=g) if affine else None for _ in range(2))
    exact = F.layer_norm(x.double(), shape[-1:], *(None if v is None else v.double() for v in (weight, bias)), 1e-5)
    found = torch.ops.mezzotint.layer_norm_codes(x, weight, bias, 1e-5, scale, zero_point, 255)
    assert found.shape == x.shape
    assert (found - (exact / scale + zero_point).clamp(0, 255)).abs().max() <= 0.5 + NEAR

    gates = torch.randn(*shape[:-1], 2 * shape[-1], generator=g) * 3
    value, gate = gates.double().chunk(2, dim=-1)
    found = torch.ops.mezzotint.geglu_codes(gates, scale, zero_point, 255)
    assert found.shape == value.shape
    assert (found - (value * F.gelu(gate) / scale + zero_point).clamp(0, 255)).abs().max() <= 0.5 + NEAR


def test_gates_far_out_are_the_identity_and_zero() -> None:
    gates = torch.tensor([[1.0, 1.0, 1.0, 1.0, 40.0, -40.0, float("inf"), 0.0]])
    found = torch.ops.mezzotint.geglu_codes(gates, 0.25, 7, 255)
    assert torch.equal(found, torch.tensor([[167, 7, 255, 7]], dtype=torch.uint8))


def test_without_a_compiler_the_steps_are_torchs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    native.library.cache_clear()
    try:
        with caplog.at_level("WARNING", logger="mezzotint"):
            assert native.library() is None
        assert "no C++ compiler" in caplog.text
        x, one = picture("channels_last", 8, 0), torch.ones(8)
        y = fused.group_norm(x, None, one, one, 4, 1e-6, True)
        assert torch.equal(y, F.silu(F.group_norm(x, 4, one, one, 1e-6)))
        assert torch.equal(fused.codes(x, 0.1, 3, 255), activation_codes(x, torch.tensor(0.1), 3, 255))
        rows, grid = torch.randn(5, 8), (torch.tensor(0.1), 3, 255)
        expected = activation_codes(F.layer_norm(rows, (8,), one, one, 1e-5), *grid)
        assert torch.equal(fused.layer_norm_codes(rows, one, one, 1e-5, 0.1, 3, 255), expected)
        expected = activation_codes(rows[:, :4] * F.gelu(rows[:, 4:]), *grid)
        assert torch.equal(fused.geglu_codes(rows, 0.1, 3, 255), expected)
    finally:
        native.library.cache_clear()


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
def test_the_number_of_threads_changes_no_bit(threads: Callable[[int], None]) -> None:
    x = torch.randn(3, 96, 40, 33, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    outputs = []
    for count in (1, 2, 3):
        threads(count)
        outputs.append(torch.ops.mezzotint.group_norm(x, None, None, None, 8, 1e-6, True))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
