"""Tiles of the attention kernel on this GPU, against torch's own attention: which tile belongs in `flash.tile_of`.

    python benchmarks/attention.py --json attention.json --seconds 120

Shapes are those of Stable Diffusion v1 (8 heads). For each the fastest tiles and all backends of torch are printed,
with the largest error against float32.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mezzotint.gpu.compiling import compile_kernels
from mezzotint.gpu.timing import milliseconds
from mezzotint.kernels.triton import flash

HEADS = 8
SHAPES = (  # batch, queries, keys, channels of a head
    (16, 4096, 4096, 40),
    (16, 1024, 1024, 80),
    (16, 4096, 77, 40),
    (2, 4096, 4096, 40),
    (16, 256, 256, 160),
    (2, 1024, 1024, 80),
)
GRID = (0.01, 128, 255)
BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
SHOWN = 8


def tiles(keys: int, head: int) -> list[flash.Tile]:
    """Tiles whose accumulators fit the registers."""
    found = []
    for (rows, warps), columns, stages in itertools.product(
        ((128, 8), (128, 4), (64, 4), (256, 8)), (32, 64, 128), (2, 3, 4)
    ):
        scores, sums = rows * columns / (32 * warps), rows * head / (32 * warps)  # registers of a thread
        if scores + 1.5 * sums <= 156 and scores <= 64 and columns <= 2 * keys and (stages < 4 or columns < 128):
            found.append(flash.Tile(rows, columns, warps, stages))
    return found if keys > 100 else [tile for tile in found if tile.stages == 2]


def measure(shape: tuple[int, int, int, int], until: float) -> list[dict[str, Any]]:
    """Microseconds of every candidate, fastest first."""
    batch, queries, keys, head = shape
    q = torch.randn(batch, queries, HEADS * head, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(batch, keys, HEADS * head, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    split = [x.unflatten(2, (HEADS, -1)).transpose(1, 2) for x in (q, k, v)]
    row = dict(zip(("batch", "queries", "keys", "head"), shape, strict=True))
    found = [{**row, "name": backend.name, **tried(partial(in_torch, backend, split))} for backend in BACKENDS]
    found.append({**row, "name": "torch's choice", **tried(partial(F.scaled_dot_product_attention, *split))})
    cuts = sorted({flash.pieces(head), (triton.next_power_of_2(head), 0)})
    calls = {
        f"{tile.queries}x{tile.keys} w{tile.warps} s{tile.stages} {cut[0]}+{cut[1]}": partial(
            flash.attend, q, k, v, HEADS, head**-0.5, tile=tile, cut=cut
        )
        for cut in cuts
        for tile in tiles(keys, head)
    }
    compile_kernels(lambda: [call(GRID) for call in calls.values()])
    for name, call in calls.items():
        if time.perf_counter() > until:
            break
        found.append({**row, "name": name, **tried(partial(call, GRID))})
    found.sort(key=lambda candidate: candidate["us"])
    for candidate in found[:2]:
        if candidate["name"] in calls:
            candidate["error"] = error(calls[candidate["name"]](None), split)
    return found


def in_torch(backend: SDPBackend, split: list[Tensor]) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(*split)


def tried(call: Callable[[], Any]) -> dict[str, Any]:
    try:
        times = milliseconds(lambda: call(), [()], seconds=0.1, most=24)
    except (RuntimeError, triton.CompilationError, triton.runtime.errors.OutOfResources) as problem:
        return {"us": math.inf, "error": None, "problem": str(problem)[:100]}
    return {"us": statistics.median(times) * 1e3, "error": None}


def error(result: Tensor, split: list[Tensor]) -> float:
    """Largest distance of the first image from float32."""
    exact = F.scaled_dot_product_attention(*[x[:1].float() for x in split]).transpose(1, 2).flatten(2)
    return (result[:1].float() - exact).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all candidates here")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this time")
    options = parser.parse_args()
    until, rows = time.perf_counter() + options.seconds, []
    for shape in SHAPES:
        found = measure(shape, until)
        rows += found
        print("batch {}, {} queries, {} keys, heads of {}".format(*shape))
        for index, row in enumerate(found):
            if index < SHOWN or " w" not in row["name"]:
                print(f"    {row['us']:9.1f} us  {row['name']:24} {row['error'] or row.get('problem', '')}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
