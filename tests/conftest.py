"""What all tests share: one thread a process, quiet hubs, patient properties, annotations that are checked."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator

# Tests run in several processes. More threads than cores would make every small product wait for the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a network

import pytest
from hypothesis import settings

import typecheck

typecheck.install()
settings.register_profile("mezzotint", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("mezzotint")


@pytest.fixture
def traceable() -> Iterator[None]:
    """No graph of another test, and no checks inside what is traced: the tracer does not take them."""
    import torch

    torch._dynamo.reset()
    with typecheck.switched_off():
        yield
    torch._dynamo.reset()


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A failure says at once which it is, and its last line why: a run that is cut short has told it.

    Of several processes it is the one that hands out the tests that says so.
    """
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        reason = report.longreprtext.strip().splitlines() or [""]
        errors = [line for line in reason if line.startswith("E ")] or reason[-1:]
        sys.stdout.write(f"\n{report.when} of {report.nodeid} failed: {errors[0].removeprefix('E').strip()[:300]}\n")
        sys.stdout.flush()


def pytest_collectstart() -> None:
    """Imports of seconds: not for the process that only hands out the tests to others."""
    prepare()


@functools.cache
def prepare() -> None:
    import torch
    from diffusers import DiffusionPipeline, VQModel  # noqa: F401  what the package imports first is compiled anew

    from mezzotint.calibration import ranges

    torch.set_num_threads(1)
    # What a range search looks at of every tensor: 2**15 values in earnest. Tiny networks need no more than this, and
    # the searches would take two thirds of the suite's time.
    ranges.SAMPLED_VALUES = 1 << 10
