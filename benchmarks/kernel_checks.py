"""Configurations of the product kernels, compiled and compared bit for bit, in several processes at once."""

from __future__ import annotations

import multiprocessing
import queue
import time
from collections.abc import Iterator
from typing import Any

import torch
from kernel_shapes import Shape, described, operands, problem_of

SMALL = [  # batch, height, width, channels, outputs, kernel, stride
    (2, 8, 8, 32, 64, 3, 1), (3, 5, 9, 48, 40, 3, 1), (1, 16, 16, 80, 96, 3, 2), (2, 7, 6, 64, 72, 3, 2),
    (5, 8, 8, 160, 320, 3, 1), (2, 24, 24, 64, 32, 3, 1), (1, 2, 2, 16, 16, 3, 1), (2, 11, 13, 3, 5, 3, 1),
    (1, 1, 300, 320, 640, 1, 1), (1, 1, 1, 1280, 1280, 1, 1), (1, 1, 77, 768, 640, 1, 1), (1, 1, 513, 96, 8, 1, 1),
]  # fmt: skip


def small_configs() -> list[Any]:
    """A few of each kernel: with one and two blocks of outputs, with and without splits, persistent."""
    from mezzotint.kernels.triton.tuning import Config

    return [
        Config("tiled", 128, 64, 64, 0, 4), Config("tiled", 64, 64, 64, 0, 4, splits=2),
        Config("tiled", 128, 128, 128, 0, 8, 3, persistent=True), Config("tiled", 128, 256, 64, 64, 8, 3),
        Config("tiled", 128, 128, 128, 0, 4, 2, turned=True), Config("tiled", 128, 256, 64, 64, 8, 3, turned=True),
        Config("tiled", 16, 128, 64, 0, 4, 4, splits=2, turned=True),
        Config("tiled", 64, 128, 128, 0, 8, 3, persistent=True, turned=True),
        Config("gathered", 64, 32, 32, warps=4), Config("gathered", 64, 64, 64, warps=4, splits=2),
    ]  # fmt: skip


def check_small(case: tuple[int, ...], config: Any, bits_of: tuple[int, ...]) -> str:
    """One configuration on an awkward shape against the exact reference: "equal", "refused", or what differs."""
    from mezzotint.kernels.triton import exact, launch
    from mezzotint.kernels.triton.operands import pack_nibbles
    from mezzotint.kernels.triton.tuning import refuses

    b, h, w, c, o, k, s = case
    generator, wrong, ran = torch.Generator("cuda").manual_seed(c + o), [], 0
    kinds = [("float", torch.int32), ("float", torch.float32), ("codes", torch.int8)]
    for bits in bits_of:
        base = operands(Shape("", 1, b, 8, c, o, k, s), bits, generator)
        base["x_q"] = torch.randint(-128, 128, (b, h, w, c), generator=generator, device="cuda", dtype=torch.int8)
        window = [base[n] for n in ("channels", "bits", "kernel", "stride", "padding", "groups")]
        for kind, dtype in kinds if o == 64 else kinds[:1]:
            for extreme in (False, True):
                if extreme:
                    base["x_q"].fill_(-128)
                    least = torch.full((o, k * k, c), -128 if bits == 8 else -8, dtype=torch.int8, device="cuda")
                    base["weight"] = least if bits == 8 else pack_nibbles(least)
                tensors = [base[n] for n in ("x_q", "weight", "multiplier", "correction", "bias")]
                call = launch.describe(*tensors, None, *window, dtype, kind, (0.37, 117, 255))
                slow = bits == 4 and config.kernel == "tiled" and not config.turned
                if slow or refuses(call.problem, config):
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


def compiled_as(shape: Shape, bits: int, config: Any) -> tuple[Any, ...]:
    """What the compiled kernel of a configuration depends on: shapes with one key share one kernel, and one task."""
    from mezzotint.kernels.triton.tuning import spatial_tile

    p = problem_of(shape, bits)
    whole = p.out_height % (tile := spatial_tile(p, config.bm))[1] == 0 and tile[2] == p.out_width
    return (config, tile, whole, p.kernel, p.stride, p.kind, p.residual, len(p.groups), bits)


def check_kernel(config: Any, places: list[tuple[Shape, int]]) -> Iterator[str]:
    """One configuration at every published shape (with its bits) that takes it, against the gathered kernel."""
    from mezzotint.kernels.triton import launch
    from mezzotint.kernels.triton.tuning import Config

    for shape, bits in places:
        try:
            call = described(shape, operands(shape, bits, torch.Generator("cuda").manual_seed(1)))
            launch.run(call, Config("gathered", 128, 64, 64 if shape.channels >= 64 else 32, warps=4))
            want = call.out.clone()
            call.out.fill_(77)
            launch.run(call, config)
            share = (call.out != want).float().mean().item()
            yield f"{share:.1%} differ" if share else "equal"
        except Exception as error:  # noqa: BLE001 - any failure of a candidate is a row of the table
            yield f"{type(error).__name__}: {str(error)[:300]}"


def work(tasks: Any, answers: Any) -> None:
    """A process that compiles and checks: (index, case, config, bits) or (index, config, places) until None."""
    while (task := tasks.get()) is not None:
        index, *arguments = task
        try:
            outcomes = [check_small(*arguments)] if len(arguments) == 3 else check_kernel(*arguments)
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
    end, count = time.monotonic() + seconds, sum(1 if len(task) == 3 else len(task[1]) for task in tasks)
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
    for worker in workers:  # what it had on the device is gone then
        worker.join(timeout=10)
    return found
