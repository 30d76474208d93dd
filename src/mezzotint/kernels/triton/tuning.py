"""Which tiles a product may run with, in the order of a model of their time.

    Problem   what a product is, as far as its speed depends on it; `key` is its name in a table
    Config    how it runs: kernel, tile, warps, stages, splits of K

The order of a look-up: the table shipped for the device, the user's cache (`tables`), the model's best; see `choice`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

Kind = Literal["float", "codes", "geglu"]


@dataclass(frozen=True)
class Problem:
    """One product: a picture [batch, height, width, channels] and its window; a linear one is [1, 1, M, K]."""

    batch: int
    height: int
    width: int
    channels: int
    outputs: int
    out_height: int
    out_width: int
    kernel: int
    stride: int
    padding: tuple[int, int, int, int]
    bits: int
    groups: tuple[int, ...]
    kind: Kind
    item_bytes: int  # of an element of the result
    residual: bool

    @property
    def rows(self) -> int:
        return self.batch * self.out_height * self.out_width

    @property
    def edges(self) -> bool:
        return any(self.padding)

    @property
    def key(self) -> str:
        """Name in a table of configurations."""
        shape = f"{self.rows}x{self.outputs}x{self.channels}"
        window = f"k{self.kernel}s{self.stride}w{self.width}" if self.kernel > 1 or self.stride > 1 else "linear"
        extra = f"{f'g{self.groups[0]}' if self.groups else ''}{'r' if self.residual else ''}"
        return f"{shape} {window} w{self.bits} {self.kind}{self.item_bytes}{extra}"


@dataclass(frozen=True)
class Config:
    """How a product runs.

    Attributes:
        persistent: one program a multiprocessor, which goes from tile to tile.
        turned: sums are [outputs, positions], with the weights as wgmma's left operand; the only way for 4 bits, which
            become int8 in the registers that wgmma takes.
    """

    kernel: Literal["tiled", "gathered"]
    bm: int
    bn: int
    bk: int
    bn2: int = 0
    warps: int = 8
    stages: int = 3
    splits: int = 1
    band: int = 8
    persistent: bool = False
    turned: bool = False

    @property
    def name(self) -> str:
        columns = f"{self.bn}+{self.bn2}" if self.bn2 else f"{self.bn}"
        extra = f"{' /' + str(self.splits) if self.splits > 1 else ''}{' p' if self.persistent else ''}"
        extra += " t" if self.turned else ""
        return f"{self.kernel} {self.bm}x{columns}x{self.bk} w{self.warps} s{self.stages}{extra}"


_TILES = [  # bm, bn, bn2, warps
    (128, 256, 64, 8),
    (128, 256, 0, 8),
    (256, 128, 0, 8),
    (128, 128, 0, 8),
    (128, 128, 0, 4),
    (128, 64, 0, 4),
    (64, 128, 0, 4),
    (64, 256, 0, 4),
    (64, 256, 64, 4),
    (256, 64, 0, 8),
]
_FEW = [(32, 128, 0, 4), (16, 128, 0, 4)]  # turned only: wgmma's right side may be that narrow
SHARED = 232448  # bytes a block may have on sm_90
_RESERVED = 1024  # of every block
_SMALL = 1024  # barriers, and what keeps buffers aligned


def candidates(
    problem: Problem, multiprocessors: int = 132, *, tiled: bool = True, shared: int = SHARED
) -> list[Config]:
    """Configurations that can run `problem` in `shared` bytes a block, the model's best first."""
    found = []
    if tiled and refuses_tiled(problem) is None:
        found += _tiled(problem, shared)
    if not found:
        for bm, bn, warps in ((128, 128, 8), (128, 64, 4), (64, 64, 4), (64, 32, 4), (128, 16, 4)):
            found.append(Config("gathered", bm, bn, 64 if problem.channels >= 64 else 32, warps=warps, stages=3))
    fitting = [config for config in found if shared_bytes(problem, config) <= shared]
    split = [replace(c, splits=s) for c in fitting for s in _splits(problem, c, multiprocessors)]
    return sorted(
        (config for config in split if shared_bytes(problem, config) <= shared),
        key=lambda config: predicted(problem, config, multiprocessors),
    )


def _tiled(problem: Problem, shared: int) -> list[Config]:
    found = []
    for (bm, bn, bn2, warps), turned in product([*_TILES, *_FEW], (False, True)):
        if turned and bn < 16 * warps:  # two warps would share outputs, and residuals go astray
            continue
        if (problem.groups and (bn2 or bn == 256)) or (not turned and (problem.bits == 4 or bm < 64)):
            continue
        for bk in (64, 128):
            if bk == 64 and problem.channels % 128 == 0:
                continue
            base = Config("tiled", bm, bn, bk, bn2, warps, turned=turned)
            room = (shared + _RESERVED) // 2 - _RESERVED if warps == 4 else shared  # two blocks of four warps
            fitting = [s for s in range(2, 5 if bk == 128 and bm > 32 else 8)
                       if shared_bytes(problem, replace(base, stages=s)) <= room]  # fmt: skip
            if fitting:
                found.append(replace(base, stages=fitting[-1]))
                if problem.kernel == 1 and not bn2 and not problem.groups:
                    found.append(replace(found[-1], persistent=True))
    return found


def shared_bytes(problem: Problem, config: Config) -> int:
    """At most this much shared memory is what a block asks for; Triton's own number is known after compiling only.

    A ring of STAGES buffers, and what results leave from. The latter takes the place of the ring where `a` comes
    through registers (boxes of several rows of a picture), in a loop that is not persistent; else it stands beside.
    Boxes of 64 channels and several rows are also copied once.
    """
    outputs, item = config.bn + config.bn2, 4 if config.splits > 1 else problem.item_bytes
    unpacked = max(config.bn, config.bn2) * config.bk if problem.bits == 4 else 0
    ring = config.stages * config.bk * (config.bm + outputs * problem.bits // 8)
    if config.kernel == "gathered":
        return max(ring + unpacked, config.bm * config.bn * 4) + _RESERVED
    if config.turned:
        return _turned_bytes(problem, config)
    piece, halved = 128 if item == 1 else 64, 2 if problem.kind == "geglu" and config.splits == 1 else 1
    widths = {min(n, piece) for n in (config.bn, config.bn2) if n}  # boxes of one width share a buffer
    leaving = config.bm * sum(widths) * item // halved
    if problem.residual and config.splits == 1:
        arriving = 2 * config.bm * sum(widths)
        leaving = leaving + arriving if config.persistent else max(leaving, arriving)
    copied = 0
    if spatial_tile(problem, config.bm)[2] < config.bm:  # `a` goes through registers
        copied = config.bm * config.bk if config.bk < 128 else 0
        if not config.persistent and config.splits == 1:
            leaving = max(0, leaving - ring)
    return ring + unpacked + copied + leaving + _SMALL


def _turned_bytes(problem: Problem, config: Config) -> int:
    """The ring of codes, that of weights (packed ones leave it a stage earlier), and what results leave from."""
    outputs, item = config.bn + config.bn2, 4 if config.splits > 1 else problem.item_bytes
    weights = (config.stages - (problem.bits == 4)) * outputs * config.bk * problem.bits // 8
    halved = 2 if problem.kind == "geglu" and config.splits == 1 else 1
    piece = piece_of(problem, config, item)
    widths = sum({n for n in (config.bn, config.bn2) if n}) // halved  # boxes of one width share a buffer
    leaving = min(config.bm, piece) * widths * item
    if problem.residual and config.splits == 1:
        arriving = 2 * min(config.bm, piece) * widths
        leaving = leaving + arriving if config.persistent else max(leaving, arriving)
    barriers = _SMALL + 512 * config.persistent
    return config.stages * config.bm * config.bk + weights + leaving + barriers


def spatial_tile(problem: Problem, bm: int) -> tuple[int, int, int]:
    """(images, rows, columns), powers of two with product `bm`, that cover the result with little waste."""
    p = problem
    if p.out_height == p.batch == 1:
        return 1, 1, bm
    width, height = 1 << (p.out_width - 1).bit_length(), 1 << (p.out_height - 1).bit_length()
    tw = min(bm, 256, 1 << (p.out_width.bit_length() - 1) if p.out_width % 8 == 0 else width)
    while p.out_width % tw and tw > 8:  # 24 columns: three tiles of 8, not one of 32
        tw //= 2
    th = min(bm // tw, height)
    return bm // (tw * th), th, tw


def piece_of(problem: Problem, config: Config, item_bytes: int) -> int:
    """Outputs (turned: positions) that the epilogue of a tile writes at once: fewer registers, less shared memory."""
    if config.turned:
        return 64 if problem.edges or problem.groups or item_bytes == 4 else 128
    return 128 if item_bytes == 1 else 64


def part_of(tile: tuple[int, int, int]) -> tuple[int, int, int]:
    """Half of a tile of (images, rows, columns) that has more than one position."""
    tb, th, tw = tile
    if tb > 1:
        return tb // 2, th, tw
    return (tb, th // 2, tw) if th > 1 else (tb, th, tw // 2)


def blocks_together(problem: Problem, config: Config) -> int:
    """Blocks that share a multiprocessor of a Hopper: two of four warps if they fit, and one computes while the other
    waits or writes."""
    fits = 2 * (shared_bytes(problem, config) + _RESERVED) <= SHARED + _RESERVED
    return 2 if config.warps == 4 and fits else 1


def refuses(problem: Problem, config: Config) -> str | None:
    """Why the kernel of `config` cannot compute `problem`, or None; a key in a table does not say all of a problem."""
    return None if config.kernel == "gathered" else refuses_tiled(problem)


def refuses_tiled(problem: Problem) -> str | None:
    """Why the copy engine cannot fetch the tiles of `problem`, or None."""
    if problem.channels % 16 or any(size % 16 for size in problem.groups):
        return f"its rows are multiples of 16 bytes, got {problem.channels} channels in groups {problem.groups}"
    width = problem.outputs // 2 if problem.kind == "geglu" else problem.outputs
    if width * problem.item_bytes % 16 or problem.outputs % 4:
        return f"its rows are multiples of 16 bytes, got {problem.outputs} outputs"
    if problem.stride == 2 and (problem.height % 2 or problem.width % 2):
        return f"stride 2 needs even pictures, got {problem.height} x {problem.width}"
    if problem.edges and min(problem.height, problem.width) < 2:
        return "pictures one row high lose two rows of a window"
    return None


def predicted(problem: Problem, config: Config, multiprocessors: int) -> float:
    """Cycles that a launch takes, roughly: full tiles on a whole number of waves, an epilogue, and splits' traffic.

    The constants were fitted to 1,018 configurations of Stable Diffusion's products on an H100, for order more than for
    cycles: over its 118 products, first choices take 2 % more than the best.
    """
    bn = config.bn + config.bn2
    tiles = math.ceil(problem.rows / config.bm) * math.ceil(problem.outputs / bn) * config.splits
    together = blocks_together(problem, config)
    steps = math.ceil(problem.kernel**2 * math.ceil(problem.channels / config.bk) / config.splits)
    intensity = 1.0 / (1.0 + 40.0 * (1 / config.bm + 1 / bn))  # operations a byte of shared memory
    rate = {"tiled": 13000, "gathered": 6500}[config.kernel] * intensity
    # Triton 3.6 waits for every int8 wgmma before the next step, which a second block hides in part
    wait = 700 if together == 1 else 200
    wait += 400 if config.stages == 2 else 0  # for memory: one box ahead is too few
    multiply = together * steps * (2 * config.bm * bn * config.bk / rate + wait)
    cost = {"tiled": 0.095, "gathered": 0.24}[config.kernel]
    cost *= {"geglu": 1.4, "codes": 1.15, "float": 1.0}[problem.kind]
    cost *= 1.4 if problem.residual and config.splits == 1 else 1.0
    epilogue = together * config.bm * bn * cost
    start = 560 if config.persistent else 2400
    alone = multiply + epilogue + start
    if together == 2:
        alone = max(multiply, epilogue) + 0.3 * min(multiply, epilogue) + start
    waves = math.ceil(tiles / (multiprocessors * together))
    added = 3900 + problem.rows * problem.outputs * 8 * config.splits / 2200 if config.splits > 1 else 0
    return waves * alone + added


def _splits(problem: Problem, config: Config, multiprocessors: int) -> list[int]:
    tiles = math.ceil(problem.rows / config.bm) * math.ceil(problem.outputs / (config.bn + config.bn2))
    steps = problem.kernel**2 * math.ceil(problem.channels / config.bk)
    if problem.groups or tiles * 2 > multiprocessors:
        return [1]
    return [s for s in (1, 2, 3, 4, 6, 8, 12, 16) if s == 1 or (steps >= 4 * s and tiles * s <= 2 * multiprocessors)]
