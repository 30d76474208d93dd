"""Every kernel equals the contract bit for bit, at the extremes and at awkward sizes."""

from __future__ import annotations

import dataclasses
import math
import weakref

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kernels.cases import (
    FILLS,
    ZERO_POINTS,
    Case,
    codes,
    conv2d_cases,
    laid_out,
    linear_cases,
    oracle_conv2d,
    oracle_linear,
    weighted,
    weights,
)
from mezzotint.errors import KernelError
from mezzotint.kernels import exact_fp32, onednn
from mezzotint.kernels.choose import choose, prepare_conv2d, prepare_linear, prepare_matmul
from mezzotint.kernels.contract import Geometry, Paired, Weighted, conv2d_shape, linear_shape, matmul_shape

ALL = ["reference", "exact-fp32", "onednn"]
EXAMPLES = settings(deadline=None, max_examples=60)


def require(name: str, weight_max: int = 128) -> None:
    """Skips, in plain sight, on a processor where oneDNN is not exact."""
    refusal = onednn.probe(255, weight_max) if name == "onednn" else None
    if refusal is not None:
        pytest.skip(refusal)


@pytest.mark.parametrize("name", ALL)
@EXAMPLES
@given(case=conv2d_cases())
def test_conv2d_equals_the_integer_sum(name: str, case: Case) -> None:
    require(name)
    assume(name != "onednn" or case.constants.geometry.stride[0] == case.constants.geometry.stride[1])
    y = prepare_conv2d(name, case.constants)(case.x_q)
    assert y.dtype == torch.float32
    assert y.shape == conv2d_shape(case.x_q.shape, case.constants)
    assert torch.equal(y, oracle_conv2d(case))


@pytest.mark.parametrize("name", ["reference", "exact-fp32"])
@settings(deadline=None, max_examples=30)
@given(case=conv2d_cases(grouped=True))
def test_grouped_conv2d_equals_the_integer_sum(name: str, case: Case) -> None:
    assert torch.equal(prepare_conv2d(name, case.constants)(case.x_q), oracle_conv2d(case))


@pytest.mark.parametrize("name", ALL)
@EXAMPLES
@given(case=linear_cases())
def test_linear_equals_the_integer_sum(name: str, case: Case) -> None:
    require(name)
    y = prepare_linear(name, case.constants)(case.x_q)
    assert y.shape == linear_shape(case.x_q.shape, case.constants)
    assert torch.equal(y, oracle_linear(case))


@pytest.mark.parametrize("name", ALL)
@EXAMPLES
@given(
    shape=st.tuples(*[st.sampled_from([1, 3, 17, 70])] * 2, st.sampled_from([1, 3, 64, 258, 259, 700])),
    leading=st.sampled_from([(), (3,), (2, 2)]),
    fill=FILLS,
    zero_points=st.tuples(ZERO_POINTS, ZERO_POINTS),
    seed=st.integers(0, 2**20),
)
def test_matmul_equals_the_integer_sum(
    name: str,
    shape: tuple[int, int, int],
    leading: tuple[int, ...],
    fill: str,
    zero_points: tuple[int, int],
    seed: int,
) -> None:
    require(name)
    m, n, k = shape
    a_q = codes((*leading, m, k), fill, seed)
    b_q = codes((*leading, n, k), fill, seed + 1).transpose(-1, -2)
    multiplier = float(torch.tensor(0.037) * torch.tensor(0.0113))
    y = prepare_matmul(name, Paired(*zero_points, multiplier))(a_q, b_q)
    acc = (a_q.to(torch.int64) - zero_points[0]) @ (b_q.to(torch.int64) - zero_points[1])
    assert y.shape == matmul_shape(a_q.shape, b_q.shape)
    assert torch.equal(y, acc.to(torch.int32).float() * torch.tensor(multiplier))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_product_serves_every_batch_and_picture_size(name: str, batch: int) -> None:
    require(name)
    weight = weights((32, 24, 3, 3), "random", 0)
    constants = weighted(weight, 77, True, 0, geometry=Geometry(padding=(1, 1)))
    product = prepare_conv2d(name, constants)
    for height, width in ((8, 8), (5, 9), (1, 1), (16, 16)):
        case = Case(codes((batch, 24, height, width), "random", height), constants)
        assert torch.equal(product(case.x_q), oracle_conv2d(case))


@pytest.mark.parametrize("zero_point", [0, 77])
def test_weights_that_can_be_had_again_are_not_kept(zero_point: int) -> None:
    """oneDNN packs them for the shape that comes; between two shapes it need not hold the codes."""
    require("onednn")
    asked: list[torch.Tensor] = []

    def again() -> torch.Tensor:
        asked.append(weights((64, 48, 3, 3), "random", 0))
        return asked[-1]

    known = weighted(again(), zero_point, True, 0, geometry=Geometry(padding=(1, 1)))
    product = prepare_conv2d("onednn", dataclasses.replace(known, again=again))
    for count, size in ((2, 8), (2, 8), (3, 5)):
        x_q = codes((2, 48, size, size), "random", size)
        assert torch.equal(product(x_q), prepare_conv2d("reference", known)(x_q))
        assert len(asked) == count
    held = [weakref.ref(weight) for weight in asked]
    del known
    asked.clear()
    assert not [ref for ref in held if ref() is not None]


@pytest.mark.parametrize("name", ["reference", "exact-fp32"])
@pytest.mark.parametrize("stride", [(1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_few_channels_in_every_layout(name: str, stride: tuple[int, int], channels: int) -> None:
    """float32 convolutions of oneDNN get one channel with the strides of channels_last and stride (1, 2) wrong."""
    constants = weighted(weights((2, channels, 3, 3), "random", 1), 9, False, 1, geometry=Geometry(stride))
    x_q = codes((2, channels, 4, 4), "random", 1)
    for layout in ("contiguous", "channels_last", "transposed", "sliced"):
        case = Case(laid_out(x_q, layout), constants)
        assert torch.equal(prepare_conv2d(name, constants)(case.x_q), oracle_conv2d(case)), layout


@pytest.mark.parametrize("name", ALL)
def test_an_empty_batch_gives_an_empty_result(name: str) -> None:
    require(name)
    constants = weighted(weights((4, 3, 3, 3), "random", 0), 5, True, 0, geometry=Geometry(padding=(1, 1)))
    assert prepare_conv2d(name, constants)(torch.zeros(0, 3, 6, 5, dtype=torch.uint8)).shape == (0, 4, 6, 5)


@pytest.mark.parametrize("name", ALL)
def test_sums_beyond_2_to_the_24_are_exact(name: str) -> None:
    """1024 * 255 * 127 + 1 has no float32 neighbour closer than 2: an inexact sum shows in the last digit."""
    require(name)
    weight = torch.full((2, 1025), 127, dtype=torch.int8)
    weight[:, -1] = torch.tensor([1, -1])
    x_q = torch.full((3, 1025), 255, dtype=torch.uint8)
    constants = Weighted(weight, torch.ones(2), None, 0)
    exact = torch.tensor([[1024 * 255 * 127 + 255, 1024 * 255 * 127 - 255]], dtype=torch.int32)
    assert torch.equal(prepare_linear(name, constants)(x_q), exact.float().expand(3, 2))


def test_what_lies_outside_the_picture_is_zero() -> None:
    weight, geometry = torch.ones(1, 1, 3, 3, dtype=torch.int8), Geometry(padding=(1, 1))
    constants = Weighted(weight, torch.ones(1), None, 200, geometry=geometry)
    for name in ALL:
        require(name)
        assert not prepare_conv2d(name, constants)(torch.full((1, 1, 4, 4), 200, dtype=torch.uint8)).any()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 999), channels=st.integers(1, 400), window=st.sampled_from([1, 9, 25]), fill=FILLS)
def test_runs_of_channels_stay_inside_the_exact_integers(seed: int, channels: int, window: int, fill: str) -> None:
    weight = weights((3, channels, window, 1), fill, seed)
    runs = exact_fp32.channel_runs(weight, 255)
    assert [r.start for r in runs] == [0, *[r.stop for r in runs[:-1]]]
    assert runs[-1].stop == channels
    for run in runs:
        sums = weight[:, run].to(torch.int64).abs().sum(dim=(1, 2, 3))
        assert run.stop > run.start
        assert int(sums.max()) * 255 <= 2**24


def test_channels_are_cut_only_where_the_weights_need_it() -> None:
    assert len(exact_fp32.channel_runs(torch.full((8, 500, 3, 3), 7, dtype=torch.int8), 255)) == 1
    assert len(exact_fp32.channel_runs(torch.full((8, 500, 3, 3), -128, dtype=torch.int8), 255)) == 9  # 57 a run


def test_errors_name_the_thing() -> None:
    weight, ones = torch.ones(4, 3, 3, 3, dtype=torch.int8), torch.ones(4)
    constants = Weighted(weight, ones, None, 0)
    product = prepare_conv2d("reference", constants)
    with pytest.raises(KernelError, match=r"conv2d: weight_q must be int8 with 4 axes .* torch.float32 \[4, 3, 3, 3\]"):
        prepare_conv2d("reference", dataclasses.replace(constants, weight_q=weight.float()))
    with pytest.raises(KernelError, match=r"conv2d: multiplier must be float32 \[4\], got torch.float32 \[3\]"):
        prepare_conv2d("reference", dataclasses.replace(constants, multiplier=torch.ones(3)))
    with pytest.raises(KernelError, match=r"conv2d: bias must be float32 \[4\], got torch.float64 \[4\]"):
        prepare_conv2d("reference", dataclasses.replace(constants, bias=ones.double()))
    with pytest.raises(KernelError, match=r"conv2d: x_zero_point must lie in 0..255, got 256"):
        prepare_conv2d("reference", dataclasses.replace(constants, x_zero_point=256))
    with pytest.raises(KernelError, match=r"conv2d: x_q must be uint8 codes, got torch.int8"):
        product(torch.zeros(1, 3, 8, 8, dtype=torch.int8))
    with pytest.raises(KernelError, match=r"conv2d: x_q must be \[B, 3, H, W\], got \[1, 4, 8, 8\]"):
        product(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))
    with pytest.raises(KernelError, match=r"a picture of \[2, 8\] is smaller than the \[3, 3\] kernel"):
        product(torch.zeros(1, 3, 2, 8, dtype=torch.uint8))
    with pytest.raises(KernelError, match=r"linear: a sum of 65794 terms does not fit int32; at most 65793"):
        prepare_linear("reference", Weighted(torch.ones(1, 65794, dtype=torch.int8), torch.ones(1), None, 0))
    with pytest.raises(KernelError, match=r"linear: x_q must be \[..., 6\], got \[6, 5\]"):
        prepare_linear("reference", Weighted(torch.ones(2, 6, dtype=torch.int8), torch.ones(2), None, 0))(
            torch.zeros(6, 5, dtype=torch.uint8)
        )
    with pytest.raises(KernelError, match=r"matmul: want .* got \[2, 3\] and \[2, 3\]"):
        matmul_shape((2, 3), (2, 3))
    with pytest.raises(KernelError, match=r"matmul: a sum of 33026 terms"):
        matmul_shape((2, 33026), (33026, 2))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 999),
    channels=st.sampled_from([3, 16, 65, 256]),
    zero_point=ZERO_POINTS,
    fill=FILLS,
)
def test_constant_channels_carry_the_zero_point(seed: int, channels: int, zero_point: int, fill: str) -> None:
    """For every position of the window the added channels sum up to -zero_point * sum(weights), in int8."""
    require("onednn")
    constants = weighted(weights((5, channels, 3, 2), fill, seed), zero_point, False, seed)
    carried = onednn.carried_zero_point(constants)
    if carried is None:
        # One channel of code 1, and of code 255 as many as the largest sum needs at 127 each, in whole blocks.
        largest = int(constants.weight_q.to(torch.int64).sum(1).abs().max())
        needed = 1 + math.ceil((zero_point * largest // 255 + 1) / 127)
        in_blocks = math.ceil(needed / onednn._CHANNEL_BLOCK) * onednn._CHANNEL_BLOCK
        assert zero_point == 0 or 4 * in_blocks > channels or onednn.saturates()
        return
    weight, values = carried
    added = weight[:, channels:].to(torch.int64)
    assert weight.dtype == torch.int8
    assert torch.equal(weight[:, :channels], constants.weight_q)
    sums = (added * values.view(1, -1, 1, 1)).sum(1)
    assert torch.equal(sums, -zero_point * constants.weight_q.to(torch.int64).sum(1))
    assert added.shape[1] * 4 <= channels


@pytest.mark.gpu
@settings(deadline=None, max_examples=30)
@given(case=conv2d_cases())
def test_the_reference_is_exact_on_cuda(case: Case) -> None:
    c = case.constants
    bias = None if c.bias is None else c.bias.cuda()
    moved = dataclasses.replace(c, weight_q=c.weight_q.cuda(), multiplier=c.multiplier.cuda(), bias=bias)
    name = choose("conv2d", "cuda", geometry=c.geometry).name
    assert torch.equal(prepare_conv2d(name, moved)(case.x_q.cuda()).cpu(), oracle_conv2d(case))
