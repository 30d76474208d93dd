"""Kernels of a call compiled side by side before it runs: a network needs some sixty, at about a second each.

Triton compiles a kernel where it is launched first, one after another. Here the call runs once without launching
anything (its results are whatever memory held), every kernel goes to a pool of threads, and Triton keeps them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import triton
from triton.runtime.jit import JITFunction

from mezzotint.kernels.triton.choice import only_compiling

MOST_THREADS = 16


def compile_kernels(call: Callable[[], Any], threads: int | None = None) -> None:
    """Compiles what `call` launches and cannot find; `call` must do the same for any values of tensors.

    What does not compile fails where it is launched.
    """
    threads = threads or min(MOST_THREADS, len(os.sched_getaffinity(0)))
    with (
        ThreadPoolExecutor(threads) as pool,
        _without_launching(),
        only_compiling(),
        triton.AsyncCompileMode(pool, ignore_errors=True),
    ):
        call()


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
