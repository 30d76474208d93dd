"""Promises of attention on codes, collected by `test_triton.py` like `triton_cases`, whose patch they need.

With v the identity (codes one above their zero point where key and channel agree) the result *is* the codes of the
probabilities, so both halves can be looked at apart.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from triton_cases import DEVICE, INTERPRETED

from mezzotint.errors import KernelError
from mezzotint.kernels.triton import int_attention
from mezzotint.kernels.triton.exact import nhwc_codes
from mezzotint.kernels.triton.int_attention import Grids, exact_int_attention_codes, multipliers
from mezzotint.kernels.triton.launch_attention import CHUNK, IntTile, attend, heads_of, padded_chunks, prepare, tile_of

GRIDS = Grids((0.02, 117, 255), (0.022, 140, 255), (1 / 300, 0, 255), (0.03, 77, 255))
OUT = (0.011, 100, 255)
ROWS = 32 if INTERPRETED else 64  # on Hopper fewer are products of a warp, not of four
TWO_PASSES, ONE = IntTile(ROWS, 32, 4, 2), IntTile(ROWS, 256, 4, 1)
CASES = [  # batch, queries, keys, heads, channels of a head, tile
    (2, 33, 77, 2, 40, IntTile(ROWS, 128, 4, 1)),
    (1, 70, 77, 1, 40, TWO_PASSES),
    (1, 20, 150, 1, 80, IntTile(ROWS, 64, 4, 2)),
    (1, 17, 200, 1, 96, ONE),
    (1, 9, 33, 1, 64, IntTile(16, 64, 4, 1)),
    (1, 16, 1, 1, 128, TWO_PASSES),
    (1, 24, 150, 1, 160, IntTile(2 * ROWS, 64, 8, 2)),
]
CODE_ERROR = 2e-3  # of a code of 255: exponents of size 20 in float32


def random_codes(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, torch.int8)


def operands(batch: int, queries: int, keys: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Signed codes of q, k, v; rows of k and v lie apart."""
    wide = random_codes((batch, keys, 3 * channels), keys)
    return random_codes((batch, queries, channels), queries), wide[..., :channels], wide[..., channels : 2 * channels]


def apart(codes: Tensor, heads: int, zero_point: int) -> Tensor:
    """float64 [B, h, N, d] of signed codes, less their zero point."""
    return codes.double().unflatten(-1, (heads, -1)).transpose(1, 2) - (zero_point - 128)


def attended(
    q: Tensor, k: Tensor, v: Tensor, heads: int, factor: float, grids: Grids, multiplier: float, tile: IntTile
) -> Tensor:
    ready = prepare(k, v, heads, grids, tile)
    return attend(q, ready, heads, factor, grids, multiplier, torch.float32, None, tile)


def codes_of_probabilities(q: Tensor, k: Tensor, heads: int, factor: float, grids: Grids, tile: IntTile) -> Tensor:
    """[B, h, N, M] as the kernel has them, a run of keys at a time."""
    (batch, keys, width), parts = k.shape, []
    channels = width // heads
    grids = replace(grids, v=(1.0, 135, 255))
    for start in range(0, keys, channels):
        v = torch.full((batch, keys, heads, channels), 135 - 128, dtype=torch.int8, device=DEVICE)
        for c in range(min(channels, keys - start)):
            v[:, start + c, :, c] += 1
        y = attended(q, k, v.flatten(2), heads, factor, grids, 1.0, tile)
        parts.append(y.double().unflatten(-1, (heads, -1)).transpose(1, 2))
    return torch.cat(parts, dim=-1)[..., :keys] + grids.p[1]


def check(q: Tensor, k: Tensor, v: Tensor, heads: int, factor: float, grids: Grids, tile: IntTile) -> float:
    """Codes are the nearest ones, what is summed of them is exact; the share of codes that torch has otherwise."""
    found = codes_of_probabilities(q, k, heads, factor, grids, tile)
    scores = apart(q, heads, grids.q[1]) @ apart(k, heads, grids.k[1]).mT
    step, zero_point, largest = grids.p
    wanted = ((scores * factor).softmax(-1) / torch.tensor(step).double() + zero_point).clamp(0, largest)
    assert (found - wanted).abs().max() <= 0.5 + CODE_ERROR
    y = attended(q, k, v, heads, factor, grids, 0.25, tile)
    sums = (found - zero_point) @ apart(v, heads, grids.v[1])
    assert torch.equal(y, (sums.float() * 0.25).transpose(1, 2).flatten(2))
    return float((found != wanted.round()).double().mean())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_codes_are_the_nearest_and_sums_exact(case: tuple[int, int, int, int, int, IntTile]) -> None:
    batch, queries, keys, heads, head, tile = case
    q, k, v = operands(batch, queries, keys, heads * head)
    assert check(q, k, v, heads, 4 / (head**0.5 * 75**2), GRIDS, tile) <= 1e-3


@pytest.mark.parametrize("zero_points", [(0, 255, 0, 0), (255, 0, 3, 255), (128, 128, 200, 128)], ids=str)
@pytest.mark.parametrize("head", [128, 160])
def test_extremes_lose_nothing(zero_points: tuple[int, int, int, int], head: int) -> None:
    grids = Grids(*((grid[0], z, 255) for grid, z in zip(vars(GRIDS).values(), zero_points, strict=True)))
    q, k, v = operands(1, 16, 65, head)
    q[:, :8], k[:, ::2], v[:, ::3] = -128, 127, -128
    check(q, k, v, 1, 1e-6, grids, TWO_PASSES)
    check(q, k, v, 1, 1e-6, replace(grids, p=(1e-4, zero_points[2], 255)), ONE)  # every probability is clamped


@pytest.mark.parametrize("zero_point", [0, 1])
@pytest.mark.parametrize("tile", [TWO_PASSES, ONE], ids=["two passes", "one"])
def test_halves_go_to_even_codes(zero_point: int, tile: IntTile) -> None:
    """Of 0.5 / 0.2; the zero point comes after."""
    q, k, _ = operands(1, 16, 2, 40)
    grids = replace(GRIDS, p=(0.2, zero_point, 255))
    found = codes_of_probabilities(q, k[:, :1].expand(1, 2, 40).contiguous(), 1, 0.01, grids, tile)
    assert torch.equal(found, torch.full_like(found, 2 + zero_point))


def test_one_key_far_ahead_takes_all() -> None:
    q, k, _ = operands(1, 16, 70, 40)
    q[:], k[:], k[:, 17] = 127, -128, 127
    found = codes_of_probabilities(q, k, 1, 1.0, replace(GRIDS, p=(1 / 255, 0, 255)), TWO_PASSES)
    hot = torch.nn.functional.one_hot(torch.tensor(17), 70).to(DEVICE)
    assert torch.equal(found, hot.expand(1, 1, 16, 70) * 255.0)


@pytest.mark.parametrize("tile", [TWO_PASSES, ONE], ids=["two passes", "one"])
def test_codes_may_be_made_inside_and_of_the_result(tile: IntTile) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 80, generator=generator).to(DEVICE, torch.bfloat16) for n in (20, 77, 77))
    coded = [nhwc_codes(x, None, *grid) for x, grid in ((q, GRIDS.q), (k, GRIDS.k), (v, GRIDS.v))]
    qk, pv = multipliers(GRIDS.arguments()[0])
    rest = (2, qk * 0.2, GRIDS, pv, torch.int8, OUT, tile)
    inside = attend(q, prepare(k, v, 2, GRIDS, tile), *rest)
    before = attend(coded[0], prepare(*coded[1:], 2, GRIDS, tile), *rest)
    assert torch.equal(inside, before)
    expected = exact_int_attention_codes(*coded, 2, 0.2, *GRIDS.arguments(), *OUT)
    torch.testing.assert_close(inside, expected, atol=3, rtol=0)  # of one code: 255 * 0.03 / 300 / 0.011
    assert (inside != expected).float().mean() <= 1e-2


def test_the_operators_on_a_gpu_launch_these_kernels() -> None:
    q, k, v = operands(1, 20, 77, 80)
    rest = (2, 0.2, *GRIDS.arguments())
    y = int_attention._on_gpu(q, k, v, *rest, torch.float32)
    tile, (qk, pv) = tile_of(40, 20, 77), multipliers(GRIDS.arguments()[0])
    assert torch.equal(y, attended(q, k, v, 2, qk * 0.2, GRIDS, pv, tile))
    torch.testing.assert_close(int_attention._codes_on_gpu(q, k, v, *rest, *OUT), nhwc_codes(y, None, *OUT))
    with pytest.raises(KernelError, match="heads have up to 256 channels, got 264"):
        int_attention._on_gpu(*operands(1, 2, 2, 264), 1, 0.2, *GRIDS.arguments(), torch.float32)


@pytest.mark.parametrize("head", [*range(8, 129, 8), 160, 256])
def test_heads_and_keys_are_covered_with_little_waste(head: int) -> None:
    scores, values = heads_of(head)
    sizes = [size for size in (*scores, *values) if size]
    assert all(size & (size - 1) == 0 for size in sizes)
    assert min(size for size in scores if size) >= 32
    assert head <= sum(scores) < max(2 * head, 33)
    assert head + 1 <= sum(values) < max(2 * (head + 1), 17)
    for keys in (1, 77, 256, 4096):
        tile = tile_of(head, 4096, keys)
        chunks = padded_chunks(keys, tile)
        assert keys <= chunks * CHUNK
        assert chunks * CHUNK % tile.keys == 0
        assert tile.keys >= keys or keys > 256


@pytest.mark.skipif(INTERPRETED, reason="large; for a GPU")
@pytest.mark.parametrize("case", [(4096, 40), (1024, 80), (256, 160), (77, 40)], ids=str)
def test_shapes_of_stable_diffusion(case: tuple[int, int]) -> None:
    keys, head = case
    q, k, v = operands(1, 1024, keys, 2 * head)
    grids = replace(GRIDS, p=(20 / keys / 255, 0, 255))
    assert check(q, k, v, 2, 4 / (head**0.5 * 75**2), grids, tile_of(head, 1024, keys)) <= 1e-3
