"""Milliseconds of one reconstruction iteration: EDA-DM here against the released one, same model and device.

    python benchmarks/learning_speed.py --json learning_speed.json

Units are learned for a few iterations on noise; the first ones (warm-up, graph capture) do not count. Three ways:

    eda-dm            one quantized forward, replayed as a CUDA graph on a GPU
    eda-dm, eager     the same, kernel by kernel
    eda-dm-official   two quantized forwards and a float one, kernel by kernel, as released
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from mezzotint.calibration.plan import plan_layers
from mezzotint.calibration.ranges import fit_ranges
from mezzotint.calibration.selection import CalibrationSet
from mezzotint.config import QuantizeConfig
from mezzotint.layers.swap import prepare
from mezzotint.loading import load
from mezzotint.models.denoiser import example_inputs, network_of, sample_shape
from mezzotint.models.units import layers_by_role, list_units, split_shortcuts
from mezzotint.progress import NullProgress
from mezzotint.recipes.registry import make_config
from mezzotint.reconstruction.learn import learn_unit
from mezzotint.reconstruction.problem import pose
from mezzotint.reconstruction.store import RowStore
from mezzotint.reconstruction.walk import Walker

ROWS = 64
WAYS: dict[str, tuple[str, bool]] = {
    "eda-dm": ("eda-dm", True),
    "eda-dm, eager": ("eda-dm", False),
    "eda-dm-official": ("eda-dm-official", False),
}


class Clock(NullProgress):
    """When each report of the loop came, in seconds."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def advance(self, n: int = 1, **info: float | str) -> None:
        self.times.append(time.perf_counter())  # the loss in `info` was read from the device, so the work is done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ddim-emoji")
    parser.add_argument("--bits", default="w4a8")
    parser.add_argument("--iters", type=int, default=100, help="a multiple of 50; the first 50 are warm-up")
    parser.add_argument("--every", type=int, default=4, help="time every n-th unit")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = {way: measure(recipe, graph, options) for way, (recipe, graph) in WAYS.items()}
    for way, row in rows.items():
        print(f"{way:16} {row['ms']:7.2f} ms an iteration (mean over {row['units']} units), {row['device']}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def measure(recipe: str, graph: bool, options: argparse.Namespace) -> dict[str, Any]:
    """Mean over units of the time of an iteration."""
    config = make_config(recipe, options.bits, calib_size=ROWS, iters=options.iters, forward_batch=ROWS)
    assert config.reconstruction is not None
    learning = config.reconstruction.model_copy(update={"cuda_graph": graph})
    device = torch.device(options.device)
    pipeline = load(options.model, device=options.device)
    network = network_of(pipeline)
    generator = torch.Generator().manual_seed(0)
    noise = CalibrationSet(
        torch.randn((ROWS, *sample_shape(pipeline)), generator=generator),
        torch.randint(0, 1000, (ROWS,), generator=generator),
    )
    simulated, units = simulated_network(network, noise, config, device)
    times = []
    with RowStore(8.0, device) as store:
        walkers = [Walker(n, noise, batch=ROWS, device=device, store=store) for n in (network, simulated)]
        for unit in units[2 :: options.every]:
            problem, clock = pose(unit, *walkers, store), Clock()
            learn_unit(problem, learning, seed=0, device=device, forward_batch=ROWS, progress=clock)
            times.append((clock.times[-1] - clock.times[0]) / (options.iters - 50) * 1e3)
            problem.release()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return {"ms": statistics.fmean(times), "units": len(times), "ms_of_units": times, "device": name}


@torch.no_grad()
def simulated_network(
    network: torch.nn.Module, rows: CalibrationSet, config: QuantizeConfig, device: torch.device
) -> tuple[torch.nn.Module, list[Any]]:
    inputs = example_inputs(network)
    plan = plan_layers(network, config, splits=split_shortcuts(network, *inputs), edges=layers_by_role(network))
    simulated = prepare(network, plan)
    fit_ranges(simulated, rows, config, device, NullProgress())
    return simulated, list_units(network, *inputs)


if __name__ == "__main__":
    main()
