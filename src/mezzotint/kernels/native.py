"""The compiled half of `fused` and `attention`: C++ built on first use by the compiler of this machine.

Two files of plain C++, two seconds to build, kept in a cache folder under the hash of everything it depends on.
Without a compiler there is no library, one log line says so, and torch computes the same steps.

Rejected: leaving the fusion to inductor. Group norm, SiLU and the step to codes of [4, 128, 32, 32] take 229 us as
separate operators of torch, 600 as inductor's loop (its sums go along the wrong axis for channels-last), 135 here; and
inductor needs one to two minutes to compile a network. Wheels with the library in them would be one more per platform.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

logger = logging.getLogger("mezzotint")

SOURCES = tuple(Path(__file__).with_name(name) for name in ("fused.cpp", "attention.cpp"))
HEADER = Path(__file__).with_name("steps.h")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
EXACT = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")  # none of them changes a result
CACHE_VARIABLE = "MEZZOTINT_CACHE"

_POINTER, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "mezzotint_group_norm": (
        None,
        [_POINTER] * 5 + [_SIZE] * 4 + [ctypes.c_double, ctypes.c_int] + [_FLOAT] * 3 + [_POINTER] * 2,
    ),
    "mezzotint_codes": (None, [_POINTER, *[_SIZE] * 3, *[_FLOAT] * 3, _POINTER]),
    "mezzotint_layer_norm_codes": (
        None,
        [_POINTER] * 3 + [_SIZE] * 2 + [ctypes.c_double] + [_FLOAT] * 3 + [_POINTER],
    ),
    "mezzotint_geglu_codes": (None, [_POINTER, *[_SIZE] * 2, *[_FLOAT] * 3, _POINTER]),
    "mezzotint_attention_work": (_SIZE, [_SIZE] * 5),
    "mezzotint_attention": (None, [_POINTER] * 4 + [_SIZE] * 7 + [_FLOAT] * 5 + [_POINTER]),
}


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The functions of both files, or None (with one log line) where it cannot be built."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        logger.warning("no C++ compiler (g++, or the one that CXX names): fused steps run as separate ones, slower")
        return None
    try:
        loaded = ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        logger.warning("fused steps run as separate ones, slower: %s", reason.strip().splitlines()[0])
        return None
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, result
    return loaded


def _built(compiler: str) -> Path:
    """The shared library, compiled unless the cache has it."""
    key = hashlib.sha256()
    texts = [path.read_text(encoding="utf-8") for path in (*SOURCES, HEADER)]
    for part in (*texts, compiler, *FLAGS, *EXACT, _processor()):
        key.update(part.encode())
    target = _cache_folder() / f"fused-{key.hexdigest()[:16]}.so"
    if not target.is_file():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder) / target.name
            command = [compiler, *FLAGS, *EXACT, "-o", str(built), *map(str, SOURCES)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            built.replace(target)  # whole or not at all, whoever else builds it at the same time
    return target


def _cache_folder() -> Path:
    """Where built libraries are kept: $MEZZOTINT_CACHE, else the user's cache, else the system's temporary folder."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    chosen = os.environ.get(CACHE_VARIABLE)
    for folder in (Path(chosen) if chosen else Path(home) / "mezzotint",):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            break
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="mezzotint-"))


def _processor() -> str:
    """What -march=native looks at, as far as it can be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.platform()
    return platform.machine() + next((line for line in lines if line.startswith("flags")), "")
