"""Tensor descriptors with layouts, as `specialized` wants them: shared memory swizzled for wgmma."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor
from triton.experimental.gluon.language import NVMMASharedLayout
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from mezzotint.kernels.triton.tuning import SHARED, Config, Problem

if TYPE_CHECKING:
    from mezzotint.kernels.triton.launch import Product

PIECE = 64  # columns that an epilogue writes at once
HALF = 64  # rows of a tile that four warps compute


def most_stages(config: Config, buffers: int, item_bytes: int, bits: int = 8) -> int:
    """Stages of the ring that fit into shared memory beside `buffers` pieces of the result for each half."""
    room = SHARED - 2048 - 2 * buffers * HALF * PIECE * item_bytes - 16 * config.bk
    outputs = (config.bn + config.bn2) * (8 if bits == 8 else 12) // 8  # 4 bits: as they come, and unpacked
    return max(1, room // ((2 * HALF + outputs) * config.bk))


def describe(
    call: Product,
    config: Config,
    tile: tuple[int, int, int],
    flat: bool,
    out: Tensor,
    residual: Tensor | None,
    kind: str,
) -> list[TensorDescriptor]:
    """The picture, the weights' boxes of BN1 and of BN2 rows, the result and the residual."""
    p, (tb, th, tw) = call.problem, tile
    if p.stride == 1:
        picture = _box(call.x_q, [p.batch, p.height, p.width, p.channels], [tb, th, tw, config.bk])
    else:
        shape = [p.batch, p.height // 2, 2, p.width // 2, 2 * p.channels]
        picture = _box(call.x_q, shape, [tb, th, 1, tw, config.bk])
    columns = config.bk * p.bits // 8
    weights = [_box(call.weight, list(call.weight.shape), [n, 1, columns]) for n in (config.bn, config.bn2 or 16)]
    shape, box = _result(p, tile, config, flat, kind)
    result = _box(out, shape, box)
    return [picture, *weights, result, result if residual is None else _box(residual, shape, box)]


def _result(
    p: Problem, tile: tuple[int, int, int], config: Config, flat: bool, kind: str
) -> tuple[list[int], list[int]]:
    """Shape of a result, and the box of half a tile by PIECE columns of the product."""
    halved = 2 if kind == "geglu" else 1
    outputs, piece = p.outputs // halved, PIECE // halved
    width = min(tile[2], HALF)
    height = min(tile[1], HALF // width)
    shape, box = (
        ([p.rows, outputs], [HALF, piece])
        if flat
        else ([p.batch, p.out_height, p.out_width, outputs], [HALF // (width * height), height, width, piece])
    )
    return ([config.splits, *shape], [1, *box]) if kind == "sums" else (shape, box)


def _box(tensor: Tensor, shape: list[int], box: list[int]) -> TensorDescriptor:
    size = tensor.element_size()
    layout = NVMMASharedLayout(min(128, box[-1] * size), size * 8, rank=len(box))
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return TensorDescriptor(tensor, shape, strides, box, layout)
