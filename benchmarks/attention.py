"""Attention on this GPU three ways: torch's own, ours in bfloat16, ours on int8 codes. Which is the default, and why?

    python benchmarks/attention.py --json attention.json --seconds 40

    torch NAME         one backend of scaled_dot_product_attention, bfloat16 in and out
    bf16               what a network runs: torch's or ours (`attention.FEW_KEYS`), its result on a grid
    bf16 ours          for few keys, by tile (queries, warps, stages): which belongs in `flash.tile_of`
    int8 of floats     the same with both products of codes, q, k and v quantized on the way
    int8 of codes      q, k and v are codes already, from the epilogues of their products
    keys made ready    that part of `int8 of floats` which is done once, not for every block of queries

Shapes are those of Stable Diffusion v1 (8 heads); q, k and v are parts of one product where they would be. Tiles are
queries x keys, warps, stages; first the one that `launch_attention.tile_of` names. Errors are those of the first
image, relative, against attention in float32; grids of q, k, probabilities and v are in them for int8. `codes off`:
share of the result's codes that differ from the exact integer model, and by how many at most.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mezzotint.gpu.compiling import compile_kernels
from mezzotint.gpu.timing import replayed_microseconds
from mezzotint.kernels.triton import codes_s8, flash
from mezzotint.kernels.triton.attention import FEW_KEYS, flash_attention, flash_attention_codes
from mezzotint.kernels.triton.int_attention import Grids, exact_int_attention_codes, multipliers
from mezzotint.kernels.triton.launch_attention import IntTile, attend, prepare, tile_of

HEADS = 8
SHAPES = (  # batch, queries, keys, channels of a head
    (16, 4096, 4096, 40),
    (16, 4096, 77, 40),
    (16, 1024, 1024, 80),
    (16, 256, 256, 160),
    (2, 4096, 4096, 40),
    (2, 4096, 77, 40),
    (2, 1024, 1024, 80),
    (2, 256, 256, 160),
)
TILES = {
    (4096, 40): (IntTile(128, 64, 8, 3), IntTile(64, 128, 4, 3), IntTile(64, 64, 4, 3), IntTile(128, 128, 8, 2)),
    (77, 40): (IntTile(64, 128, 4, 1), IntTile(128, 32, 8, 2)),
    (1024, 80): (IntTile(128, 128, 8, 2), IntTile(64, 64, 4, 3), IntTile(64, 128, 4, 2)),
    (256, 160): (IntTile(128, 256, 8, 1), IntTile(64, 64, 4, 2), IntTile(128, 64, 8, 2)),
}
FLASH_TILES = [flash.Tile(rows, warps, stages) for rows, warps in ((64, 4), (128, 8), (128, 4)) for stages in (1, 2, 3)]
BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
STEP = 6 / 255  # of q, k and v, which have unit variance
OUT_SPREAD = 5 / 127  # of the result's grid, in its standard deviations
SHARE = 0.02  # of the result's codes that may be off


class Case:
    """q, k and v of a shape as floats and codes, their grids, and what must come out."""

    def __init__(self, batch: int, queries: int, keys: int, head: int) -> None:
        self.shape = dict(zip(("batch", "queries", "keys", "head"), (batch, queries, keys, head), strict=True))
        self.tiles = (tile_of(head, queries, keys), *TILES[keys, head])
        self.scale, c = head**-0.5, HEADS * head
        if queries == keys:
            wide = torch.randn(batch, queries, 3 * c, device="cuda", dtype=torch.bfloat16)
            self.floats = [wide[..., start : start + c] for start in (0, c, 2 * c)]
        else:
            wide = torch.randn(batch, keys, 4 * c, device="cuda", dtype=torch.bfloat16)
            q = torch.randn(batch, queries, c, device="cuda", dtype=torch.bfloat16)
            self.floats = [q, wide[..., c : 2 * c], wide[..., 2 * c : 3 * c]]
        q, k, _ = apart([x[:1] for x in self.floats])
        largest = max(float(((q[:, h] @ k[:, h].mT).float() * self.scale).softmax(-1).max()) for h in range(HEADS))
        self.grids = Grids((STEP, 121, 255), (STEP, 134, 255), (largest / 255, 0, 255), (STEP, 126, 255))
        self.codes = [codes_s8(x, *grid) for x, grid in zip(self.floats, self.own_grids, strict=True)]
        first = apart([x[:1].float() for x in self.floats])
        self.expected = F.scaled_dot_product_attention(*first, scale=self.scale).transpose(1, 2).flatten(2)
        self.out_grid = (float(self.expected.std()) * OUT_SPREAD, 128, 255)

    @property
    def own_grids(self) -> tuple[Any, ...]:
        """Of q, k and v."""
        return self.grids.q, self.grids.k, self.grids.v

    def int8(self, given: list[Tensor], tile: IntTile) -> Tensor:
        qk, pv = multipliers(self.grids.arguments()[0])
        ready = prepare(*given[1:], HEADS, self.grids, tile)
        return attend(given[0], ready, HEADS, qk * self.scale, self.grids, pv, torch.int8, self.out_grid, tile)

    @cached_property
    def exact(self) -> Tensor:
        """Codes of the first image's result in the integer model."""
        first = [x[:1] for x in self.codes]
        return exact_int_attention_codes(*first, HEADS, self.scale, *self.grids.arguments(), *self.out_grid)

    def calls(self) -> dict[str, Callable[[], Tensor]]:
        """Ways to codes of the result, by name."""
        found: dict[str, Callable[[], Any]] = {
            "bf16": partial(flash_attention_codes, *self.floats, HEADS, self.scale, *self.out_grid),
            "bf16, result in bf16": partial(flash_attention, *self.floats, HEADS, self.scale),
            "keys made ready": partial(prepare, *self.floats[1:], HEADS, self.grids, self.tiles[0]),
        }
        q, k, v = self.floats
        for own in FLASH_TILES if k.shape[1] <= FEW_KEYS else ():
            found[f"bf16 ours {own.queries} w{own.warps} s{own.stages}"] = partial(
                flash.attend, q, k, v, HEADS, self.scale, self.out_grid, tile=own
            )
        for tile in self.tiles:
            name = f"{tile.queries}x{tile.keys} w{tile.warps} s{tile.stages}"
            found[f"int8 of floats {name}"] = partial(self.int8, self.floats, tile)
            found[f"int8 of codes  {name}"] = partial(self.int8, self.codes, tile)
        return found

    def judged(self, name: str, result: Any) -> dict[str, Any]:
        """Error of the first image and, of codes, how many are not the exact integer model's."""
        if not isinstance(result, Tensor):
            return {}
        y = result[:1]
        step, zero_point, _ = self.out_grid
        values = (y.float() + 128 - zero_point) * step if y.dtype == torch.int8 else y.float()
        judged: dict[str, Any] = {"error": float((values - self.expected).norm() / self.expected.norm())}
        if name.startswith("int8"):
            off = (y.int() - self.exact.int()).abs()
            judged |= {"codes off": float((off > 0).float().mean()), "farthest": int(off.max())}
            judged["wrong"] = judged["codes off"] > SHARE
        return judged


def apart(rows: list[Tensor]) -> list[Tensor]:
    """[B, N, C] as [B, heads, N, d]."""
    return [x.unflatten(2, (HEADS, -1)).transpose(1, 2) for x in rows]


def in_torch(backend: SDPBackend, split: list[Tensor]) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


def tried(call: Callable[[], Any]) -> dict[str, Any]:
    """Median microseconds in a CUDA graph of many calls, or why there are none."""
    try:
        return {"us": statistics.median(replayed_microseconds(call) for _ in range(3))}
    except (RuntimeError, triton.CompilationError, triton.runtime.errors.OutOfResources) as problem:
        return {"us": math.inf, "problem": str(problem)[:100]}


@torch.no_grad()
def measure(case: Case, until: float) -> list[dict[str, Any]]:
    """Rows of all ways that there is time for."""
    split, rows = apart(case.floats), []
    calls: dict[str, Callable[[], Any]] = {
        f"torch {backend.name}": partial(in_torch, backend, split) for backend in BACKENDS
    }
    for name, call in (calls | case.calls()).items():
        if time.perf_counter() > until:
            break
        row = {**case.shape, "name": name, **tried(call)}
        if "problem" not in row:
            row |= case.judged(name, call())
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    print("batch {batch}, {queries} queries, {keys} keys, heads of {head}".format(**rows[0]))
    for row in sorted(rows, key=lambda row: row["us"]):
        words = [f"error {row['error']:.2%}"] if "error" in row else [row.get("problem", "")]
        if "codes off" in row:
            words.append(f"codes off {row['codes off']:.3%} by up to {row['farthest']}{' WRONG' * row['wrong']}")
        print(f"    {row['us']:9.1f} us  {row['name']:32} {', '.join(words)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all rows here")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this time")
    options = parser.parse_args()
    until, rows = time.perf_counter() + options.seconds, []
    torch.manual_seed(0)
    cases = [Case(*shape) for shape in SHAPES]
    compile_kernels(lambda: [call() for case in cases for name, call in case.calls().items()])
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; compiled, {until - time.perf_counter():.0f} s left"
    )
    for case in cases:
        if time.perf_counter() < until:
            found = measure(case, until)
            rows += found
            show(found)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if any(row.get("wrong") for row in rows):
        raise SystemExit("codes that are not the integer model's")


if __name__ == "__main__":
    main()
