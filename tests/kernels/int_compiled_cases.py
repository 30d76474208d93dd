"""What becomes of attention on codes, ahead of time and without a GPU: int8 products of the tensor cores, no detours.

Collected by `test_triton.py`, in a process of its own.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mezzotint.kernels.triton.int_flash import attend_codes
from mezzotint.kernels.triton.launch_attention import CHUNK, IntTile, heads_of, tile_of

REDUCTIONS = 12  # exchanges of lanes: largest and sum of two rows, the ones
FLOATS = ("factor", "p_step", "p_base", "p_most", "multiplier", "q_step", "q_inverse", "step", "inverse")


def compiled(head: int, tile: IntTile, capability: int, *, single: bool) -> Any:
    """The kernel of bfloat16 queries and codes of the result, for 8 heads of `head` channels."""
    (k1, k2), (v1, v2) = heads_of(head)
    constants: dict[str, Any] = {
        "HEADS": 8, "HEAD": head, "K1": k1, "K2": k2, "V1": v1, "V2": v2, "QUERIES": tile.queries, "KEYS": tile.keys,
        "CHUNK": CHUNK, "SINGLE": single, "MAGIC": head <= 128, "ODD": 0, "CLAMP": True, "Q_CODES": False,
        "CODES": True,
    }  # fmt: skip
    types = {"q": "*bf16", "k": "*i8", "first": "*i32", "v": "*i8", "sums": "*i32", "out": "*i8"}
    types |= dict.fromkeys(FLOATS, "fp32") | dict.fromkeys(constants, "constexpr")
    names = attend_codes.arg_names
    aligned: dict[Any, Any] = {
        (index,): [["tt.divisibility", 16]] for index, name in enumerate(names) if "*" in types.get(name, "*q_row")
    }
    source = ASTSource(attend_codes, {name: types.get(name, "i32") for name in names}, constants, aligned)
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.parametrize(("head", "keys"), [(40, 4096), (40, 77), (80, 1024), (160, 256)])
def test_products_are_the_tensor_cores_and_probabilities_stay_where_they_are(head: int, keys: int) -> None:
    tile = tile_of(head, 4096, keys)
    kernel = compiled(head, tile, 90, single=keys <= tile.keys)
    products = re.findall(r"wgmma\.mma_async\S*|mma\.sync\S*", kernel.asm["ptx"])
    assert products
    assert all("wgmma" in product and product.endswith(".s32.s8.s8") for product in products)
    assert kernel.asm["ptx"].count("shfl.sync") <= REDUCTIONS
    assert kernel.metadata.shared <= 113 * 1024  # two blocks of a multiprocessor


def test_before_hopper_they_are_products_of_a_warp() -> None:
    products = re.findall(r"mma\.sync\S*", compiled(40, IntTile(64, 64, 4, 2), 80, single=False).asm["ptx"])
    assert products
    assert all(product.endswith(".s32.s8.s8.s32") for product in products)
