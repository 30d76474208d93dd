"""The Triton kernels keep the promises of `triton_cases`, in Triton's interpreter here and on a GPU where there is one.

In a process of its own: Triton decides when it is imported whether it interprets, and torch imports it too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = [Path(__file__).with_name(name) for name in ("triton_cases.py", "flash_cases.py")]
QUICK = "(accumulators and 24) or ties or packed or candidates or passed or tuned"


@pytest.mark.parametrize(
    ("interpret", "chosen"),
    [
        pytest.param(True, QUICK, id="interpreter, a few"),
        pytest.param(True, "", id="interpreter", marks=pytest.mark.slow),
        pytest.param(False, "", id="gpu", marks=pytest.mark.gpu),
    ],
)
def test_triton_kernels(interpret: bool, chosen: str) -> None:
    pytest.importorskip("triton", reason="the extra 'gpu' is not installed")
    run(CASES, {"TRITON_INTERPRET": "1"} if interpret else {}, chosen)


@pytest.mark.slow
def test_shared_memory_that_triton_asks_for_is_bounded(tmp_path: Path) -> None:
    """Compiles for sm_90, without a GPU."""
    pytest.importorskip("triton", reason="the extra 'gpu' is not installed")
    run([Path(__file__).with_name("shared_cases.py")], {"TRITON_CACHE_DIR": str(tmp_path)}, "")


def run(cases: list[Path], more: dict[str, str], chosen: str) -> None:
    """Collects `cases` in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | more
    options = ["-p", "no:cacheprovider", "-o", "addopts=", "-o", "filterwarnings=", "-k", chosen]
    command = [sys.executable, "-m", "pytest", "-q", *options, *map(str, cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
