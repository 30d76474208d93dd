"""Reading a bit setting such as `w4a8`."""

from __future__ import annotations

import re
from typing import NamedTuple

from mezzotint.errors import BitsError
from mezzotint.grid.spec import MAX_BITS, MIN_BITS

FLOAT_BITS = 32


class Bits(NamedTuple):
    """Bits of weights and activations; `activation` is None where activations stay float (`a32`)."""

    weight: int
    activation: int | None

    def __str__(self) -> str:
        return f"w{self.weight}a{self.activation or FLOAT_BITS}"


def parse_bits(text: str) -> Bits:
    """`w4a8` -> Bits(4, 8); `w4a32` -> Bits(4, None). Raises BitsError for anything else."""
    match = re.fullmatch(r"w(\d+)a(\d+)", text.strip().lower())
    if match is None:
        raise BitsError(f"bits {text!r} cannot be read; write weights and activations as in w4a8, w8a8 or w4a32")
    weight, activation = int(match[1]), int(match[2])
    if not MIN_BITS <= weight <= MAX_BITS:
        raise BitsError(f"bits {text!r}: weights take {MIN_BITS} to {MAX_BITS} bits, got {weight}")
    if activation != FLOAT_BITS and not MIN_BITS <= activation <= MAX_BITS:
        raise BitsError(
            f"bits {text!r}: activations take {MIN_BITS} to {MAX_BITS} bits, or 32 for float; got {activation}"
        )
    return Bits(weight, None if activation == FLOAT_BITS else activation)
