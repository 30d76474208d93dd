"""The Triton kernels keep the promises of `triton_cases`, in Triton's interpreter here and on a GPU where there is one.

In a process of its own: Triton decides when it is imported whether it interprets, and torch imports it too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("triton_cases.py")


@pytest.mark.parametrize("interpret", ["1", pytest.param("", marks=pytest.mark.gpu)], ids=["interpreter", "gpu"])
def test_triton_kernels(interpret: str) -> None:
    pytest.importorskip("triton", reason="the extra 'gpu' is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    if not interpret:
        del environment["TRITON_INTERPRET"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "-o", "filterwarnings=", str(CASES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
