"""Fused attention: exact products, probabilities at their nearest codes, no order that depends on the machine.

With v the identity (codes one above their zero point where key and channel agree) the output *is* the codes of the
probabilities, so both halves can be looked at apart.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mezzotint.errors import KernelError
from mezzotint.kernels import native
from mezzotint.kernels.attention import AttentionConstants, prepare_attention
from mezzotint.kernels.contract import Paired

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")

SPREAD = 4.0  # of the logits
CODE = st.sampled_from([0, 1, 118, 128, 255])


def random_codes(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def constants(channels: int, q_zero: int, k_zero: int, p_zero: int, v_zero: int, p_scale: float) -> AttentionConstants:
    multiplier = SPREAD / (channels**0.5 * 75**2)
    return AttentionConstants(Paired(q_zero, k_zero, multiplier), Paired(p_zero, v_zero, 1.0), 0.5, p_scale)


def apart(codes: Tensor, heads: int) -> Tensor:
    """[B, N, h d] -> [B, h, N, d]."""
    return codes.unflatten(-1, (heads, -1)).transpose(1, 2)


def codes_of_probabilities(known: AttentionConstants, q: Tensor, k: Tensor, heads: int) -> Tensor:
    """[B, h, N, M] as the fused function has them, a run of keys at a time."""
    (batch, keys, width), own = k.shape, replace(known, pv=replace(known.pv, b_zero_point=7))
    channels, parts = width // heads, []
    for start in range(0, keys, channels):
        v = torch.full((batch, keys, heads, channels), 7, dtype=torch.uint8)
        for c in range(min(channels, keys - start)):
            v[:, start + c, :, c] = 8
        parts.append(apart(prepare_attention(own)(q, k, v.flatten(2), heads), heads))
    return torch.cat(parts, dim=-1)[..., :keys] + known.pv.a_zero_point


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 20), st.sampled_from([1, 5, 16, 31, 32, 33, 70])),
    heads=st.integers(1, 3),
    channels=st.sampled_from([1, 3, 8, 32, 40]),
    zero_points=st.tuples(CODE, CODE, st.sampled_from([0, 3]), CODE),
    seed=st.integers(0, 99),
)
def test_codes_are_the_nearest_and_products_exact(
    sizes: tuple[int, int, int], heads: int, channels: int, zero_points: tuple[int, int, int, int], seed: int
) -> None:
    batch, queries, keys = sizes
    known = constants(channels, *zero_points, p_scale=1 / 250)
    q = random_codes((batch, queries, heads * channels), seed)
    k, v = (random_codes((batch, keys, heads * channels), seed + i) for i in (1, 2))

    found = codes_of_probabilities(known, q, k, heads)
    exact = (apart(q, heads).double() - zero_points[0]) @ (apart(k, heads).double() - zero_points[1]).mT
    p = (exact * known.qk.multiplier * known.scale).softmax(-1) / known.p_scale + zero_points[2]
    assert (found - p.clamp(0, 255)).abs().max() <= 0.5 + 1e-3

    y = prepare_attention(replace(known, pv=replace(known.pv, multiplier=0.25)))(q, k, v, heads)
    sums = (found.double() - zero_points[2]) @ (apart(v, heads).double() - zero_points[3])
    assert torch.equal(apart(y, heads), sums.to(torch.float32) * 0.25)


def test_extreme_codes_lose_nothing() -> None:
    """Sums of the largest products, where 16 bits would not do."""
    channels, keys = 160, 300
    known = constants(channels, 0, 255, 0, 255, p_scale=1 / 100_000)  # every probability is clamped to 255
    q, k, v = (torch.full((1, n, channels), code, dtype=torch.uint8) for n, code in ((9, 255), (keys, 0), (keys, 0)))
    y = prepare_attention(known)(q, k, v, 1)
    assert torch.equal(y, torch.full_like(y, -255.0 * 255.0 * keys))


def test_one_key_far_ahead_takes_all() -> None:
    known = constants(8, 0, 0, 0, 0, p_scale=1 / 255)
    q = torch.full((1, 3, 8), 255, dtype=torch.uint8)
    k = torch.zeros(1, 40, 8, dtype=torch.uint8)
    k[:, 17] = 255
    found = codes_of_probabilities(replace(known, scale=10.0), q, k, 1)
    assert torch.equal(found, torch.nn.functional.one_hot(torch.tensor(17), 40).expand(1, 1, 3, 40) * 255.0)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86")
@pytest.mark.parametrize("march", ["x86-64", "haswell"])
def test_the_instruction_set_changes_no_bit(march: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = constants(40, 118, 119, 0, 134, p_scale=1 / 900)
    q, k, v = random_codes((2, 33, 120), 0), random_codes((2, 77, 120), 1), random_codes((2, 77, 120), 2)
    here = prepare_attention(known)(q, k, v, 3)
    monkeypatch.setattr(native, "FLAGS", tuple(f"-march={march}" if "march" in f else f for f in native.FLAGS))
    native.library.cache_clear()
    try:
        assert torch.equal(prepare_attention(known)(q, k, v, 3), here)
    finally:
        native.library.cache_clear()


def test_the_number_of_threads_changes_no_bit(threads: Callable[[int], None]) -> None:
    known = constants(32, 118, 119, 0, 134, p_scale=1 / 900)
    q, k, v = (random_codes((2, 200, 96), seed) for seed in range(3))
    outputs = []
    for count in (1, 2, 3):
        threads(count)
        outputs.append(prepare_attention(known)(q, k, v, 3))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_what_cannot_be_done_is_refused() -> None:
    known = constants(8, 0, 0, 0, 0, p_scale=1 / 255)
    with pytest.raises(KernelError, match=r"attention: .* a positive scale, got scale=0"):
        prepare_attention(replace(known, scale=0.0))
