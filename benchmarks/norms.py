"""GroupNorm on a GPU: is the configuration that the model takes first the fastest, in the networks that are published?

    python benchmarks/norms.py --json norms.json                              # what SD, LDM-4 and DDIM take time with
    python benchmarks/norms.py --json norms.json --run ddim-cifar10:256       # one of them, may be repeated

Every row is one GroupNorm with SiLU and codes: microseconds of the configurations that `kernels.triton.norm_model`
ranks first (`--most`), what it predicts for each, and how far its first is from the fastest, over the time of a
network's step: count times microseconds. Kernels are compiled side by side, then timed alone: CUDA graphs of launches
on operands that rotate through more memory than the cache holds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kernel_times import copies_of, median_us

from mezzotint.gpu.compiling import compile_kernels
from mezzotint.kernels.triton import launch_norms
from mezzotint.kernels.triton.norm_model import NormConfig, norm_configs, predicted

GROUPS = 32
GRID = (0.03, 12, 255)
# (how often in a step, pixels along an axis, channels, codes of what is normed too) of whatever takes time
NETWORKS = {
    "sd-v1": [
        (13, 64, 320, False), (2, 64, 640, True), (1, 64, 960, True), (11, 32, 640, False), (1, 32, 960, True),
        (1, 32, 1920, True), (11, 16, 1280, False), (2, 16, 2560, True), (12, 8, 1280, False), (3, 8, 2560, True),
    ],
    "ddim-cifar10": [
        (8, 32, 128, False), (2, 32, 256, True), (1, 32, 384, True), (11, 16, 256, False), (1, 16, 384, True),
        (2, 16, 512, True), (7, 8, 256, False), (3, 8, 512, True), (12, 4, 256, False), (3, 4, 512, True),
    ],
    "ldm4-bedroom": [
        (8, 64, 224, False), (2, 64, 448, True), (1, 64, 672, True), (11, 32, 448, False), (1, 32, 896, True),
        (11, 16, 672, False), (1, 16, 1344, True), (16, 8, 896, False), (2, 8, 1792, True),
    ],
    "ldm8-church": [
        (14, 32, 192, False), (2, 32, 384, True), (14, 16, 384, False), (2, 16, 768, True), (15, 8, 384, False),
        (14, 4, 768, False), (14, 2, 768, False),
    ],
}  # fmt: skip
RUNS = ["ddim-cifar10:256", "sd-v1:16", "ldm4-bedroom:16", "sd-v1:2", "ldm8-church:16", "ddim-cifar10:1"]


def configs_of(norm: dict[str, Any], most: int) -> list[NormConfig]:
    """The model's first, those of each way among them."""
    configs = norm_configs(norm["batch"], norm["rows"], norm["channels"], GROUPS, entry=norm["entry"])
    ways = [next((c for c in configs if c.whole is whole), None) for whole in (True, False)]
    return list(dict.fromkeys([*configs[:most], *(config for config in ways if config is not None)]))


def calls_of(norm: dict[str, Any], config: NormConfig, sets: int) -> list[Callable[[], Any]]:
    """Launches on `sets` sets of operands."""
    batch, rows, channels = norm["batch"], norm["rows"], norm["channels"]
    generator, calls = torch.Generator("cuda").manual_seed(0), []
    weight = torch.ones(channels, device="cuda")
    for _ in range(sets):
        x = torch.randn(batch, rows, channels, generator=generator, device="cuda").bfloat16()
        out = torch.empty(x.shape, dtype=torch.int8, device="cuda")
        more = {"entry": torch.empty_like(out), "entry_grids": (GRID, GRID)} if norm["entry"] else {}
        affine = (None, None, weight, weight, None, None, GROUPS, 1e-5, True)
        calls.append(partial(launch_norms.group_norm, x, *affine, out=out, grid=GRID, config=config, **more))
    return calls


def measured(norm: dict[str, Any], most: int) -> dict[str, Any]:
    """The row of `norm`."""
    shape = (norm["batch"], norm["rows"], norm["channels"], GROUPS)
    nbytes = norm["batch"] * norm["rows"] * norm["channels"] * (4 if norm["entry"] else 3)
    configs = configs_of(norm, most)
    times = {config: median_us(calls_of(norm, config, copies_of(nbytes))) for config in configs}
    best = min(times.values())
    guessed = {config.name: predicted(config, *shape, entry=norm["entry"]) for config in configs}
    return {
        **norm, "MB": nbytes / 1e6, "us": {config.name: us for config, us in times.items()}, "predicted": guessed,
        "first_us": times[configs[0]], "best_us": best, "first_is": times[configs[0]] / best,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", metavar="MODEL:BATCH", help="default: " + ", ".join(RUNS))
    parser.add_argument("--most", type=int, default=5, help="configurations of a norm")
    parser.add_argument("--seconds", type=float, default=300, help="for the timing")
    parser.add_argument("--json", required=True, type=Path, help="file to write")
    options = parser.parse_args()
    norms = []
    for run in options.run or RUNS:
        model, batch = run.split(":")
        for count, size, channels, entry in NETWORKS[model]:
            norm = {"run": run, "count": count, "batch": int(batch), "rows": size * size, "channels": channels}
            norms.append({**norm, "entry": entry})
    start, rows = time.monotonic(), []
    compile_kernels(lambda: [calls_of(n, c, 1)[0]() for n in norms for c in configs_of(n, options.most)])
    print(f"compiled in {time.monotonic() - start:.0f} s", flush=True)
    start = time.monotonic()
    for norm in norms:
        if time.monotonic() - start > options.seconds:
            break
        rows.append(measured(norm, options.most))
        options.json.write_text(json.dumps({"device": torch.cuda.get_device_name(), "rows": rows}))
        row = rows[-1]
        times = "; ".join(f"{name} {us:.1f} ({row['predicted'][name]:.1f})" for name, us in row["us"].items())
        print(
            f"{row['run']:17}{row['rows']:5} x {row['channels']:<5} x{row['count']:<3}{row['first_is']:5.2f}  {times}"
        )
    for run in options.run or RUNS:
        of = [row for row in rows if row["run"] == run]
        first, best = (sum(row["count"] * row[key] for row in of) / 1e3 for key in ("first_us", "best_us"))
        print(f"{run}: {first:.2f} ms of a step, {best:.2f} with the fastest of each", flush=True)


if __name__ == "__main__":
    main()
