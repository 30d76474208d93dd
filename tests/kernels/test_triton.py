"""The Triton kernels keep the promises of `triton_cases`, in Triton's interpreter here and on a GPU where there is one.

In a process of its own: Triton decides when it is imported whether it interprets, and torch imports it too.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CASES = [Path(__file__).with_name(f"{name}_cases.py") for name in ("triton", "norm", "flash", "int_attention")]
QUICK = (
    "(accumulators and 24) or ties or packed or candidates or passed or tuned or halves or far_ahead or inside "
    "or upsampled or timed or chooses or another"
)


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
def test_every_step_of_whole_networks_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="the extra 'gpu' is not installed")
    run([Path(__file__).with_name("network_cases.py")], {"TRITON_INTERPRET": "1"}, "")


@pytest.mark.slow
def test_what_triton_compiles_ahead_of_time(tmp_path: Path) -> None:
    """Shared memory is bounded, products of codes are those of the tensor cores; without a GPU."""
    pytest.importorskip("triton", reason="the extra 'gpu' is not installed")
    cases = [Path(__file__).with_name(name) for name in ("shared_cases.py", "int_compiled_cases.py")]
    run(cases, {"TRITON_CACHE_DIR": str(tmp_path)}, "")


def test_kernels_are_found_again_in_whatever_order_they_are_asked_for() -> None:
    """What Triton keeps a compiled kernel by; a process that asks in another order must not compile again."""
    pytest.importorskip("triton", reason="the extra 'gpu' is not installed")
    from triton.runtime.jit import JITFunction

    import mezzotint.kernels.triton as package

    names = [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
    members = [member for name in names for member in vars(importlib.import_module(name)).values()]
    functions = list({id(member): member for member in members if isinstance(member, JITFunction)}.values())

    def keys(order: list[JITFunction[Any]]) -> dict[int, str]:
        for function in order:
            function.hash, function.used_global_vals = None, {}
        return {id(function): function.cache_key for function in order}

    assert len(functions) > 20
    assert keys(functions) == keys(functions[::-1])


def run(cases: list[Path], more: dict[str, str], chosen: str) -> None:
    """Collects `cases` in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | more
    options = ["-p", "no:cacheprovider", "-o", "addopts=", "-o", "filterwarnings=", "-k", chosen]
    command = [sys.executable, "-m", "pytest", "-q", *options, *map(str, cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
