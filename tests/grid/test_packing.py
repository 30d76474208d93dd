"""Packed codes: the way there and back is the identity, the layout is the documented one, errors name the thing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mezzotint.errors import ArtifactError, BitsError
from mezzotint.grid.packing import pack, packed_bytes, unpack

SHAPES = st.lists(st.integers(0, 7), min_size=0, max_size=4).map(tuple)


def limits(bits: int, signed: bool) -> tuple[int, int]:
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def random_codes(shape: tuple[int, ...], bits: int, signed: bool, seed: int) -> torch.Tensor:
    low, high = limits(bits, signed)
    codes = torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed))
    return codes.to(torch.int8 if signed else torch.uint8)


@settings(deadline=None, max_examples=200)
@given(shape=SHAPES, bits=st.integers(2, 8), signed=st.booleans(), seed=st.integers(0, 2**16))
def test_unpack_of_pack_is_the_identity(shape: tuple[int, ...], bits: int, signed: bool, seed: int) -> None:
    codes = random_codes(shape, bits, signed, seed)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (math.ceil(codes.numel() * bits / 8),) == (packed_bytes(codes.numel(), bits),)
    back = unpack(packed, bits, shape, signed)
    assert back.dtype == codes.dtype
    assert torch.equal(back, codes)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [True, False])
def test_extreme_codes_survive(bits: int, signed: bool) -> None:
    low, high = limits(bits, signed)
    for pattern in ([low], [high], [low, high], [high, low, low]):
        codes = torch.tensor(pattern * 11, dtype=torch.int8 if signed else torch.uint8)
        assert torch.equal(unpack(pack(codes, bits), bits, codes.shape, signed), codes)


@settings(deadline=None, max_examples=100)
@given(bits=st.integers(2, 8), signed=st.booleans(), count=st.integers(1, 40), seed=st.integers(0, 2**16))
def test_the_stream_is_little_endian_offset_binary(bits: int, signed: bool, count: int, seed: int) -> None:
    codes = random_codes((count,), bits, signed, seed)
    offset = -limits(bits, signed)[0]
    number = sum((int(code) + offset) << (bits * i) for i, code in enumerate(codes))
    assert bytes(pack(codes, bits).tolist()) == number.to_bytes(packed_bytes(count, bits), "little")


def test_four_bits_put_the_first_code_in_the_low_nibble() -> None:
    assert pack(torch.tensor([0x3, 0xA, 0xF], dtype=torch.uint8), 4).tolist() == [0xA3, 0x0F]
    assert pack(torch.tensor([-8, 7], dtype=torch.int8), 4).tolist() == [0xF0]


def test_eight_bits_are_plain_bytes() -> None:
    codes = torch.arange(256).to(torch.uint8)
    assert torch.equal(pack(codes, 8), codes)


def test_transposed_codes_are_packed_in_logical_order() -> None:
    codes = random_codes((5, 7), 3, True, 0)
    assert torch.equal(pack(codes.t(), 3), pack(codes.t().contiguous(), 3))


def test_errors_name_the_thing() -> None:
    with pytest.raises(BitsError, match="2 to 8 bits, got 9"):
        pack(torch.zeros(3, dtype=torch.uint8), 9)
    with pytest.raises(BitsError, match="2 to 8 bits, got 1"):
        unpack(torch.zeros(3, dtype=torch.uint8), 1, (24,), False)
    with pytest.raises(BitsError, match="torch.int8 .* got torch.int32"):
        pack(torch.zeros(3, dtype=torch.int32), 8)
    with pytest.raises(BitsError, match=r"4 bits must lie in \[-8, 7\], got \[-8, 8\]"):
        pack(torch.tensor([-8, 8], dtype=torch.int8), 4)
    with pytest.raises(BitsError, match=r"3 bits must lie in \[0, 7\], got \[8, 8\]"):
        pack(torch.tensor([8], dtype=torch.uint8), 3)
    with pytest.raises(BitsError, match=r"2 bits must lie in \[-2, 1\], got \[-3, 0\]"):
        pack(torch.tensor([-3, 0], dtype=torch.int8), 2)
    with pytest.raises(ArtifactError, match="24 packed codes of 3 bits are 9 bytes .* truncated"):
        unpack(torch.zeros(8, dtype=torch.uint8), 3, (4, 6), False)
