"""Which tile a product runs with: a table for known shapes, a model of the time for others, a tuner.

    Problem   what a product is, as far as its speed depends on it; `key` is its name in a table
    Config    how it runs: kernel, tile, warps, stages, splits of K

The order of a look-up: the table shipped for the device, the user's cache, the model's best. `tune` measures.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

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
        extra = f"{'g' if self.groups else ''}{'r' if self.residual else ''}"
        return f"{shape} {window} w{self.bits} {self.kind}{self.item_bytes}{extra}"


@dataclass(frozen=True)
class Config:
    """How a product runs. `persistent`: one program a multiprocessor, which goes from tile to tile."""

    kernel: Literal["specialized", "tiled", "gathered"]
    bm: int
    bn: int
    bk: int
    bn2: int = 0
    warps: int = 8
    stages: int = 3
    splits: int = 1
    band: int = 8
    persistent: bool = False

    @property
    def name(self) -> str:
        columns = f"{self.bn}+{self.bn2}" if self.bn2 else f"{self.bn}"
        extra = f"{' /' + str(self.splits) if self.splits > 1 else ''}{' p' if self.persistent else ''}"
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
SHARED = 232448 - 2048  # bytes a block may have on sm_90


def candidates(
    problem: Problem, multiprocessors: int = 132, *, tiled: bool = True, specialized: bool = True
) -> list[Config]:
    """Configurations that can run `problem`, the model's best first."""
    found = []
    if tiled and specialized and refuses_specialized(problem) is None:
        for base in _specialized(problem):
            found += [replace(base, splits=s) for s in _splits(problem, base, multiprocessors)]
    if tiled and refuses_tiled(problem) is None:
        for bm, bn, bn2, warps in _TILES:
            if (bn2 or bn == 256) and (problem.groups or problem.bits == 4):
                continue
            for bk in (64, 128):
                room = SHARED // (2 if warps == 4 else 1)  # two blocks of four warps share a multiprocessor
                staged = 256 * bm if problem.residual or problem.kind != "float" else 0  # what an epilogue needs
                stages = min(7, (room - staged) // ((bm + bn + bn2) * bk))
                if stages < 2 or (bk == 64 and problem.channels % 128 == 0):
                    continue
                base = Config("tiled", bm, bn, bk, bn2, warps, min(stages, 4 if bk == 128 else 7))
                found += [replace(base, splits=s) for s in _splits(problem, base, multiprocessors)]
    if not found:
        for bm, bn, warps in ((128, 128, 8), (128, 64, 4), (64, 64, 4), (64, 32, 4), (128, 16, 4)):
            base = Config("gathered", bm, bn, 64 if problem.channels >= 64 else 32, warps=warps, stages=3)
            found += [replace(base, splits=s) for s in _splits(problem, base, multiprocessors)]
    return sorted(found, key=lambda config: predicted(problem, config, multiprocessors))


def _specialized(problem: Problem) -> list[Config]:
    found = []
    for bn, bn2 in ((256, 64), (256, 0), (128, 64), (128, 0), (64, 0)):
        for bk in (128, 64):
            if bk == 64 and problem.channels % 128 == 0:
                continue
            pieces = (bn + bn2) // 64 if problem.residual else 2
            room = SHARED - 2 * pieces * 64 * 64 * problem.item_bytes - 16 * bk
            stages = min(8, room // ((128 + (bn + bn2) * (8 if problem.bits == 8 else 12) // 8) * bk))
            if stages >= 2:
                found.append(Config("specialized", 128, bn, bk, bn2, 4, stages, persistent=True))
    return found


def refuses_specialized(problem: Problem) -> str | None:
    """Why no warps can be specialized on `problem`, or None."""
    if problem.groups:
        return f"one group of input channels, got {problem.groups}"
    return refuses_tiled(problem)


def refuses_tiled(problem: Problem) -> str | None:
    """Why the copy engine cannot fetch the tiles of `problem`, or None."""
    if problem.channels % 16 or any(size % (16 if problem.bits == 8 else 32) for size in problem.groups):
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
    """Cycles that a launch takes, roughly: full tiles on a whole number of waves, an epilogue, and splits' traffic."""
    bn = config.bn + config.bn2
    tiles = math.ceil(problem.rows / config.bm) * math.ceil(problem.outputs / bn) * config.splits
    together = multiprocessors * (
        2 if config.kernel != "specialized" and config.warps == 4 and config.bm * bn <= 128 * 128 else 1
    )
    steps = math.ceil(problem.kernel**2 * math.ceil(problem.channels / config.bk) / config.splits)
    intensity = 1.0 / (1.0 + 40.0 * (1 / config.bm + 1 / bn))  # operations a byte of shared memory
    rate = (
        {"specialized": 11000, "tiled": 9000, "gathered": 4500}[config.kernel] * intensity * multiprocessors / together
    )
    product = steps * 2 * config.bm * bn * config.bk / rate
    cost = {"specialized": 0.05, "tiled": 0.12, "gathered": 0.3}[config.kernel]
    epilogue = config.bm * bn * cost * together / multiprocessors
    waves = math.ceil(tiles / together)
    added = 4000 + problem.rows * problem.outputs * 8 * config.splits / 2000 if config.splits > 1 else 0
    return waves * (product + epilogue + 1500) + added


def _splits(problem: Problem, config: Config, multiprocessors: int) -> list[int]:
    tiles = math.ceil(problem.rows / config.bm) * math.ceil(problem.outputs / (config.bn + config.bn2))
    steps = problem.kernel**2 * math.ceil(problem.channels / config.bk)
    if problem.groups or tiles * 2 > multiprocessors:
        return [1]
    return [s for s in (1, 2, 3, 4, 6, 8, 12, 16) if s == 1 or (steps >= 4 * s and tiles * s <= 2 * multiprocessors)]


@cache
def shipped(device: str) -> dict[str, Config]:
    """The table that is installed with the package for GPUs of this name; empty where there is none."""
    source = resources.files("mezzotint.kernels.triton").joinpath("configurations.json")
    tables: dict[str, dict[str, dict[str, Any]]] = json.loads(source.read_text()) if source.is_file() else {}
    return {key: Config(**fields) for key, fields in tables.get(device, {}).items()}


@cache
def cached(device: str) -> dict[str, Config]:
    """What was tuned on this machine before; see `remember`."""
    path = cache_path(device)
    return {k: Config(**v) for k, v in json.loads(path.read_text()).items()} if path.is_file() else {}


def cache_path(device: str) -> Path:
    """The file of tuned configurations: $MEZZOTINT_CACHE, or ~/.cache/mezzotint."""
    root = os.environ.get("MEZZOTINT_CACHE") or Path.home() / ".cache" / "mezzotint"
    return Path(root) / f"triton-{''.join(c if c.isalnum() else '-' for c in device)}.json"


def remember(device: str, key: str, config: Config) -> None:
    """Adds a tuned configuration to the cache, in memory and in its file."""
    table = cached(device)
    table[key] = config
    path = cache_path(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps({k: asdict(v) for k, v in sorted(table.items())}, indent=1))
    draft.replace(path)
