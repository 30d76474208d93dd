"""Layers with a grid for every time: each row of a batch has its own, and the numbers are those of a plain layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from mezzotint.errors import KernelError
from mezzotint.grid.affine import quantize
from mezzotint.grid.spec import activation_spec, weight_spec
from mezzotint.kernels.contract import WEIGHT_MAX
from mezzotint.layers.int_timed import ALIGNED, IntTimedLinear, zero_point_columns
from mezzotint.layers.integer import IntLinear
from mezzotint.layers.spec import LayerSpec
from mezzotint.layers.swap import integer_layer
from mezzotint.layers.timed import TAG, FakeQuantTimedLinear, TaggedTimes, codes_by_row, split_tag
from typecheck import switched_off

TIMES = 7
IN, OUT = 29, 11  # neither suits a kernel


def tagged(x: Tensor, rows: Tensor) -> Tensor:
    return torch.cat([x, (rows + TAG).to(x.dtype)[:, None]], dim=1)


def grids(bits: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scales and zero points of all times, the outermost codes among them."""
    g = torch.Generator().manual_seed(seed)
    top = 2**bits - 1
    zero_point = torch.randint(0, top + 1, (TIMES,), generator=g)
    zero_point[:2] = torch.tensor([0, top])
    return torch.rand(TIMES, generator=g) * 4 / top + 0.5 / top, zero_point.to(torch.int32)


def layers(weights: int, inputs: int, *, hands_on: bool = False, kernel: str = "auto", extreme: bool = False) -> Any:
    """An integer layer by time, and the plain layer of each time's grid."""
    g = torch.Generator().manual_seed(weights)
    weight = weight_spec(weights)
    codes = torch.randint(weight.quant_min, weight.quant_max + 1, (OUT, IN), generator=g).to(torch.int8)
    if extreme:
        codes[0], codes[1] = weight.quant_min, weight.quant_max
    shared = (codes, torch.rand(1, OUT, generator=g) * 0.1 + 1e-3, torch.randn(OUT, generator=g))
    scale, zero_point = grids(inputs)
    spec = LayerSpec(kind="linear", weight=weight, input=activation_spec(inputs))
    timed = IntTimedLinear.from_parts(
        spec.model_copy(update={"times": TIMES}), *shared, scale, zero_point, hands_on=hands_on, kernel=kernel
    )
    plain = [IntLinear.from_parts(spec, *shared, scale[[t]], zero_point[[t]], kernel="reference") for t in range(TIMES)]
    return timed, plain


def batch(seed: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(16, IN, generator=g) * 2, torch.randint(0, TIMES, (16,), generator=g)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_each_row_has_the_codes_of_its_own_grid(bits: int) -> None:
    (x, rows), (scale, zero_point), spec = batch(), grids(bits), activation_spec(bits)
    codes = codes_by_row(x, scale[rows], zero_point[rows], spec)
    for number, row in enumerate(rows):
        expected = quantize(x[number], scale[row][None], zero_point[row][None], spec)
        assert torch.equal(codes[number].to(torch.uint8), expected)


@pytest.mark.parametrize("kernel", ["auto", "exact-fp32", "reference"])
@pytest.mark.parametrize(("weights", "inputs"), [(8, 8), (4, 8), (2, 8), (4, 4)])
def test_the_integer_layer_is_bit_for_bit_the_plain_one_of_each_time(weights: int, inputs: int, kernel: str) -> None:
    timed, plain = layers(weights, inputs, kernel=kernel, extreme=True)
    x, rows = batch()
    y = timed(tagged(x, rows))
    for number, row in enumerate(rows.tolist()):
        assert torch.equal(y[number], plain[row](x[[number]])[0])


@pytest.mark.parametrize("value", [-128, 127, -1, 0])
@pytest.mark.parametrize("width", [1, 15, 16, 300])
def test_columns_of_the_zero_point_carry_the_sum_of_the_weights(value: int, width: int) -> None:
    codes = torch.full((3, width), value, dtype=torch.int8)
    codes[1] = 0
    columns = zero_point_columns(codes)
    assert torch.equal(columns.sum(1), -codes.sum(1))
    assert int(columns.int().abs().max() if columns.numel() else 0) < WEIGHT_MAX
    assert (width + columns.shape[1]) % ALIGNED == 0


@pytest.mark.parametrize("hands_on", [False, True])
def test_integer_equals_simulated_and_hands_the_time_on(hands_on: bool) -> None:
    linear = nn.Linear(IN, OUT)
    spec = LayerSpec(kind="linear", weight=weight_spec(4), input=activation_spec(8), times=TIMES)
    simulated = FakeQuantTimedLinear(linear, spec, hands_on=hands_on)
    simulated.weight_scale.fill_(0.03)
    simulated.round_to_nearest_()
    scale, zero_point = grids(8)
    simulated.timed_quantizer.scale.copy_(scale)
    simulated.timed_quantizer.zero_point.copy_(zero_point)
    x, rows = batch()
    y, twin = simulated(tagged(x, rows)), integer_layer(simulated)(tagged(x, rows))
    assert_close(twin, y, rtol=1e-5, atol=1e-5)
    assert y.shape == (16, OUT + hands_on)
    if hands_on:
        assert torch.equal(split_tag(twin)[1], rows)


def test_a_row_does_not_depend_on_its_batch() -> None:
    timed, _ = layers(4, 8)
    x, rows = batch()
    assert torch.equal(timed(tagged(x, rows))[5:6], timed(tagged(x[5:6], rows[5:6])))


def test_weights_kept_packed_give_the_same_numbers() -> None:
    timed, _ = layers(4, 8)
    x, rows = batch()
    before = timed(tagged(x, rows))
    timed.keep_packed = True
    assert torch.equal(timed.prepare_kernel_()(tagged(x, rows)), before)


def test_a_traced_layer_computes_the_same_in_one_graph() -> None:
    timed, _ = layers(4, 8, hands_on=True)
    x, rows = batch()
    timed.prepare_kernel_()
    with switched_off(), torch.no_grad():
        traced = torch.compile(timed, backend="eager", fullgraph=True)(tagged(x, rows))
        assert torch.equal(traced, timed(tagged(x, rows)))


@pytest.mark.parametrize(("dtype", "count"), [(torch.float32, 1000), (torch.float16, 1000), (torch.bfloat16, 224)])
def test_a_time_survives_the_way_through_the_network(dtype: torch.dtype, count: int) -> None:
    times = list(range(count))[::-1]
    proj = TaggedTimes(nn.Linear(1, 4), count).fill_(times)
    proj.time_proj = nn.Module()
    proj.time_proj.forward = lambda t: torch.zeros(len(t), 4)  # type: ignore[method-assign]
    features = F.silu(F.silu(proj(torch.tensor(times)).to(dtype)))
    assert torch.equal(split_tag(features)[1], torch.arange(count))


def test_an_unknown_time_takes_the_nearest() -> None:
    proj = TaggedTimes(nn.Embedding(1000, 4), 3).fill_([900, 500, 100])
    _, rows = split_tag(proj(torch.tensor([999, 701, 699, 0, 100])))
    assert rows.tolist() == [0, 0, 1, 2, 2]


def test_a_layer_by_time_needs_grids() -> None:
    for changes in ({"input": None}, {"times": 0}):
        spec = LayerSpec(kind="linear", weight=weight_spec(4), input=activation_spec(8), times=TIMES)
        with pytest.raises(KernelError, match="needs a grid without groups for each of its times"):
            IntTimedLinear(spec.model_copy(update=changes), IN, OUT, hands_on=False)


def test_the_report_says_how_many_times() -> None:
    timed, _ = layers(4, 8)
    assert timed.kernel_report().reason.endswith(f"a grid for each of {TIMES} times")
