"""Integer products and what lies between them on NVIDIA GPUs, as `torch.library` operators.

Everything is channels-last: a picture is [B, H, W, C], contiguous, a sequence [..., K]. `x.permute(0, 3, 1, 2)` of a
picture is an ordinary channels-last [B, C, H, W] without a copy.

Codes of activations are signed here: x_s8 = x_q - 128 with x_q the code 0..255 of the artifact, and z' = z - 128 its
zero point. x_s8 - z' = x_q - z, so nothing changes in the sums, and the tensor cores get the int8 they want.

    acc[p, o] = sum_{inside} x_s8 * w_q + correction,    correction = -z' * sum_{inside} w_q        (exact, int32)   (1)
    y         = float32(acc) * multiplier[o] + bias[o]                                   (two roundings)            (2)
    y         = y_0 + y_1 + bias                  a split shortcut: one acc and one multiplier for each group        (3)
    out       = dtype(y), or dtype(y + float32(residual))                                                           (4)
    out       = clamp(round(y / scale) + zero_point, 0, largest) - 128                          codes for a product (5)
    out       = (5) of value * gelu(gate)         GEGLU: outputs are runs of 8 values, then their 8 gates            (6)

Which taps of a window lie inside the picture depends on the position; there are at most 16 cases (top, bottom, left,
right missing), so `correction` is a table [16, O] of int32, `Operand.correction`.

The public functions, in the order of use:

    operand = linear_operand(weighted, ...)  | conv2d_operand(weighted, ...)      once; its tensors are buffers
    x_q = codes_s8(x, scale, zero_point, largest)
    y = product(x_q, operand, residual=None, dtype=torch.bfloat16)
    y_q = product_codes(x_q, operand, scale, zero_point, largest)
    y_q = product_geglu_codes(x_q, operand, scale, zero_point, largest)
    y_q = group_norm_codes_s8(x, ...)

The operators run Triton kernels on CUDA, and exact torch arithmetic elsewhere (`exact`), which is what they are tested
against.
"""

from mezzotint.kernels.triton.operands import Operand, conv2d_operand, linear_operand
from mezzotint.kernels.triton.operators import (
    codes_s8,
    group_norm_codes_s8,
    product,
    product_codes,
    product_geglu_codes,
)

__all__ = [
    "Operand",
    "codes_s8",
    "conv2d_operand",
    "group_norm_codes_s8",
    "linear_operand",
    "product",
    "product_codes",
    "product_geglu_codes",
]
