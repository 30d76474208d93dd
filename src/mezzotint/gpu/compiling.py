"""Kernels of a call compiled side by side before it runs: a network needs some sixty, at about a second each.

Triton compiles a kernel where it is launched first, one after another. Here the call runs once without launching
anything (its results are whatever memory held), every kernel goes to a pool of threads, and Triton keeps them. The same
run finds the products that no table knows: they are tuned in the first run that launches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

import triton
from triton.runtime.jit import JITFunction

from mezzotint.kernels.triton.choice import only_compiling, telling_of_tuning
from mezzotint.progress import NullProgress, Progress, one_phase

MOST_THREADS = 16


def prepare_kernels(call: Callable[[], Any], progress: Progress) -> None:
    """Compiles what `call` launches and, where some of its products are to be tuned, runs it once to tune them.

    Two phases of `progress`, "compile kernels" and "tune products", each only where there is something to do.
    """
    unknown = compile_kernels(call, progress=progress)
    if unknown:
        with one_phase(progress, "tune products", len(unknown)), telling_of_tuning(progress.advance):
            call()


def compile_kernels(
    call: Callable[[], Any], threads: int | None = None, progress: Progress | None = None
) -> frozenset[str]:
    """Compiles what `call` launches and cannot find; the shapes of the products that will be tuned when they run.

    What does not compile fails where it is launched.

    Args:
        call: must do the same for any values of tensors.
        progress: is told of a phase once all kernels have been asked for: how many, and each that is there.
    """
    threads = threads or min(MOST_THREADS, len(os.sched_getaffinity(0)))
    with (
        _Pool(threads) as pool,
        _without_launching(),
        only_compiling() as unknown,
        triton.AsyncCompileMode(pool, ignore_errors=True),
    ):
        call()
        if pool.asked:
            _await(pool.asked, progress or NullProgress())
    return frozenset(unknown)


class _Pool(ThreadPoolExecutor):
    """Threads that remember what they were asked for."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.asked: list[Future[Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.asked.append(super().submit(fn, *args, **kwargs))
        return self.asked[-1]


def _await(kernels: list[Future[Any]], progress: Progress) -> None:
    """Tells of every kernel that is there, from this thread: a Progress need not know of threads."""
    with one_phase(progress, "compile kernels", len(kernels)):
        for _ in as_completed(kernels):
            progress.advance()


@contextmanager
def _without_launching() -> Iterator[None]:
    """Launches of Triton kernels compile and do nothing else."""
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        return launch(self, *args, grid=grid, warmup=True, **options)

    JITFunction.run = compile_only
    try:
        yield
    finally:
        JITFunction.run = launch
