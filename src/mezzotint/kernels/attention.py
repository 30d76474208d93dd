"""Attention on codes as one function: scores, softmax, codes of the probabilities and their product with v.

    s   = (q_q - qz) (k_q - kz)^T                               exact int32                                  (1)
    p   = softmax(s * multiplier_qk * scale)                                                                 (2)
    p_q = clamp(round(p / p_scale) + p_zero_point, 0, p_max)                                                 (3)
    y   = float32((p_q - pz) (v_q - vz)) * multiplier_pv        exact int32                                  (4)

    name            dtype  shape           meaning
    q_q, k_q, v_q   uint8  [B, N|M, h d]   codes as the linear layers leave them, heads side by side
    y               float  [B, N, h d]     likewise

(1) and (4) are the sums of the two integer products, exactly. (2) is float arithmetic in an order of its own: the
largest score is subtracted as an integer, which is exact, an own exponential (2 ulp), sums in 16 lanes; p / p_scale is
one product. So p_q differs from the plain network's where it lies within a few 1e-7 of the edge between two codes, then
by one. The order is fixed: neither the number of threads nor the instruction set changes a bit.

Why: as separate operators the scores cross the memory six times (int32, float32, scaled, softmax, codes, product). With
heads of 8 channels that costs more than all products; here eight rows of them stay in the first cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from mezzotint.errors import KernelError
from mezzotint.kernels.contract import Paired
from mezzotint.kernels.native import library

CHANNELS_MAX = 2**15  # of a head: differences of scores fit int32


@dataclass(frozen=True)
class AttentionConstants:
    """Both products, the factor of the scores (positive), and the grid step of the probabilities."""

    qk: Paired
    pv: Paired
    scale: float
    p_scale: float


Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def prepare_attention(constants: AttentionConstants) -> Attention:
    """Equations (1) to (4) as a function of q_q, k_q, v_q and the number of heads.

    Raises:
        KernelError: the scale is not positive, or there is no library (`native.library`).
    """
    qk, pv, built = constants.qk, constants.pv, library()
    if built is None or not constants.scale > 0 or not qk.multiplier > 0:
        raise KernelError(f"attention: needs a C++ compiler and a positive scale, got scale={constants.scale}")
    factor = qk.multiplier * constants.scale
    grid = (constants.p_scale, pv.a_zero_point, pv.a_max)

    def attention(
        q_q: UInt8[Tensor, "b n c"], k_q: UInt8[Tensor, "b m c"], v_q: UInt8[Tensor, "b m c"], heads: int
    ) -> Float32[Tensor, "b n c"]:
        batch, queries, width = q_q.shape
        sizes = (batch, heads, queries, k_q.shape[1], width // heads)
        work = torch.empty(built.mezzotint_attention_work(*sizes), dtype=torch.uint8)
        operands = [codes.contiguous() for codes in (q_q, k_q, v_q)]
        out = torch.empty(q_q.shape, dtype=torch.float32)
        pointers = [codes.data_ptr() for codes in (*operands, work)]
        zeros = (qk.a_zero_point, pv.b_zero_point)
        built.mezzotint_attention(*pointers, *sizes, *zeros, factor, *grid, pv.multiplier, out.data_ptr())
        return out

    return attention
