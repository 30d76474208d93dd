"""The operators on CUDA: describes a product, picks its configuration, launches. Needs Triton.

`run` launches any configuration on any tensors, also on CPU tensors in Triton's interpreter, which the tests use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mezzotint.kernels.triton.arguments import some_or, step_of
from mezzotint.kernels.triton.check import Check
from mezzotint.kernels.triton.choice import device_of, launch_best
from mezzotint.kernels.triton.gathered import added_sums, gathered_product
from mezzotint.kernels.triton.operands import packed_bytes
from mezzotint.kernels.triton.tiled import tiled_product
from mezzotint.kernels.triton.tuning import Config, Problem, blocks_together, part_of, piece_of, spatial_tile

_EXACT: dict[str, Any] = {"enable_fp_fusion": False}  # a product and a sum stay two roundings


@dataclass(frozen=True)
class Product:
    """One call: the problem and its tensors, contiguous. `grid` is (scale, zero_point, largest) of codes."""

    problem: Problem
    x_q: Tensor
    weight: Tensor
    multiplier: Tensor
    correction: Tensor
    bias: Tensor | None
    residual: Tensor | None
    out: Tensor
    grid: tuple[float, int, int]

    @property
    def step(self) -> tuple[float, float, int, int]:
        """scale, its inverse rounded to float32, zero_point, largest."""
        return step_of(*self.grid)


def int8_product(
    x_q: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    correction: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    channels: int,
    bits: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    groups: list[int],
    dtype: torch.dtype,
) -> Tensor:
    """Equations (1) to (4) of the package."""
    window = (channels, bits, kernel, stride, padding, groups)
    call = describe(x_q, weight, multiplier, correction, bias, residual, *window, dtype, "float", (1.0, 0, 255))
    run_best(call)
    return call.out


def int8_product_codes(
    x_q: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    correction: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    channels: int,
    bits: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    groups: list[int],
    geglu: bool,
    scale: float,
    zero_point: int,
    largest: int,
) -> Tensor:
    """Equations (1) to (3), then (5) or (6)."""
    window = (channels, bits, kernel, stride, padding, groups)
    kind, grid = ("geglu" if geglu else "codes"), (scale, zero_point, largest)
    call = describe(x_q, weight, multiplier, correction, bias, residual, *window, torch.int8, kind, grid)
    run_best(call)
    return call.out


def describe(
    x_q: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    correction: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    channels: int,
    bits: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    groups: list[int],
    dtype: torch.dtype,
    kind: Any,
    grid: tuple[float, int, int],
) -> Product:
    """The call, with an empty result."""
    shape = _result_shape(x_q, weight, channels, kernel, stride, padding)
    window = kernel[0] > 1 or stride[0] > 1
    batch, height, width = x_q.shape[:3] if window else (1, 1, x_q.numel() // channels)
    out_height, out_width = shape[1:3] if window else (1, width)
    if kind == "geglu":
        shape = (*shape[:-1], shape[-1] // 2)
    problem = Problem(
        batch, height, width, channels, weight.shape[0], out_height, out_width, kernel[0], stride[0],
        (padding[0], padding[1], padding[2], padding[3]), bits, tuple(groups), kind, dtype.itemsize,
        residual is not None,
    )  # fmt: skip
    out = torch.empty(shape, dtype=dtype, device=x_q.device)
    rest = None if residual is None else residual.contiguous()
    return Product(problem, x_q.contiguous(), weight, multiplier, correction, bias, rest, out, grid)


def run_best(call: Product) -> None:
    """`run` with the configuration for `call` on its device; see `choice`."""
    if call.out.numel():
        launch_best(call.problem, call.x_q.device, lambda config: run(call, config), Check(call, run))


def run(call: Product, config: Config) -> None:
    """Fills `call.out`."""
    if call.out.numel() == 0:
        return
    if config.splits == 1:
        _launch(call, config, call.out, call.problem.kind)
        return
    p = call.problem
    sums = torch.empty((config.splits, p.rows, p.outputs), dtype=torch.int32, device=call.x_q.device)
    _launch(call, config, sums, "sums")
    bm, bn = 16, 128
    tiles_n = triton.cdiv(p.outputs, bn)
    added_sums[(triton.cdiv(p.rows, bm) * tiles_n,)](
        sums, call.out, some_or(call.residual, sums), call.correction, call.multiplier, some_or(call.bias,
        call.multiplier), *call.step, p.height, p.width, p.outputs, p.out_height, p.out_width, p.rows, tiles_n, BM=bm,
        BN=bn, **_window(p), HAS_BIAS=call.bias is not None, HAS_RESIDUAL=call.residual is not None, KIND=p.kind,
        SPLITS=config.splits, num_warps=4, **_EXACT,
    )  # fmt: skip


def _launch(call: Product, config: Config, out: Tensor, kind: str) -> None:
    {"tiled": _tiled, "gathered": _gathered}[config.kernel](call, config, out, kind)


def _tiled(call: Product, config: Config, out: Tensor, kind: str) -> None:
    p = call.problem
    tile = spatial_tile(p, config.bm)
    flat, counts, tiles_n = _cover(p, tile, config)
    tiles = math.prod(counts) * tiles_n * config.splits
    piece = piece_of(p, config, out.element_size())
    describe_rows = lambda t, n: _rows(t, p, tile, n, config, piece, flat, kind)  # noqa: E731
    first, second = _weight_boxes(call, config)
    out1, out2 = describe_rows(out, config.bn), describe_rows(out, config.bn2 or config.bn)
    residual1 = residual2 = out1
    if call.residual is not None and kind != "sums":
        residual1, residual2 = (describe_rows(call.residual, n) for n in (config.bn, config.bn2 or config.bn))
    at_once = device_of(out.device).multiprocessors * blocks_together(p, config)
    programs = min(tiles, at_once) if config.persistent else tiles
    tiled_product[(programs,)](
        _picture(call.x_q, p, (*tile, config.bk)), first, second, out1, out2, residual1, residual2, call.correction,
        call.multiplier, some_or(call.bias, call.multiplier), *call.step, p.height, p.width, p.channels,
        _boundary(p)[0], p.outputs, *counts, tiles_n, TB=tile[0], TH=tile[1], TW=tile[2],
        BK=config.bk, BN1=config.bn, BN2=config.bn2, **_window(p), HAS_BIAS=call.bias is not None,
        HAS_RESIDUAL=call.residual is not None, KIND=kind, FLAT=flat, BITS=p.bits, GROUPS=max(1, len(p.groups)),
        SPLITS=config.splits, STAGES=config.stages, BAND=config.band, FLATTEN=config.persistent, PIECE=piece,
        TURNED=config.turned, num_warps=config.warps, num_stages=config.stages, **_EXACT,
    )  # fmt: skip


def _cover(p: Problem, tile: tuple[int, int, int], config: Config) -> tuple[bool, tuple[int, int, int], int]:
    """Whether tiles are runs of rows of the result, how many there are along images, rows, columns; and outputs."""
    tb, th, tw = tile
    flat = tw == p.out_width and (tb == 1 or th == p.out_height) and p.out_height % th == 0
    counts = (triton.cdiv(p.batch, tb), triton.cdiv(p.out_height, th), triton.cdiv(p.out_width, tw))
    return flat or p.out_height == p.batch == 1, counts, triton.cdiv(p.outputs, config.bn + config.bn2)


def _gathered(call: Product, config: Config, out: Tensor, kind: str) -> None:
    p = call.problem
    tiles_m, tiles_n = triton.cdiv(p.rows, config.bm), triton.cdiv(p.outputs, config.bn)
    gathered_product[(tiles_m * tiles_n * config.splits,)](
        call.x_q, call.weight, out, some_or(call.residual, out), call.correction, call.multiplier,
        some_or(call.bias, call.multiplier), *call.step, p.height, p.width, p.channels, call.weight.shape[2],
        *_boundary(p), p.outputs, p.out_height, p.out_width, p.rows, tiles_m, tiles_n,
        BM=config.bm, BN=config.bn, BK=config.bk, **_window(p), HAS_BIAS=call.bias is not None,
        HAS_RESIDUAL=call.residual is not None and kind != "sums", KIND=kind, BITS=p.bits,
        GROUPS=max(1, len(p.groups)), SPLITS=config.splits, STAGES=config.stages, BAND=config.band,
        num_warps=config.warps, num_stages=config.stages, **_EXACT,
    )  # fmt: skip


def _boundary(p: Problem) -> tuple[int, int]:
    """Channels of the first group, and bytes of their weights in a tap."""
    first = p.groups[0] if p.groups else p.channels
    return first, packed_bytes(first, p.bits)


def _picture(x_q: Tensor, p: Problem, box: tuple[int, int, int, int]) -> TensorDescriptor:
    tb, th, tw, bk = box
    if p.stride == 1:
        shape, block = [p.batch, p.height, p.width, p.channels], [tb, th, tw, bk]
    else:
        shape, block = [p.batch, p.height // 2, 2, p.width // 2, 2 * p.channels], [tb, th, 1, tw, bk]
    return TensorDescriptor(x_q, shape, _strides(shape), block)


def _weight_boxes(call: Product, config: Config) -> tuple[TensorDescriptor, TensorDescriptor]:
    """Of the first BN1 and the next BN2 outputs; of a split shortcut, of the first and the second group."""
    p, weight = call.problem, call.weight

    def box(part: Tensor, outputs: int) -> TensorDescriptor:
        by_tap = part.transpose(0, 1)
        return TensorDescriptor(
            by_tap, list(by_tap.shape), list(by_tap.stride()), [1, outputs, config.bk * p.bits // 8]
        )

    if not p.groups:
        return box(weight, config.bn), box(weight, config.bn2 or config.bn)
    cut = _boundary(p)[1]
    return box(weight[:, :, :cut], config.bn), box(weight[:, :, cut:], config.bn)


def _rows(
    t: Tensor, p: Problem, tile: tuple[int, int, int], bn: int, config: Config, piece: int, flat: bool, kind: str
) -> TensorDescriptor:
    """Descriptor of a result: rows by columns, or pictures; of sums with an axis for the splits before.

    A box is a whole tile by `piece` of its `bn` outputs, or (turned) `piece` positions by all of them.
    """
    halved = 2 if kind == "geglu" else 1
    outputs, columns = p.outputs // halved, (bn if config.turned else min(bn, piece)) // halved
    while config.turned and math.prod(tile) > piece:
        tile = part_of(tile)
    shape, box = ([p.rows, outputs], [math.prod(tile), columns]) if flat else (
        [p.batch, p.out_height, p.out_width, outputs], [*tile, columns]
    )  # fmt: skip
    if kind == "sums":
        shape, box = [config.splits, *shape], [1, *box]
    return TensorDescriptor(t, shape, _strides(shape), box)


def _strides(shape: list[int]) -> list[int]:
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def _window(p: Problem) -> dict[str, Any]:
    return {
        "KERNEL": p.kernel,
        "STRIDE": p.stride,
        "PAD_TOP": p.padding[0],
        "PAD_LEFT": p.padding[2],
        "HAS_EDGES": p.edges,
    }


def _result_shape(
    x_q: Tensor, weight: Tensor, channels: int, kernel: list[int], stride: list[int], padding: list[int]
) -> tuple[int, ...]:
    from mezzotint.kernels.triton.operators import result_shape

    return result_shape(x_q.shape, weight.shape, channels, kernel, stride, padding)
