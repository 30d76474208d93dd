"""GPU kernels: compares every product with the integer reference bit for bit, then times configurations.

    python benchmarks/products.py --seconds 200 --networks sd16,sd2 --table configurations.json --json FILE

The first part runs configurations in several processes: that compiles them (Triton keeps the result on disk), checks
each against the exact reference on small awkward shapes, and at the published shapes against the gathered kernel. The
second part times, alone on the device: launches captured in a CUDA graph, on operands that rotate through more memory
than the cache holds, random data, the median of several replays. What takes most of a network's step comes first, and
nothing is compiled any more: it says how many kernels were, 0. The third part is the float side, cuDNN and cuBLAS in
bfloat16, while time is left. The JSON holds every row; "configurations" has the best of each shape, as
kernels/triton/configurations.json has it.

Weights of 8 and 4 bits in one run, six candidates for the one and four for the other, beside what is shipped:

    python benchmarks/products.py --networks sd16,sd2 --bits 4,8 --candidates 6,4 --only ' t ' --json FILE
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from kernel_checks import SMALL, compiled_as, small_configs, tried
from kernel_shapes import NETWORKS, Shape, problem_of
from kernel_times import ceilings, time_float, time_int
from triton import knobs


@dataclass
class Plan:
    """A product of a network and its configurations, the likeliest first; `share` is its part of a step, in cycles."""

    network: str
    shape: Shape
    bits: int
    key: str
    share: float
    configs: list[Any]
    shipped: Any = None  # the configuration that the installed table has
    outcomes: dict[Any, str] = field(default_factory=dict)
    times: dict[Any, float] = field(default_factory=dict)  # microseconds, the fastest first
    float_us: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.network:9}{self.shape.name:28}w{self.bits} x{self.shape.count:<3}"

    @property
    def usable(self) -> list[Any]:
        return [config for config in self.configs if self.outcomes.get(config) == "equal"]

    def row(self) -> dict[str, Any]:
        """What the JSON has."""
        times = {config.name: us for config, us in self.times.items()}
        best = min(times.values(), default=None)
        found = {"network": self.network, **asdict(self.shape), "bits": self.bits, "bf16_us": self.float_us or None}
        return {**found, "best_us": best, "times": times, "usable": len(self.usable)}


def plans_of(networks: list[str], most: dict[int, int], word: str) -> list[Plan]:
    """Every product once (networks share some), with its candidates and the shipped one; the longest first, by count.

    Of candidates, `most` (for every number of bits) whose names have `word`, or any where none has it.
    """
    from mezzotint.kernels.triton.choice import device_of
    from mezzotint.kernels.triton.tables import shipped
    from mezzotint.kernels.triton.tuning import candidates, predicted

    units, plans, seen = torch.cuda.get_device_properties(0).multi_processor_count, [], set()
    known = shipped(device_of(torch.device("cuda", 0)).family)
    for network, bits in ((n, b) for n in networks for b in most):
        for shape in NETWORKS[network]():
            problem = problem_of(shape, bits)
            every, old = candidates(problem, units), known.get(problem.key)
            found = ([c for c in every if word in f"{c.name} "] or every)[: most[bits]]
            found += [old] if old and old not in found else []
            if (network, shape.name, problem.key) not in seen:
                share = max(1, shape.count) * predicted(problem, found[0], units)
                plans.append(Plan(network, shape, bits, problem.key, share, found, old))
            seen.add((network, shape.name, problem.key))
    return sorted(plans, key=lambda plan: -plan.share)


def check(plans: list[Plan], configs: list[Any], bits_of: list[int], processes: int, seconds: float) -> dict[str, Any]:
    """Compiles and compares; what is wrong, as text."""
    small = [(case, config, tuple(bits_of)) for case in SMALL for config in configs]
    kernels: dict[Any, list[Plan]] = {}
    for plan in plans:
        for config in plan.configs:
            kernels.setdefault(compiled_as(plan.shape, plan.bits, config), []).append(plan)
    tasks = [(key[0], [(plan.shape, plan.bits) for plan in sharing]) for key, sharing in kernels.items()]
    start, outcomes = time.monotonic(), tried([*tasks, *small], processes, seconds)
    wrong, bad, count = [], [], sum(len(places) for _, places in tasks)
    for index, (key, sharing) in enumerate(kernels.items()):
        for place, plan in enumerate(sharing):
            text = plan.outcomes[key[0]] = outcomes.get((index, place), "not tried")
            if text not in ("equal", "not tried"):
                bad.append(f"{plan.name} {key[0].name}: {text}")
    for index, (case, config, _) in enumerate(small, len(tasks)):
        if (text := outcomes.get((index, 0), "not tried")) not in ("equal", "refused"):
            wrong.append(f"{case} {config.name}: {text}")
    print(f"{len(small)} small checks, {len(wrong)} not equal to the reference", *wrong[:25], sep="\n  ", flush=True)
    done, took = sum(index < len(tasks) for index, _ in outcomes), time.monotonic() - start
    step = f"{done} of {count} configurations ({len(tasks)} kernels) tried in {took:.0f} s"
    print(f"{step}, {len(bad)} bad", *bad[:25], sep="\n  ", flush=True)
    return {"wrong": wrong, "bad": sorted(bad)}


def add_to_table(path: Path, found: dict[str, Any]) -> None:
    """Adds configurations to the file that is installed with the package, one a line, under this GPU's family."""
    from mezzotint.kernels.triton.choice import device_of

    tables = json.loads(path.read_text()) if path.is_file() else {}
    tables.setdefault(device_of(torch.device("cuda", 0)).family, {}).update(found)
    parts = []
    for family, table in sorted(tables.items()):
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(table.items()))
        parts.append(f" {json.dumps(family)}: {{\n{lines}\n }}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def results(plans: list[Plan]) -> dict[str, Any]:
    """Rows of the JSON, and the best configuration of every shape that had a choice."""
    best = {plan.key: asdict(next(iter(plan.times))) for plan in plans if len(plan.times) > 2}
    return {"rows": [plan.row() for plan in plans], "configurations": {torch.cuda.get_device_name(): best}}


def report_sums(plans: list[Plan]) -> None:
    """Prints what the products of a step take; in bfloat16 where all of them were timed."""
    for network, bits in dict.fromkeys((plan.network, plan.bits) for plan in plans):
        of = [plan for plan in plans if (plan.network, plan.bits) == (network, bits)]
        timed = [plan for plan in of if plan.times]
        fast = sum(plan.shape.count * next(iter(plan.times.values())) for plan in timed) / 1e3
        first = sum(plan.shape.count * plan.times.get(plan.configs[0], 0.0) for plan in timed) / 1e3
        line = f"{network} w{bits}: {len(timed)} of {len(of)} products, {fast:.2f} ms of a step (untuned {first:.2f}"
        if all(plan.shipped in plan.times for plan in timed):
            line += f", shipped {sum(plan.shape.count * plan.times[plan.shipped] for plan in timed) / 1e3:.2f}"
        line += ")"
        both = [plan for plan in timed if plan.float_us]
        slow = sum(plan.shape.count * plan.float_us for plan in both) / 1e3
        same = sum(plan.shape.count * next(iter(plan.times.values())) for plan in both) / 1e3
        print(f"{line}; {len(both)} of them {slow:.2f} ms in bf16, {same:.2f} in int8" if both else line, flush=True)


def time_integers(plans: list[Plan], left: Callable[[], float], save: Callable[[], None]) -> None:
    """Times every plan while there is time, the longest first; `save` is called as it goes."""
    compiled: list[str] = []

    def listen(*, src: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            compiled.append(src.name)

    knobs.compilation.listener = listen
    start = time.monotonic()
    print(f"timing begins at {time.strftime('%T')}, {left():.0f} s left", flush=True)
    for number, plan in enumerate(plans):
        if left() < 5:
            break
        if plan.usable:
            before, already = time.monotonic(), len(compiled)
            plan.times = time_int(plan.shape, plan.bits, plan.usable)
            (config, best), *others = plan.times.items()
            rest = "; ".join(f"{c.name} {us:.0f}" for c, us in others[:2])
            took = f"{time.monotonic() - before:.2f} s"
            if len(compiled) > already:
                took += f", {len(compiled) - already} kernels compiled"
            untuned = plan.times.get(plan.configs[0], 0.0)
            print(f"{plan.name}{untuned:8.1f}{best:8.1f} us {config.name} | {rest} ({took})", flush=True)
        if number % 20 == 19:
            save()
    save()
    knobs.compilation.listener = None
    took = f"{time.monotonic() - start:.1f} s of timing"
    print(f"timing ends at {time.strftime('%T')}: {took}, {len(compiled)} kernels compiled meanwhile", flush=True)


def time_floats(plans: list[Plan], left: Callable[[], float]) -> None:
    """Times the float side of every plan while there is time; what has the same shape is timed once."""
    known: dict[Shape, float] = {}
    for plan in plans:
        if left() < 5:
            break
        before = time.monotonic()
        if plan.shape not in known:
            known[plan.shape] = time_float(plan.shape)
        plan.float_us = known[plan.shape]
        best = next(iter(plan.times.values()), float("nan"))
        speed = f"{plan.float_us / best:5.2f}x {plan.shape.operations / best / 1e6:6.0f} T"
        took = time.monotonic() - before
        print(f"{plan.name}{plan.float_us:8.1f} us in bf16, {best:8.1f}: {speed} ({took:.1f} s)", flush=True)


def options_of() -> argparse.Namespace:
    """The command line; `most` says how many candidates there are for every number of bits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="square,sd16,sd2,cifar256", help="of " + ", ".join(NETWORKS))
    parser.add_argument("--bits", default="8", help="weight bits, 8 or 4, or both")
    parser.add_argument("--candidates", default="9", help="configurations of a shape, or one number for each of --bits")
    parser.add_argument("--only", default="", metavar="WORD", help="only candidates with WORD in the name, ' t '")
    parser.add_argument("--seconds", type=float, default=480, help="for everything")
    parser.add_argument("--processes", type=int, default=14, help="that compile")
    parser.add_argument("--skip-small", action="store_true", help="no checks of small awkward shapes")
    parser.add_argument("--skip-float", action="store_true", help="no timing of the float side")
    parser.add_argument("--before-timing", metavar="CMD", help="shell command between compiling and timing")
    parser.add_argument("--table", type=Path, help="add the best of each shape to this configurations.json")
    parser.add_argument("--json", required=True, type=Path, help="file to write")
    options = parser.parse_args()
    bits_of, most = ([int(n) for n in text.split(",")] for text in (options.bits, options.candidates))
    if len(most) not in (1, len(bits_of)):
        parser.error(f"--candidates has one number, or as many as --bits {options.bits}; got {options.candidates}")
    options.most = dict(zip(bits_of, most * len(bits_of) if len(most) == 1 else most, strict=True))
    return options


def main() -> None:
    options = options_of()
    start = time.monotonic()
    left = lambda: options.seconds - (time.monotonic() - start)  # noqa: E731
    torch.backends.cudnn.benchmark = True
    plans = plans_of(options.networks.split(","), options.most, options.only)
    small = [] if options.skip_small else small_configs()
    report = check(plans, small, list(options.most), options.processes, left() * 0.6)
    if options.before_timing:
        os.system(options.before_timing)
    report |= {"device": torch.cuda.get_device_name(), **ceilings()}
    print({k: round(v) for k, v in report.items() if isinstance(v, float)}, flush=True)

    def save() -> None:
        found = results(plans)
        options.json.write_text(json.dumps({**report, **found}))
        if options.table:
            add_to_table(options.table, found["configurations"][report["device"]])

    time_integers(plans, left, save)
    report_sums(plans)
    if not options.skip_float:
        time_floats(plans, left)
        report_sums(plans)
    save()


if __name__ == "__main__":
    main()
