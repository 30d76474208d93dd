"""GPU kernels: compares every product with the integer reference bit for bit, then times configurations.

    python benchmarks/kernels.py --seconds 480 --json FILE

The first part runs configurations in several processes: that compiles them (Triton keeps the result on disk), checks
each against the exact reference on small awkward shapes, and at the published shapes against the gathered kernel. The
second part times, alone on the device: launches captured in a CUDA graph, on operands that rotate through more memory
than the cache holds, random data, the median of several replays. The float side is cuDNN and cuBLAS in bfloat16.
The JSON holds every row; "configurations" has the best of each shape, as kernels/triton/configurations.json has it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import queue
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from kernel_shapes import NETWORKS, Shape

CACHE = 128 * 2**20  # bytes of operands that one round of launches goes through
SMALL = [  # batch, height, width, channels, outputs, kernel, stride
    (2, 8, 8, 32, 64, 3, 1), (3, 5, 9, 48, 40, 3, 1), (1, 16, 16, 80, 96, 3, 2), (2, 7, 6, 64, 72, 3, 2),
    (5, 8, 8, 160, 320, 3, 1), (2, 24, 24, 64, 32, 3, 1), (1, 2, 2, 16, 16, 3, 1), (2, 11, 13, 3, 5, 3, 1),
    (1, 1, 300, 320, 640, 1, 1), (1, 1, 1, 1280, 1280, 1, 1), (1, 1, 77, 768, 640, 1, 1), (1, 1, 513, 96, 8, 1, 1),
]  # fmt: skip


def operands(shape: Shape, bits: int, generator: torch.Generator) -> dict[str, Any]:
    """Random tensors of one call of `shape`, in the form of the operators' arguments."""
    from mezzotint.kernels.triton.operands import pack_nibbles

    device, taps = generator.device, shape.kernel**2
    linear = shape.kernel == 1 and shape.stride == 1
    pixels = (shape.batch, shape.size, shape.size)
    x_shape = (shape.rows,) if linear else pixels
    low = -128 if bits == 8 else -8
    draw = lambda a, b, s, d: torch.randint(a, b, s, generator=generator, device=device).to(d)  # noqa: E731
    weight = draw(low, -low, (shape.outputs, taps, shape.channels), torch.int8)
    pad = [shape.kernel // 2] * 4
    residual = torch.randn((*result_rows(shape), shape.outputs), generator=generator, device=device)
    return {
        "x_q": draw(-128, 128, (*x_shape, shape.channels), torch.int8),
        "weight": weight if bits == 8 else pack_nibbles(weight),
        "multiplier": torch.rand((max(1, len(shape.groups)), shape.outputs), generator=generator, device=device) * 1e-4,
        "correction": draw(-9999, 9999, (max(1, len(shape.groups)), 16, shape.outputs), torch.int32),
        "bias": torch.randn(shape.outputs, generator=generator, device=device),
        "residual": residual.bfloat16() if shape.residual else None,
        "channels": shape.channels,
        "bits": bits,
        "kernel": [shape.kernel] * 2,
        "stride": [shape.stride] * 2,
        "padding": pad,
        "groups": list(shape.groups),
    }


def result_rows(shape: Shape) -> tuple[int, ...]:
    if shape.kernel == 1 and shape.stride == 1:
        return (shape.rows,)
    side = shape.size // shape.stride
    return (shape.batch, side, side)


def described(shape: Shape, arguments: dict[str, Any]) -> Any:
    """The call, as `launch.run` takes it."""
    from mezzotint.kernels.triton import launch

    dtype = torch.bfloat16 if shape.kind == "float" else torch.int8
    return launch.describe(*arguments.values(), dtype, shape.kind, (0.05, 131, 255))


def small_configs() -> list[Any]:
    """A few of each kernel: with one and two blocks of outputs, with and without splits, persistent."""
    from mezzotint.kernels.triton.tuning import Config

    return [
        Config("specialized", 128, 256, 64, 64, 4, 3, persistent=True),
        Config("specialized", 128, 128, 128, 0, 4, 3, persistent=True),
        Config("specialized", 128, 64, 64, 0, 4, 4, splits=3, persistent=True),
        Config("tiled", 128, 64, 64, 0, 4), Config("tiled", 64, 64, 64, 0, 4, splits=2),
        Config("tiled", 128, 128, 128, 0, 8, 3, persistent=True), Config("tiled", 128, 256, 64, 64, 8, 3),
        Config("gathered", 64, 32, 32, warps=4), Config("gathered", 64, 64, 64, warps=4, splits=2),
    ]  # fmt: skip


def check_small(case: tuple[int, ...], config: Any) -> str:
    """One configuration on an awkward shape against the exact reference: "equal", "refused", or what differs."""
    from mezzotint.kernels.triton import exact, launch
    from mezzotint.kernels.triton.operands import pack_nibbles
    from mezzotint.kernels.triton.tuning import refuses_specialized, refuses_tiled

    b, h, w, c, o, k, s = case
    generator, wrong, ran = torch.Generator("cuda").manual_seed(c + o), [], 0
    kinds = [("float", torch.int32), ("float", torch.float32), ("codes", torch.int8)]
    for bits in (8, 4):
        base = operands(Shape("", 1, b, 8, c, o, k, s), bits, generator)
        base["x_q"] = torch.randint(-128, 128, (b, h, w, c), generator=generator, device="cuda").to(torch.int8)
        window = [base[n] for n in ("channels", "bits", "kernel", "stride", "padding", "groups")]
        for kind, dtype in kinds if o == 64 else kinds[:1]:
            for extreme in (False, True):
                if extreme:
                    base["x_q"].fill_(-128)
                    least = torch.full((o, k * k, c), -128 if bits == 8 else -8, dtype=torch.int8, device="cuda")
                    base["weight"] = least if bits == 8 else pack_nibbles(least)
                tensors = [base[n] for n in ("x_q", "weight", "multiplier", "correction", "bias")]
                call = launch.describe(*tensors, None, *window, dtype, kind, (0.37, 117, 255))
                refuses = {"tiled": refuses_tiled, "specialized": refuses_specialized}.get(config.kernel)
                if (refuses and refuses(call.problem)) or (bits == 4 and config.bn2 and config.kernel == "tiled"):
                    continue
                want = (
                    exact.int8_product(*tensors, None, *window, dtype)
                    if kind == "float"
                    else exact.int8_product_codes(*tensors, None, *window, False, *call.grid)
                )
                call.out.fill_(77)
                launch.run(call, config)
                ran += 1
                share = (call.out != want).float().mean().item()
                if share:
                    wrong.append(f"w{bits} {dtype} {'extreme' if extreme else 'random'}: {share:.1%} differ")
    return "; ".join(wrong) or ("equal" if ran else "refused")


def check_shape(shape: Shape, bits: int, configs: list[Any]) -> Iterator[str]:
    """Every configuration of a published shape against the gathered kernel."""
    from mezzotint.kernels.triton import launch
    from mezzotint.kernels.triton.tuning import Config

    call = described(shape, operands(shape, bits, torch.Generator("cuda").manual_seed(1)))
    launch.run(call, Config("gathered", 128, 64, 64 if shape.channels >= 64 else 32, warps=4))
    want = call.out.clone()
    for config in configs:
        try:
            call.out.fill_(77)
            launch.run(call, config)
            torch.cuda.synchronize()
            share = (call.out != want).float().mean().item()
            yield f"{share:.1%} differ" if share else "equal"
        except Exception as error:  # noqa: BLE001 - any failure of a candidate is a row of the table
            yield f"{type(error).__name__}: {str(error)[:300]}"


def work(tasks: Any, answers: Any) -> None:
    """A process that compiles and checks: (index, case, config) or (index, shape, bits, configs) until None."""
    while (task := tasks.get()) is not None:
        index, *arguments = task
        try:
            outcomes = [check_small(*arguments)] if len(arguments) == 2 else check_shape(*arguments)
            for place, outcome in enumerate(outcomes):
                answers.put((index, place, outcome))
        except Exception as error:  # noqa: BLE001
            answers.put((index, 0, f"{type(error).__name__}: {str(error)[:300]}"))
        torch.cuda.empty_cache()


def tried(tasks: list[Any], processes: int, seconds: float) -> dict[tuple[int, int], str]:
    """Outcome of everything (task, place in the task) that was tried in time."""
    context = multiprocessing.get_context("spawn")
    todo, answers = context.Queue(), context.Queue()
    for index, task in enumerate(tasks):
        todo.put((index, *task))
    workers = [context.Process(target=work, args=(todo, answers), daemon=True) for _ in range(processes)]
    for worker in workers:
        todo.put(None)
        worker.start()
    found: dict[tuple[int, int], str] = {}
    end, count = time.monotonic() + seconds, sum(1 if len(task) == 2 else len(task[2]) for task in tasks)
    while len(found) < count and time.monotonic() < end:
        alive = any(worker.is_alive() for worker in workers)
        try:
            index, place, outcome = answers.get(timeout=1.0)
            found[index, place] = outcome
        except queue.Empty:
            if not alive:
                break
    for worker in workers:
        worker.kill()
    return found


def median_us(launches: list[Callable[[], Any]], replays: int = 7) -> float:
    """Microseconds of one launch: all of `launches` in one graph, several times over."""
    for one in launches:
        one()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for one in launches[:1]:
            one()
    torch.cuda.synchronize()
    rounds, graph = max(1, 24 // len(launches)), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(rounds):
            for one in launches:
                one()
    times = []
    for _ in range(replays):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / (rounds * len(launches)))
    return statistics.median(times[1:])


def copies_of(size: int) -> int:
    """How many sets of operands it takes to go through the cache."""
    return max(2, min(16, CACHE // max(1, size) + 1))


def time_float(shape: Shape) -> float:
    """Microseconds of the bfloat16 product (of GEGLU without what follows it)."""
    linear = shape.kernel == 1 and shape.stride == 1
    size = 2 * (shape.rows * (shape.channels + shape.outputs) + shape.outputs * shape.channels * shape.kernel**2)
    launches = []
    for _ in range(copies_of(size)):
        if linear:
            x = torch.randn(shape.rows, shape.channels, device="cuda", dtype=torch.bfloat16)
            w = torch.randn(shape.outputs, shape.channels, device="cuda", dtype=torch.bfloat16)
            b = torch.randn(shape.outputs, device="cuda", dtype=torch.bfloat16)
            launches.append(lambda x=x, w=w, b=b: torch.nn.functional.linear(x, w, b))
        else:
            last = {"memory_format": torch.channels_last}
            x = torch.randn(shape.batch, shape.channels, shape.size, shape.size, device="cuda", dtype=torch.bfloat16)
            w = torch.randn(shape.outputs, shape.channels, shape.kernel, shape.kernel, device="cuda").bfloat16()
            b = torch.randn(shape.outputs, device="cuda", dtype=torch.bfloat16)
            x, w = x.contiguous(**last), w.contiguous(**last)
            launches.append(
                lambda x=x, w=w, b=b: torch.nn.functional.conv2d(x, w, b, shape.stride, padding=shape.kernel // 2)
            )
    return median_us(launches)


def time_int(shape: Shape, bits: int, configs: list[Any]) -> list[float]:
    """Microseconds of each configuration."""
    from mezzotint.kernels.triton import launch

    generator = torch.Generator("cuda").manual_seed(2)
    first = operands(shape, bits, generator)
    size = sum(t.numel() * t.element_size() for t in first.values() if isinstance(t, torch.Tensor))
    size += shape.rows * shape.outputs * (2 if shape.kind == "float" else 1)
    calls = [described(shape, first if i == 0 else operands(shape, bits, generator)) for i in range(copies_of(size))]
    return [median_us([lambda call=call, c=config: launch.run(call, c) for call in calls]) for config in configs]


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


def ceilings() -> dict[str, float]:
    """What the chip reaches: bytes copied (read and written) a second, and bf16 operations of a large product."""
    a, b = (torch.randint(0, 99, (2**30,), device="cuda", dtype=torch.uint8) for _ in range(2))
    m = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    copy, product = median_us([lambda: a.copy_(b)]), median_us([lambda: m @ m])
    return {"copy_GBps": 2 * 2**30 / copy / 1e3, "bf16_TFLOPs": 2 * 8192**3 / product / 1e6}


GRID = (0.03, 12, 255)


def time_norms(batch: int) -> list[dict[str, Any]]:
    """Microseconds of the steps between products, each with the share of the copy rate that its bytes make."""
    from mezzotint.kernels.triton import launch_norms

    rows = []
    for size, channels in ((64, 320), (64, 960), (32, 640), (32, 1920), (16, 1280), (16, 2560), (8, 1280), (8, 2560)):
        pixels = size * size
        count = copies_of(batch * pixels * channels * 3)
        xs = [torch.randn(batch, pixels, channels, device="cuda").bfloat16() for _ in range(count)]
        w = torch.ones(channels, device="cuda")
        outs = [torch.empty(x.shape, dtype=torch.int8, device="cuda") for x in xs]
        row = {"norm": f"{size}^2 x {channels}", "batch": batch, "MB": batch * pixels * channels * 3 / 1e6}
        for config in launch_norms.norm_configs(batch, pixels, channels, 32):
            name = f"{'one' if config.whole else 'two'} g{config.groups} r{config.rows} n{config.runs} w{config.warps}"
            affine = (None, None, w, w, None, None, 32, 1e-5, True)
            row[name] = median_us([
                lambda x=x, o=o, c=config, f=affine: launch_norms.group_norm(x, *f, out=o, grid=GRID, config=c)
                for x, o in zip(xs, outs, strict=True)
            ])  # fmt: skip
        layer_norm = launch_norms.nhwc_layer_norm_codes
        row["layer norm"] = median_us([lambda x=x, w=w, f=layer_norm: f(x, w, w, 1e-5, *GRID) for x in xs])
        row["codes"] = median_us([lambda x=x: launch_norms.nhwc_codes(x, None, *GRID) for x in xs])
        rows.append(row)
        print(json.dumps({k: round(v, 1) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="square,sd16,sd2,cifar256", help="of " + ", ".join(NETWORKS))
    parser.add_argument("--bits", default="8", help="weight bits, 8 or 4, or both")
    parser.add_argument("--candidates", type=int, default=9, help="configurations of each shape, the likeliest first")
    parser.add_argument("--seconds", type=float, default=480, help="for everything")
    parser.add_argument("--processes", type=int, default=14, help="that compile")
    parser.add_argument("--specialized", action="store_true", help="the kernel of specialized warps too (experimental)")
    parser.add_argument("--skip-norms", action="store_true", help="products only")
    parser.add_argument("--table", type=Path, help="add the best of each shape to this configurations.json")
    parser.add_argument("--json", required=True, help="file to write")
    options = parser.parse_args()
    from mezzotint.kernels.triton.tuning import candidates

    start = time.monotonic()
    left = lambda: options.seconds - (time.monotonic() - start)  # noqa: E731
    torch.backends.cudnn.benchmark = True
    names, bits_of = options.networks.split(","), [int(b) for b in options.bits.split(",")]
    device, units = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).multi_processor_count
    shapes = [(n, s, b) for n in names for s in NETWORKS[n]() for b in bits_of]
    plans = []
    for network, shape, bits in shapes:
        call = described(shape, operands(shape, bits, torch.Generator("cuda").manual_seed(1)))
        found = candidates(call.problem, units, specialized=options.specialized)[: options.candidates]
        plans.append((network, shape, bits, call.problem.key, found))
        del call
    torch.cuda.empty_cache()
    first = tried([(SMALL[0], c) for c in small_configs()[:2]], 2, 90) if options.specialized else {}
    print("specialized, tried first:", first or "no", f"{time.monotonic() - start:.0f} s", flush=True)
    works = set(first.values()) == {"equal"}
    if not works:  # it may hang: leave it out of what follows
        plans = [(*plan[:4], [c for c in plan[4] if c.kernel != "specialized"]) for plan in plans]
    fine = [c for c in small_configs() if c.kernel != "specialized" or works]
    small = [(case, config) for case in SMALL for config in fine]
    outcome = tried([*small, *((s, b, configs) for _, s, b, _, configs in plans)], options.processes, left() * 0.55)
    wrong = [f"{case} {c.name}: {outcome.get((i, 0), 'not tried')}" for i, (case, c) in enumerate(small)
             if outcome.get((i, 0)) not in ("equal", "refused")]  # fmt: skip
    print(f"{len(small)} small checks, {len(wrong)} not equal to the reference", *wrong[:25], sep="\n  ", flush=True)
    bad = [f"{plans[i - len(small)][1].name} {plans[i - len(small)][4][j].name}: {text}"
           for (i, j), text in outcome.items() if i >= len(small) and text != "equal"]  # fmt: skip
    count = sum(len(configs) for *_, configs in plans)
    done = f"{len(outcome) - len(small)} of {count} configurations tried in {time.monotonic() - start:.0f} s"
    print(f"{done}, {len(bad)} bad", *bad[:25], sep="\n  ", flush=True)
    report: dict[str, Any] = {"device": device, **ceilings(), "wrong": wrong, "bad": sorted(bad)}
    report |= {"rows": [], "configurations": {device: {}}}
    print({k: round(v) for k, v in report.items() if isinstance(v, float)}, flush=True)
    if not options.skip_norms:
        report["norms"] = [row for batch in (16, 2) for row in time_norms(batch)]
    sums: dict[tuple[str, int], list[float]] = {}
    for index, (network, shape, bits, key, configs) in enumerate(plans, len(small)):
        usable = [c for place, c in enumerate(configs) if outcome.get((index, place)) == "equal"]
        if left() < 10 or not usable:
            report["rows"].append({"network": network, "shape": shape.name, "skipped": len(usable)})
            print(f"{network:9}{shape.name:28} skipped: {len(usable)} usable", flush=True)
            continue
        baseline, times = time_float(shape), time_int(shape, bits, usable)
        ranked = sorted(zip(times, usable, strict=True), key=lambda pair: pair[0])
        best, config = ranked[0]
        if len(ranked) > 2:
            report["configurations"][device][key] = asdict(config)
        report["rows"].append({"network": network, **asdict(shape), "bits": bits, "bf16_us": baseline, "best_us": best,
                               "times": {c.name: t for t, c in ranked}})  # fmt: skip
        total = sums.setdefault((network, bits), [0.0, 0.0])
        total[0] += shape.count * baseline
        total[1] += shape.count * best
        others = "; ".join(f"{c.name} {t:.0f}" for t, c in ranked[1:3])
        speed = f"{baseline / best:5.2f}x {shape.operations / best / 1e6:6.0f} T"
        name = f"{network:9}{shape.name:28}w{bits} x{shape.count:<3}"
        print(f"{name}{baseline:8.1f}{best:8.1f} us {speed}  {config.name} | {others}", flush=True)
        torch.cuda.empty_cache()
        with open(options.json, "w") as file:
            json.dump(report, file)
    if options.table:
        add_to_table(options.table, report["configurations"][device])
    for (network, bits), (slow, fast) in sums.items():
        step = f"{slow / 1e3:.2f} ms in bf16, {fast / 1e3:.2f} in int8: {slow / fast:.2f}x"
        print(f"{network} w{bits}: products of a step {step}")


if __name__ == "__main__":
    main()
