"""The integer layer with a grid for every time: `timed.FakeQuantTimedLinear` on integers.

    y = float32(acc) * (input_scale[r] * weight_scale[o]) + bias,    acc = sum_k (x_q - z_r) w_q exactly       (1)

r is the row of the tables, another one for every row of the batch, and z_r its zero point. The kernels take one zero
point for all rows, so z_r becomes data: with S_o = sum_k w_q,

    acc = sum_k x_q w_q + z_r (-S_o)                                                                          (2)

is a product without zero point of more columns, whose codes are z_r and whose weights add up to -S_o. As many as it
takes for each to be an int8; then some more, so that their number suits every kernel. Every kernel gives the exact acc,
and with multiplier 1 returns float32(acc), so that (1) has the same bits as a plain integer layer with the grid r.
"""

from __future__ import annotations

from functools import partial
from typing import Self

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from mezzotint.errors import KernelError
from mezzotint.kernels.choose import AUTO, choose, prepare_linear
from mezzotint.kernels.contract import WEIGHT_MAX, KernelReport, Product, Weighted, linear_shape
from mezzotint.kernels.traced import Traced, trace
from mezzotint.layers.int_base import IntWeightedLayer, as_float32
from mezzotint.layers.spec import LayerSpec
from mezzotint.layers.timed import codes_by_row, split_tag

ALIGNED = 16  # columns of a product come in multiples of this
_LARGEST = WEIGHT_MAX - 1


class IntTimedLinear(IntWeightedLayer):
    """Integer nn.Linear of a time layer; x [B, K + 1] -> [B, O], or [B, O + 1] where it hands the time on.

    Buffers:
        input_scale, input_zero_point: float32 [T], int32 [T]; the others as `IntWeightedLayer`.
    """

    def __init__(
        self,
        spec: LayerSpec,
        in_features: int,
        out_features: int,
        *,
        hands_on: bool,
        bias: bool = True,
        kernel: str = AUTO,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(spec, (out_features, in_features), bias, kernel, device)
        if spec.input is None or not spec.times or self.groups:
            raise KernelError(f"a linear layer by time needs a grid without groups for each of its times, got {spec}")
        self.grid = spec.input
        self.hands_on = hands_on

    @classmethod
    def like(cls, linear: nn.Linear, spec: LayerSpec, *, hands_on: bool) -> Self:
        """An empty integer layer in the shape of a float one, on its device."""
        bias, device = linear.bias is not None, linear.weight.device
        return cls(spec, linear.in_features, linear.out_features, hands_on=hands_on, bias=bias, device=device)

    @classmethod
    def from_parts(
        cls,
        spec: LayerSpec,
        weight_codes: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None,
        input_scale: Tensor,
        input_zero_point: Tensor,
        *,
        hands_on: bool,
        kernel: str = AUTO,
    ) -> Self:
        """A filled layer: int8 [O, K], float32 [1, O], float32 [O] or None, float32 [T], int32 [T]."""
        (out_features, in_features), device = weight_codes.shape, weight_codes.device
        layer = cls(
            spec, in_features, out_features, hands_on=hands_on, bias=bias is not None, kernel=kernel, device=device
        )
        return layer.fill_(weight_codes, weight_scale, bias, input_scale, input_zero_point)

    def kernel_report(self) -> KernelReport:
        report = choose("linear", self.weight_packed.device, input_max=self.grid.quant_max, kernel=self.kernel)
        return report._replace(reason=f"{report.reason}; a grid for each of {self.spec.times} times")

    def forward(self, x: Float[Tensor, "b k"]) -> Float[Tensor, "b o"]:
        product, traced, columns = self._ready()
        values, rows = split_tag(as_float32(x))
        scale, zero_point = self.input_scale[rows], self.input_zero_point[rows]  # type: ignore[index]
        codes = codes_by_row(values, scale, zero_point, self.grid).to(torch.uint8)
        x_q = torch.cat([codes, zero_point.to(torch.uint8)[:, None].expand(-1, columns)], dim=1)
        compiling = torch.compiler.is_compiling()
        acc = torch.ops.mezzotint.linear(x_q, traced.number) if compiling else product(x_q)
        y = acc * (scale[:, None] * self.weight_scale)
        y = (y if self.bias is None else y + self.bias).to(x.dtype)
        return torch.cat([y, x[:, -1:]], dim=1) if self.hands_on else y

    def _make_operands(self) -> tuple[Product, Traced, int]:
        columns = zero_point_columns(self.weight_codes()).shape[1]
        multiplier = torch.ones_like(self.weight_scale[0])

        def constants() -> Weighted:
            codes = self.weight_codes()
            return Weighted(
                torch.cat([codes, zero_point_columns(codes)], dim=1), multiplier, None, 0, self.grid.quant_max
            )

        product = self.prepared(constants, partial(prepare_linear, self.kernel_report().name))
        return product, trace(product, partial(linear_shape, constants=constants().without_weights())), columns

    def extra_repr(self) -> str:
        return f"{self.weight_shape[1]}, {self.weight_shape[0]}, times={self.spec.times}, {self.description()}"


def zero_point_columns(weight_codes: Int8[Tensor, "o k"]) -> Int8[Tensor, "o e"]:
    """Weights of the columns of (2) that carry the zero point: in each row they add up to -S_o."""
    sums = -weight_codes.sum(dim=1, dtype=torch.int64)
    needed = -(-int(sums.abs().max()) // _LARGEST)
    columns = needed + -(needed + weight_codes.shape[1]) % ALIGNED
    base = sums.div(max(columns, 1), rounding_mode="floor")
    one_more = torch.arange(columns, device=sums.device) < (sums - base * columns)[:, None]
    return (base[:, None] + one_more).to(torch.int8)
