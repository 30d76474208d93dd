"""Codes of 2 to 8 bits, side by side in bytes.

The flattened codes are one little-endian bit stream: code i occupies the bits [i*bits, (i+1)*bits), bit k of the
stream is bit k % 8 of byte k // 8. So 8 bits are plain bytes and 4 bits put the even code in the low nibble. Codes
are stored offset binary, code - quant_min, which makes signed and unsigned grids look alike. Unused bits of the last
byte are 0, so equal codes give equal files.

Eight codes fill exactly `bits` bytes; such a run travels through one int64 word (at most 64 bits), which is all the
vectorisation that is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Integer, UInt8
from torch import Tensor

from mezzotint.errors import ArtifactError, BitsError
from mezzotint.grid.spec import MAX_BITS, MIN_BITS

_RUN = 8  # codes a word; _RUN codes of `bits` bits are `bits` bytes


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits occupy: ceil(count * bits / 8)."""
    _check_bits(bits)
    return -(-count * bits // 8)


def pack(codes: Integer[Tensor, "..."], bits: int) -> UInt8[Tensor, " bytes"]:
    """`codes` (int8: a signed grid, uint8: an unsigned one) as a bit stream, ceil(numel * bits / 8) bytes.

    Raises:
        BitsError: `bits` outside 2..8, another dtype, or a code outside the grid of that many bits.
    """
    offset = _offset(bits, signed=_is_signed(codes))
    stored = codes.reshape(-1).to(torch.int16) + offset
    _check_range(stored, bits, offset)
    words = _pad(stored, _RUN).reshape(-1, _RUN)
    word = torch.zeros(words.shape[0], dtype=torch.int64, device=codes.device)
    for i in range(_RUN):
        word |= words[:, i].to(torch.int64) << (bits * i)
    stream = torch.stack([(word >> (8 * j)).bitwise_and_(0xFF).to(torch.uint8) for j in range(bits)], dim=1)
    return stream.reshape(-1)[: packed_bytes(codes.numel(), bits)].clone()


def unpack(packed: Integer[Tensor, " bytes"], bits: int, shape: Sequence[int], signed: bool) -> Integer[Tensor, "..."]:
    """The codes that `pack` was given: int8 if `signed`, else uint8, in `shape`.

    Raises:
        BitsError: `bits` outside 2..8.
        ArtifactError: `packed` is not a run of uint8 as long as that many codes need.
    """
    offset, count = _offset(bits, signed), math.prod(shape)
    expected = packed_bytes(count, bits)
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != expected:
        raise ArtifactError(
            f"{count} packed codes of {bits} bits are {expected} bytes of torch.uint8, "
            f"got {packed.dtype} {list(packed.shape)}; the saved model is truncated or was saved with other bits"
        )
    runs = _pad(packed, bits).reshape(-1, bits)
    word = torch.zeros(runs.shape[0], dtype=torch.int64, device=packed.device)
    for j in range(bits):
        word |= runs[:, j].to(torch.int64) << (8 * j)
    mask = (1 << bits) - 1
    dtype = torch.int8 if signed else torch.uint8
    codes = [((word >> (bits * i)).bitwise_and_(mask) - offset).to(dtype) for i in range(_RUN)]
    return torch.stack(codes, dim=1).reshape(-1)[:count].reshape(tuple(shape)).clone()


def _check_bits(bits: int) -> None:
    if not MIN_BITS <= bits <= MAX_BITS:
        raise BitsError(f"codes can be packed in {MIN_BITS} to {MAX_BITS} bits, got {bits}")


def _is_signed(codes: Tensor) -> bool:
    if codes.dtype not in (torch.int8, torch.uint8):
        raise BitsError(f"codes to pack must be torch.int8 (signed grid) or torch.uint8 (unsigned), got {codes.dtype}")
    return codes.dtype == torch.int8


def _offset(bits: int, signed: bool) -> int:
    """-quant_min of the grid: what turns a code into the unsigned number that is stored."""
    _check_bits(bits)
    return 1 << (bits - 1) if signed else 0


def _check_range(stored: Tensor, bits: int, offset: int) -> None:
    if stored.numel() == 0:
        return
    low, high = (int(v) for v in stored.aminmax())
    if low < 0 or high >= 1 << bits:
        raise BitsError(
            f"codes to pack in {bits} bits must lie in [{-offset}, {(1 << bits) - 1 - offset}], "
            f"got [{low - offset}, {high - offset}]"
        )


def _pad(stream: Tensor, multiple: int) -> Tensor:
    """`stream` [n] followed by zeros up to a multiple of `multiple`."""
    return torch.nn.functional.pad(stream, (0, -stream.numel() % multiple))
