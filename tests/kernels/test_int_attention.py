"""Attention on codes as an operator: on a CPU it is the integer model's, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mezzotint.errors import KernelError
from mezzotint.grid.spec import GridSpec
from mezzotint.kernels.triton.exact import nhwc_codes
from mezzotint.kernels.triton.int_attention import Grids, int_attention, int_attention_codes
from mezzotint.layers.int_matmul import IntMatMul
from mezzotint.layers.spec import LayerSpec

GRIDS = Grids((0.02, 117, 255), (0.022, 140, 255), (1 / 300, 2, 255), (0.03, 77, 255))
OUT = (0.011, 100, 255)
GRID = GridSpec(bits=8, signed=False)


def operands(queries: int, keys: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, channels, generator=generator) for n in (queries, keys, keys))
    return q, k, v


def product(a: tuple[float, int, int], b: tuple[float, int, int]) -> IntMatMul:
    parts = {
        f"{name}_{part}": torch.tensor([value], dtype=dtype)
        for name, grid in (("a", a), ("b", b))
        for part, value, dtype in (("scale", grid[0], torch.float32), ("zero_point", grid[1], torch.int32))
    }
    return IntMatMul.from_parts(LayerSpec(kind="matmul", input=GRID, other=GRID), **parts)


def as_in_the_integer_model(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = product(GRIDS.q, GRIDS.k)(q, k.mT) * scale
    return product(GRIDS.p, GRIDS.v)(scores.softmax(dim=-1), v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(("queries", "keys", "heads", "head"), [(33, 77, 2, 40), (9, 130, 1, 160), (5, 1, 3, 8)])
def test_is_the_integer_model_bit_for_bit(queries: int, keys: int, heads: int, head: int) -> None:
    q, k, v = operands(queries, keys, heads * head)
    expected = as_in_the_integer_model(q, k, v, heads, 0.4)
    assert torch.equal(int_attention(q, k, v, heads, 0.4, GRIDS, dtype=torch.float32), expected)
    coded = [nhwc_codes(x, None, *grid) for x, grid in ((q, GRIDS.q), (k, GRIDS.k), (v, GRIDS.v))]
    assert torch.equal(int_attention(*coded, heads, 0.4, GRIDS, dtype=torch.float32), expected)
    assert torch.equal(int_attention_codes(*coded, heads, 0.4, GRIDS, OUT), nhwc_codes(expected, None, *OUT))
    half = int_attention(q, coded[1], v, heads, 0.4, GRIDS, dtype=torch.float16)
    assert torch.equal(half, expected.half())


def test_a_few_heads_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = operands(20, 30, 24)
    expected = int_attention(q, k, v, 3, 0.4, GRIDS, dtype=torch.float32)
    monkeypatch.setattr("mezzotint.kernels.triton.int_attention._SCORES_AT_ONCE", 1500)
    assert torch.equal(int_attention(q, k, v, 3, 0.4, GRIDS, dtype=torch.float32), expected)


def test_operators_compile_and_keep_their_contract() -> None:
    given, rest = operands(8, 12, 16), (2, 0.4, *GRIDS.arguments())
    operators = torch.ops.mezzotint.int_attention.default, torch.ops.mezzotint.int_attention_codes.default

    def call(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return operators[0](q, k, v, *rest, torch.bfloat16), operators[1](q, k, v, *rest, *OUT)

    compiled: Any = torch.compile(call, backend="aot_eager", fullgraph=True)
    for found, expected in zip(compiled(*given), call(*given), strict=True):
        assert torch.equal(found, expected)
        assert found.is_contiguous()
    for operator, more in zip(operators, ((torch.float16,), OUT), strict=True):
        torch.library.opcheck(operator, (*given, *rest, *more), test_utils=("test_schema", "test_faketensor"))


def test_what_does_not_fit_is_an_error() -> None:
    q, k, v = operands(8, 12, 16)
    with pytest.raises(KernelError, match="C a multiple of 3"):
        int_attention(q, k, v, 3, 0.4, GRIDS, dtype=torch.float32)
    with pytest.raises(KernelError, match="positive scales, got -1"):
        int_attention(q, k, v, 2, -1.0, GRIDS, dtype=torch.float32)
    with pytest.raises(KernelError, match=r"must lie in 0\.\.255, got 256"):
        int_attention(q, k, v, 2, 0.4, replace(GRIDS, v=(0.1, 256, 255)), dtype=torch.float32)
    many = torch.empty(1, 33026, 16, device="meta")
    with pytest.raises(KernelError, match="33026 keys do not fit int32; at most 33025"):
        int_attention(many, many, many, 2, 0.4, GRIDS, dtype=torch.float32)
