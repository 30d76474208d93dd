"""Promises of the attention kernel, collected by `test_triton.py` like `triton_cases`, whose patch they need."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton_cases import DEVICE

from mezzotint.errors import KernelError
from mezzotint.kernels.triton import attention, flash
from mezzotint.kernels.triton.attention import exact_attention, flash_attention, flash_attention_codes, refuses
from mezzotint.kernels.triton.flash import Tile, attend, pieces, softmax

GRID = (0.02, 100, 255)
SHAPES = [
    (1, 40, 40, 2, 40),
    (2, 33, 77, 2, 8),
    (1, 17, 20, 1, 80),
    (1, 16, 128, 1, 160),
    (2, 20, 9, 2, 64),
    (1, 9, 1, 2, 8),
]


def operands(batch: int, queries: int, keys: int, heads: int, head: int) -> tuple[Tensor, Tensor, Tensor]:
    """float16 q, k, v; q and k are parts of wider rows."""
    generator, c = torch.Generator().manual_seed(0), heads * head
    wide = torch.randn(batch, max(queries, keys), 3 * c, generator=generator).half().to(DEVICE)
    return (
        wide[:, :queries, :c],
        wide[:, :keys, c : 2 * c],
        torch.randn(batch, keys, c, generator=generator).half().to(DEVICE),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tile", [Tile(32, 4, 2), Tile(16, 4, 2)])
def test_equals_attention_with_all_scores(shape: tuple[int, int, int, int, int], tile: Tile) -> None:
    q, k, v = operands(*shape)
    heads = shape[3]
    expected = exact_attention(q.float(), k.float(), v.float(), heads, 0.3)
    rounding = 2.0**-10 * v.abs().max().item()  # of probabilities and of the result to float16
    result = attend(q, k, v, heads, 0.3, None, tile)
    assert (result.float() - expected).abs().max() < 2 * rounding
    codes = attend(q, k, v, heads, 0.3, GRID, tile)
    assert codes.dtype == torch.int8
    points = (codes.float() + 128 - GRID[1]) * GRID[0]
    assert (points - expected.clamp(-GRID[1] * GRID[0], (255 - GRID[1]) * GRID[0])).abs().max() < GRID[0] / 2 + rounding


def test_a_program_takes_several_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = operands(1, 75, 24, 1, 40)
    expected = attend(q, k, v, 1, 0.2, GRID, Tile(16, 4, 2))
    monkeypatch.setattr(flash, "_PROGRAMS", 2)
    assert torch.equal(attend(q, k, v, 1, 0.2, GRID, Tile(16, 4, 2)), expected)


def test_large_scores_neither_overflow_nor_vanish() -> None:
    q, k, v = operands(1, 16, 40, 1, 16)
    result = attend(q * 100, k * 100, v, 1, 1.0, None, Tile(16, 4, 2))
    assert torch.isfinite(result).all()
    best = (q.float() @ k.float().mT).argmax(-1)[0]
    torch.testing.assert_close(result[0], v[0, best])


@pytest.mark.parametrize("keys", [1, 5, 64, 150])
def test_softmax_of_rows_is_that_of_torch(keys: int) -> None:
    scores = torch.randn(3, 7, keys, device=DEVICE) * 50
    expected = (0.3 * scores).softmax(-1)
    torch.testing.assert_close(softmax(scores, 0.3, torch.float32), expected, atol=1e-6, rtol=1e-5)
    assert softmax(scores, 0.3, torch.float16).dtype == torch.float16


@pytest.mark.skipif(DEVICE == "cpu", reason="torch has products with float32 results on GPUs only")
@pytest.mark.parametrize("keys", [64, 150])
def test_one_wide_head_is_three_steps(keys: int) -> None:
    q, k, v = operands(2, 20, keys, 1, 384)
    assert attention.is_wide(q, k, 1)
    assert not attention.is_wide(q[..., :256], k, 1)
    torch.testing.assert_close(
        attention._on_gpu(q, k, v, 1, 0.05), exact_attention(q, k, v, 1, 0.05), atol=2e-3, rtol=0
    )


@pytest.mark.parametrize("head", range(8, 257, 8))
def test_pieces_cover_a_head_with_little_waste(head: int) -> None:
    first, second = pieces(head)
    assert all(size == 0 or (size >= 16 and size & (size - 1) == 0) for size in (first, second))
    assert head <= first + second <= max(16, 2 * head - 1)


def test_operators_agree_with_each_other_and_refuse_other_shapes() -> None:
    q, k, v = operands(1, 8, 8, 2, 8)
    y = flash_attention(q, k, v, 2, 0.4)
    assert y.dtype == torch.float16
    points = (flash_attention_codes(q, k, v, 2, 0.4, *GRID).float() + 128 - GRID[1]) * GRID[0]
    low, high = (GRID[0] * (code - GRID[1]) for code in (0, 255))
    assert (points - y.float().clamp(low, high)).abs().max() < 0.52 * GRID[0]
    with pytest.raises(KernelError, match="C a multiple of 3"):
        flash_attention(q, k, v, 3, 0.4)
    assert "got torch.float32" in str(refuses(q.float(), k, 2))
    assert "in steps of 8, got 4" in str(refuses(q, k, 4))
    assert "up to 128 keys, got 129" in str(refuses(q, k.expand(1, 8, 16).repeat(1, 17, 1)[:, :129], 2))


def test_many_keys_are_torchs_attention_in_rows() -> None:
    q, k, v = operands(2, 20, 150, 2, 40)
    assert refuses(q, k, 2) is not None
    y, codes = attention._on_gpu(q, k, v, 2, 0.1), attention._codes_on_gpu(q, k, v, 2, 0.1, *GRID)
    assert y.is_contiguous()
    torch.testing.assert_close(y, exact_attention(q, k, v, 2, 0.1), atol=2e-3, rtol=0)
    assert (codes.int() - attention.exact_attention_codes(q, k, v, 2, 0.1, *GRID).int()).abs().max() <= 1
