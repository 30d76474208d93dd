"""softmax(q k^T s) v of all heads at once, without the matrix of scores: two operators.

    mezzotint::flash_attention          in the dtype of q
    mezzotint::flash_attention_codes    the same, then equation (5) of the package: codes for the output projection

    name     shape       meaning
    q        [B, N, C]   `heads` heads of d = C / heads channels side by side; rows may lie apart (a part of q, k, v)
    k, v     [B, M, C]

Many keys (self-attention) are torch's scaled_dot_product_attention, which takes cuDNN's kernel on Hopper; q, k and v
go in as strided views and the result comes back as rows, without copies. For 16 x 8 heads of 40 over 4,096 tokens
cuDNN's was a sixth faster than ours, which is more than codes in an epilogue save. Few keys (cross-attention) are ours
(`flash`): reading q and writing the result is what takes the time there, and codes of it are half of that.

Neither torch's fast kernels nor ours take heads of more than 256 channels, and latent diffusion models have some: one
head of 384, 576 and 960. For those torch falls back to a kernel of an older generation that keeps its sums in memory.
One such head is three steps instead: scores in float32, softmax, the product with v, on tensor cores at full rate.

Both products are of bfloat16 or float16 with float32 sums; probabilities are rounded to the dtype of v, as in every
flash attention. The model was calibrated with 8-bit q, k, probabilities and v; products of floats are nearer to the
float model than that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor

from mezzotint.errors import KernelError
from mezzotint.kernels.triton import exact

_OPERATORS = torch.library.Library("mezzotint", "FRAGMENT")
_SCHEMA = "Tensor q, Tensor k, Tensor v, int heads, float scale"
MOST_CHANNELS = 256  # of a head in one kernel
MOST_KEYS = 4096  # of a head that is wider
FEW_KEYS = 128  # their scores fit in registers


def flash_attention(
    q: Float[Tensor, "b n c"], k: Float[Tensor, "b m c"], v: Float[Tensor, "b m c"], heads: int, scale: float
) -> Float[Tensor, "b n c"]:
    """softmax(q k^T scale) v for each head."""
    return torch.ops.mezzotint.flash_attention(q, k, v, heads, scale)


def flash_attention_codes(
    q: Float[Tensor, "b n c"],
    k: Float[Tensor, "b m c"],
    v: Float[Tensor, "b m c"],
    heads: int,
    scale: float,
    step: float,
    zero_point: int,
    largest: int = 255,
) -> Int8[Tensor, "b n c"]:
    """Signed codes of `flash_attention` on the grid (step, zero_point 0..255, largest), not rounded in between."""
    return torch.ops.mezzotint.flash_attention_codes(q, k, v, heads, scale, step, zero_point, largest)


def _check(q: Tensor, k: Tensor, v: Tensor, heads: int) -> None:
    b, _, c = q.shape
    if k.shape != v.shape or k.shape[0] != b or k.shape[2] != c or c % heads:
        shapes = [list(x.shape) for x in (q, k, v)]
        raise KernelError(f"attention: want q [B, N, C], k and v [B, M, C], C a multiple of {heads}, got {shapes}")


def _meta(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    _check(q, k, v, heads)
    return q.new_empty(q.shape)


def _codes_meta(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, step: float, zero_point: int, largest: int
) -> Tensor:
    _check(q, k, v, heads)
    return q.new_empty(q.shape, dtype=torch.int8)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """In float32."""
    _check(q, k, v, heads)
    a, b, c = (x.float().unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(a, b, c, scale=scale).transpose(1, 2).flatten(2)


def exact_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """`flash_attention` in plain torch, in float32 until the end."""
    return _attend(q, k, v, heads, scale).to(q.dtype).contiguous()


def exact_attention_codes(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, step: float, zero_point: int, largest: int
) -> Tensor:
    """`flash_attention_codes` in plain torch."""
    return exact.nhwc_codes(_attend(q, k, v, heads, scale), None, step, zero_point, largest)


def _on_gpu(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    _check(q, k, v, heads)
    if refuses(q, k, heads) is None:
        from mezzotint.kernels.triton import flash

        return flash.attend(q, k, v, heads, scale, None)
    return _in_torch(q, k, v, heads, scale).contiguous()


def _codes_on_gpu(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, step: float, zero_point: int, largest: int
) -> Tensor:
    _check(q, k, v, heads)
    if refuses(q, k, heads) is None:
        from mezzotint.kernels.triton import flash

        return flash.attend(q, k, v, heads, scale, (step, zero_point, largest))
    mixed = _in_torch(q, k, v, heads, scale).contiguous()
    return torch.ops.mezzotint.nhwc_codes(mixed, None, step, zero_point, largest)


def _in_torch(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """A view where torch keeps the layout of q: its cuDNN and flash kernels do."""
    if is_wide(q, k, heads):
        from mezzotint.kernels.triton import flash

        scores = torch.bmm(q, k.transpose(1, 2), out_dtype=torch.float32)
        return torch.bmm(flash.softmax(scores, scale, v.dtype), v)
    a, b, c = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(a, b, c, scale=scale).transpose(1, 2).flatten(2)


def is_wide(q: Tensor, k: Tensor, heads: int) -> bool:
    """Whether it is one head of more channels than fused kernels take, with scores that fit in memory."""
    half = q.dtype in (torch.bfloat16, torch.float16)
    return heads == 1 and q.shape[2] > MOST_CHANNELS and half and k.shape[1] <= MOST_KEYS


def refuses(q: Tensor, k: Tensor, heads: int) -> str | None:
    """Why q and k like these go to torch's own attention, or None."""
    d = q.shape[2] // heads
    if k.shape[1] > FEW_KEYS:
        return f"it is for up to {FEW_KEYS} keys, got {k.shape[1]}"
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"its products are of bfloat16 and float16, got {q.dtype}"
    if d % 8 or d > MOST_CHANNELS:
        return f"heads have up to {MOST_CHANNELS} channels in steps of 8, got {d}"
    return None


for _name, _more, _shape_of, _cpu, _gpu in (
    ("flash_attention", "", _meta, exact_attention, _on_gpu),
    (
        "flash_attention_codes",
        ", float step, int zero_point, int largest",
        _codes_meta,
        exact_attention_codes,
        _codes_on_gpu,
    ),
):
    _OPERATORS.define(f"{_name}({_SCHEMA}{_more}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
    _OPERATORS.impl(_name, _shape_of, "Meta")
    _OPERATORS.impl(_name, _cpu, "CPU")
    _OPERATORS.impl(_name, _gpu, "CUDA")
