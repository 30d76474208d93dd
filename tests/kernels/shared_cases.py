"""The bound of `tuning.shared_bytes` holds for what Triton compiles, ahead of time and without a GPU.

Collected by `test_triton.py`, in a process of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mezzotint.kernels.triton.tiled import tiled_product
from mezzotint.kernels.triton.tuning import (
    SHARED,
    Config,
    Problem,
    candidates,
    piece_of,
    shared_bytes,
    spatial_tile,
)

LINEAR = Problem(1, 1, 16384, 640, 640, 1, 16384, 1, 1, (0, 0, 0, 0), 8, (), "float", 2, False)
PICTURE = Problem(16, 64, 64, 320, 320, 64, 64, 3, 1, (1, 1, 1, 1), 8, (), "float", 2, False)
TOO_BIG = Config("tiled", 128, 256, 128, 64, 8, 4)  # needs 245,824 bytes for a linear product


def compiled_bytes(problem: Problem, config: Config) -> int:
    """Shared memory of the compiled kernel, of a product that leaves bfloat16 or codes in rows."""
    p, (tb, th, tw) = problem, spatial_tile(problem, config.bm)
    out, halved, item = ("bf16", 1, 2) if p.kind == "float" else ("i8", 1 + (p.kind == "geglu"), 1)
    piece, columns = piece_of(p, config, item), (config.bn, config.bn2 or config.bn)
    rows, most = (min(config.bm, piece), 10**6) if config.turned else (config.bm, piece)
    boxes = [f"tensordesc<{out}[{rows},{min(n, most) // halved}]>" for n in columns]
    packed = f"i8[1,{{}},{config.bk}]" if p.bits == 8 else f"u8[1,{{}},{config.bk // 2}]"
    weights = [f"tensordesc<{packed.format(n)}>" for n in columns]
    constants: dict[str, Any] = {
        "TB": tb, "TH": th, "TW": tw, "BK": config.bk, "BN1": config.bn, "BN2": config.bn2, "KERNEL": p.kernel,
        "STRIDE": 1, "PAD_TOP": p.padding[0], "PAD_LEFT": p.padding[2], "HAS_EDGES": p.edges, "HAS_BIAS": True,
        "HAS_RESIDUAL": p.residual, "KIND": p.kind, "FLAT": True, "BITS": p.bits, "GROUPS": 1, "SPLITS": 1,
        "STAGES": config.stages, "BAND": 8, "FLATTEN": config.persistent, "PIECE": piece, "TURNED": config.turned,
    }  # fmt: skip
    types = {"x": f"tensordesc<i8[{tb},{th},{tw},{config.bk}]>", "correction": "*i32", "multiplier": "*fp32"}
    types |= dict(zip(("weight1", "weight2", "out1", "out2"), (*weights, *boxes), strict=True))
    types |= {"residual1": boxes[0], "residual2": boxes[1], "bias": "*fp32", "step": "fp32", "inverse": "fp32"}
    types |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(tiled_product, {name: types.get(name, "i32") for name in tiled_product.arg_names}, constants)
    options = {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": False}
    return int(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared)


@pytest.mark.parametrize(
    ("problem", "config"),
    [
        (LINEAR, TOO_BIG),
        (PICTURE, TOO_BIG),
        (replace(LINEAR, residual=True), Config("tiled", 128, 128, 128, 0, 4, 3, persistent=True)),
        (replace(LINEAR, kind="geglu", item_bytes=1), Config("tiled", 64, 256, 128, 64, 4, 2)),
        (PICTURE, Config("tiled", 128, 128, 64, 0, 4, 5)),
        (PICTURE, Config("tiled", 128, 256, 128, 64, 8, 3, turned=True)),
        (replace(PICTURE, bits=4), Config("tiled", 128, 128, 128, 0, 4, 3, turned=True)),
        (replace(LINEAR, bits=4, residual=True), Config("tiled", 64, 128, 64, 0, 4, 4, persistent=True, turned=True)),
    ],
    ids=[
        "linear",
        "picture",
        "persistent with a residual",
        "geglu",
        "picture of 64 channels",
        "turned",
        "packed",
        "packed, persistent",
    ],
)
def test_the_bound_holds(problem: Problem, config: Config) -> None:
    found, bound = compiled_bytes(problem, config), shared_bytes(problem, config)
    assert found <= bound <= found + 20000


def test_what_needs_too_much_is_no_candidate() -> None:
    assert shared_bytes(LINEAR, TOO_BIG) > SHARED >= shared_bytes(PICTURE, TOO_BIG)
    assert TOO_BIG not in candidates(LINEAR)
    assert TOO_BIG in candidates(PICTURE)
