"""Which way a GroupNorm runs: a model of its time, fitted to measurements on an H100 (132 multiprocessors).

Neither way is limited by memory at the sizes of UNets. Code that holds all pixels of a block of groups in registers
(`NormConfig.whole`) has no loops: each warp reads its two thousand instructions once, and a multiprocessor works
through its programs one after another, as if it had only one at a time. So a program costs, in microseconds,

    c = (I elements + 32 warps F) (0.2 + 0.0006 columns) / 24000                                                   (1)

with I = 24 + 14 / v**2 instructions for each element of a thread, v the elements that its channels let it load at once,
and F, about 350 + 130 log2(groups), others. Programs of few elements cost F and little else: that is why many small
ones lose. Padding (powers of two of pixels and of channels) counts as elements. A warp alone takes 1.15 ns for each of
its instructions. Memory limits from below: the bytes, and what the second cache moves, which are whole sectors.

Sums first and a second reading (`whole` off) cost, measured for 1.3 to 63 million elements,

    t = 14 us + 2 ps an element                                                                                    (2)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_SECTOR = 32  # bytes: what the second cache moves at least
_MOST_ELEMENTS = 64 * 512  # of a program: 64 registers a thread, 16 warps
_LAUNCH = 2.4  # microseconds: a launch, and the way of a program to memory and back
_CACHE_RATE, _MEMORY_RATE = 4.0e6, 2.4e6  # bytes a microsecond
_MANY = 1056  # programs of four warps that fit on the GPU at once
_RUNS = 64  # at most; the second launch adds them up


@dataclass(frozen=True)
class NormConfig:
    """How a GroupNorm runs: `whole` in one launch, else sums of `runs` of pixels first."""

    whole: bool
    groups: int  # of one program
    rows: int  # pixels a program loads at a time; all of them if `whole`
    runs: int = 1
    warps: int = 4

    @property
    def name(self) -> str:
        return f"{'one' if self.whole else 'two'} g{self.groups} r{self.rows} n{self.runs} w{self.warps}"


def norm_configs(
    batch: int, rows: int, channels: int, groups: int, *, units: int = 132, entry: bool = False
) -> list[NormConfig]:
    """Ways to run a GroupNorm of [batch, rows, channels], the model's best first.

    Args:
        units: multiprocessors.
        entry: codes of what is normed are written too.
    """
    width, found = channels // groups, []
    for together in _powers_of_2(groups):
        elements = _padded(rows) * _padded(width * together)
        if groups % together or elements > _MOST_ELEMENTS:
            continue
        for each in (64, 32, 16):  # elements of a thread
            config = NormConfig(True, together, _padded(rows), warps=max(1, min(16, elements // (32 * each))))
            if config not in found:
                found.append(config)
    found += _two_launches(batch, rows, width, groups)
    order = {config: place for place, config in enumerate(found)}

    def key(config: NormConfig) -> tuple[float, int]:
        return predicted(config, batch, rows, channels, groups, units=units, entry=entry), order[config]

    return sorted(found, key=key)


def predicted(
    config: NormConfig, batch: int, rows: int, channels: int, groups: int, *, units: int = 132, entry: bool = False
) -> float:
    """Microseconds, by equations (1) and (2)."""
    written = 2 if entry else 1
    if not config.whole:
        return 14.0 + 2.0e-6 * batch * rows * channels * 132 / units
    columns = channels // groups * config.groups
    padded, blocks = _padded(columns), groups // config.groups
    fixed = 350 + 130 * math.log2(config.groups)
    each = 24 + 14 / math.gcd(columns, 8) ** 2 + 8 * entry
    of_warp = each * config.rows * padded / (32 * config.warps) + fixed  # instructions
    cost = 32 * config.warps * of_warp * (0.2 + 0.0006 * padded) / 24e3
    compute = max(-(-batch * blocks // units) * cost, 1.15e-3 * of_warp)
    sectors = sum(
        (size * (block + 1) * columns - 1) // _SECTOR - size * block * columns // _SECTOR + 1
        for block in range(blocks)
        for size in (2, *[1] * written)
    )
    moved = batch * rows * max(sectors * _SECTOR / _CACHE_RATE, channels * (2 + written) / _MEMORY_RATE)
    return _LAUNCH + max(compute, moved)


def _two_launches(batch: int, rows: int, width: int, groups: int) -> list[NormConfig]:
    """With few programs more elements at a time keep memory busy; with many, fewer leave room for all of them."""
    found = []
    for columns, elements in ((128, 2048), (128, 4096), (512, 4096)):
        together = _padded(groups)
        while together > 1 and together * width > columns:
            together //= 2
        block, blocks = max(1, elements // _padded(together * width)), -(-groups // together)
        runs = max(1, min(_RUNS, -(-rows // block), _MANY // (batch * blocks)))
        found.append(NormConfig(False, together, block, runs))
    return found if batch * rows * width * groups >= 1 << 23 else found[::-1]


def _padded(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _powers_of_2(most: int) -> list[int]:
    return [1 << power for power in range(most.bit_length())]
