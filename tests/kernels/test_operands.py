"""The operators' exact arithmetic is the contract's, whatever the window, the grouping and the packing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from kernels.cases import ZERO_POINTS, weighted, weights
from mezzotint.errors import KernelError
from mezzotint.kernels import reference
from mezzotint.kernels.contract import Geometry, Weighted
from mezzotint.kernels.triton import (
    codes_s8,
    conv2d_operand,
    group_norm_codes_s8,
    linear_operand,
    product,
    product_codes,
    product_geglu_codes,
)
from mezzotint.kernels.triton.operands import pack_nibbles, unpack_nibbles

EXAMPLES = settings(deadline=None, max_examples=40)


def signed(x_q: torch.Tensor) -> torch.Tensor:
    """Codes [B, C, ...] as the operators take them: [B, ..., C], minus 128."""
    return (x_q.to(torch.int16) - 128).to(torch.int8).movedim(1, -1).contiguous()


@EXAMPLES
@given(
    size=st.tuples(st.integers(1, 3), st.sampled_from([1, 5, 33]), st.integers(1, 6), st.integers(1, 6)),
    outputs=st.sampled_from([1, 4, 19]),
    window=st.sampled_from([(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1)]),
    zero_point=ZERO_POINTS,
    bits=st.sampled_from([4, 8]),
    seed=st.integers(0, 2**20),
)
def test_convolutions_equal_the_reference(
    size: tuple[int, int, int, int], outputs: int, window: tuple[int, int, int], zero_point: int, bits: int, seed: int
) -> None:
    kernel, stride, padding = window
    weight = weights((outputs, size[1], kernel, kernel), "random", seed, 2 ** (bits - 1))
    part = weighted(weight, zero_point, True, seed, geometry=Geometry((stride, stride), (padding, padding)))
    x_q = torch.randint(0, 256, size, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    y = product(signed(x_q), conv2d_operand([part], bits=bits), dtype=torch.float32)
    assert torch.equal(y.movedim(-1, 1), reference.prepare_conv2d(part)(x_q))


@EXAMPLES
@given(zero_point=ZERO_POINTS, bits=st.sampled_from([4, 8]), seed=st.integers(0, 2**20))
def test_linears_side_by_side_equal_each_alone(zero_point: int, bits: int, seed: int) -> None:
    parts = [
        weighted(weights((o, 40), "random", seed + o, 2 ** (bits - 1)), zero_point, bias, seed)
        for o, bias in ((16, True), (3, False))
    ]
    x_q = torch.randint(0, 256, (2, 7, 40), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    x_s8 = (x_q.to(torch.int16) - 128).to(torch.int8)
    y = product(x_s8, linear_operand(parts, bits=bits), dtype=torch.float32)
    assert torch.equal(y, torch.cat([reference.prepare_linear(part)(x_q) for part in parts], dim=-1))


def test_one_sided_padding_equals_padding_first() -> None:
    weight = weights((4, 8, 3, 3), "random", 1)
    part = weighted(weight, 77, True, 1, geometry=Geometry((2, 2), (0, 0)))
    x_q = torch.randint(0, 256, (2, 8, 6, 6), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    y = product(signed(x_q), conv2d_operand([part], padding=(0, 1, 0, 1)), dtype=torch.float32)
    padded = F.pad(x_q, (0, 1, 0, 1), value=77)
    assert torch.equal(y.movedim(-1, 1), reference.prepare_conv2d(part)(padded))


@pytest.mark.parametrize("bits", [8, 4])
def test_groups_of_a_split_shortcut_are_added_in_order(bits: int) -> None:
    size = 2 ** (bits - 1)
    parts = [weighted(weights((6, c, 1, 1), "random", c, size), z, False, c) for c, z in ((8, 3), (24, 250))]
    bias = torch.linspace(-2, 2, 6)
    x_q = torch.randint(0, 256, (2, 32, 3, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    y = product(signed(x_q), conv2d_operand(parts, bias=bias, bits=bits), dtype=torch.float32)
    own = [reference.prepare_conv2d(p)(x) for p, x in zip(parts, (x_q[:, :8], x_q[:, 8:]), strict=True)]
    assert torch.equal(y.movedim(-1, 1), own[0] + own[1] + bias.view(-1, 1, 1))


def test_codes_residual_and_geglu_follow_the_product() -> None:
    part = weighted(weights((32, 32), "random", 2), 9, True, 2)
    x_s8 = torch.randint(-128, 128, (5, 32), generator=torch.Generator().manual_seed(2)).to(torch.int8)
    y, residual = product(x_s8, linear_operand([part]), dtype=torch.float32), torch.randn(5, 32)
    scale = y.abs().max().item() / 100
    more = product(x_s8, linear_operand([part]), residual=residual, dtype=torch.float32)
    assert torch.equal(more, y + residual)
    coded = product_codes(x_s8, linear_operand([part]), scale, 128, residual=residual)
    assert torch.equal(coded, codes_s8(y + residual, scale, 128))
    gated = product_geglu_codes(x_s8, linear_operand([part], geglu=True), scale, 128)
    assert torch.equal(gated, codes_s8(y[:, :16] * F.gelu(y[:, 16:]), scale, 128))


@EXAMPLES
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(2, 70)),
    cut=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_nibbles_come_back(shape: tuple[int, int, int], cut: float, seed: int) -> None:
    """A byte holds codes of one group only: each is packed as if it were alone."""
    weight, first = weights(shape, "random", seed, 8), 1 + int(cut * (shape[2] - 2))
    assert torch.equal(unpack_nibbles(pack_nibbles(weight), shape[2]), weight)
    groups = (first, shape[2] - first)
    packed = pack_nibbles(weight, groups)
    assert packed.shape[2] == sum(-(-size // 32) * 16 for size in groups)
    assert torch.equal(packed, torch.cat([pack_nibbles(part) for part in weight.split(groups, 2)], 2))
    assert torch.equal(unpack_nibbles(packed, shape[2], groups), weight)


def test_operators_are_traced_with_the_shapes_they_return() -> None:
    part = weighted(weights((16, 32, 3, 3), "random", 3), 9, True, 3, geometry=Geometry((2, 2), (1, 1)))
    operand, norm = conv2d_operand([part], bits=4), torch.ones(16)

    def network(x: torch.Tensor) -> torch.Tensor:
        y = product(codes_s8(x, 0.1, 7), operand, dtype=torch.bfloat16)
        return group_norm_codes_s8(y, norm, norm, groups=4, eps=1e-5, silu=True, scale=0.1, zero_point=30)

    x = torch.randn(2, 6, 5, 32)
    graph = make_fx(network, tracing_mode="fake", _allow_non_fake_inputs=True)(x)
    [result] = graph.graph.output_node().all_input_nodes
    assert result.meta["val"].shape == network(x).shape
    assert result.meta["val"].stride() == network(x).stride()
    assert torch.equal(graph(x), network(x))


@pytest.mark.parametrize(
    ("geometry", "kernel", "message"),
    [
        (Geometry((1, 1), (1, 1), (1, 1), 2), 3, "no groups and no dilation"),
        (Geometry((3, 3)), 3, "strides are 1 or 2"),
        (Geometry((1, 1), (2, 2)), 5, "windows are 1 or 3 wide"),
        (Geometry((1, 1), (1, 1)), 1, "hang over by at most 1"),
    ],
)
def test_other_windows_are_refused(geometry: Geometry, kernel: int, message: str) -> None:
    weight = weights((4, 4, kernel, kernel), "random", 0)
    with pytest.raises(KernelError, match=message):
        conv2d_operand([weighted(weight, 0, False, 0, geometry=geometry)])


def test_what_does_not_fit_is_an_error() -> None:
    part: Weighted = weighted(weights((4, 32), "random", 0), 0, False, 0)
    other: Weighted = weighted(weights((4, 32), "random", 0), 1, False, 0)
    with pytest.raises(KernelError, match="one x_zero_point"):
        linear_operand([part, other])
    with pytest.raises(KernelError, match="8 or 4 bits, got 5"):
        linear_operand([part], bits=5)
    with pytest.raises(KernelError, match=r"x_q must be \[..., 32\]"):
        product(torch.zeros(3, 16, dtype=torch.int8, device="meta"), linear_operand([part]), dtype=torch.float32)
