"""The integer product of two activations, as attention has two of: q k^T and softmax(.) v.

    y = float32(sum_k (a_q - a_zero_point) (b_q - b_zero_point)) * (a_scale * b_scale)

Both inputs are quantized here, in float32; the output has the dtype of the first.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.errors import KernelError
from mezzotint.kernels.choose import AUTO, choose, prepare_matmul
from mezzotint.kernels.contract import KernelReport, Paired, matmul_shape
from mezzotint.kernels.traced import trace
from mezzotint.layers.int_base import IntLayer, as_float32, check_input_grid, fill_buffer_
from mezzotint.layers.spec import LayerSpec


class IntMatMul(IntLayer):
    """Integer torch.matmul; a [..., M, K], b [..., K, N] -> [..., M, N].

    Buffers:
        a_scale, b_scale: float32 [1].
        a_zero_point, b_zero_point: int32 [1].
    """

    a_scale: Tensor
    a_zero_point: Tensor
    b_scale: Tensor
    b_zero_point: Tensor

    def __init__(self, spec: LayerSpec, *, kernel: str = AUTO, device: torch.device | str | None = None) -> None:
        super().__init__(spec, kernel)
        if spec.input is None or spec.other is None or spec.input.groups or spec.other.groups:
            raise KernelError(f"matmul: each input needs a grid without groups, got {spec.input} and {spec.other}")
        check_input_grid(spec, spec.input)
        check_input_grid(spec, spec.other)
        self.a_grid, self.b_grid = spec.input, spec.other
        for name in ("a", "b"):
            self.register_buffer(f"{name}_scale", torch.ones(1, device=device))
            self.register_buffer(f"{name}_zero_point", torch.zeros(1, dtype=torch.int32, device=device))

    @classmethod
    def from_parts(
        cls,
        spec: LayerSpec,
        *,
        a_scale: Tensor,
        a_zero_point: Tensor,
        b_scale: Tensor,
        b_zero_point: Tensor,
        kernel: str = AUTO,
    ) -> Self:
        """A filled layer: float32 [1] scales and int32 [1] zero points."""
        layer = cls(spec, kernel=kernel, device=a_scale.device)
        parts = {"a_scale": a_scale, "a_zero_point": a_zero_point, "b_scale": b_scale, "b_zero_point": b_zero_point}
        for name, value in parts.items():
            fill_buffer_(layer, name, value)
        return layer

    def kernel_report(self) -> KernelReport:
        return choose(
            "matmul",
            self.a_scale.device,
            input_max=self.a_grid.quant_max,
            weight_max=self.b_grid.quant_max,
            kernel=self.kernel,
        )

    def forward(self, a: Float[Tensor, "... m k"], b: Float[Tensor, "... k n"]) -> Float[Tensor, "... m n"]:
        a_grid, b_grid, product, traced = self._ready()
        codes = torch.ops.mezzotint.codes
        a_q = codes(as_float32(a), *a_grid, self.a_grid.quant_max)
        b_q = codes(as_float32(b), *b_grid, self.b_grid.quant_max)
        compiling = torch.compiler.is_compiling()
        y = torch.ops.mezzotint.matmul(a_q, b_q, traced.number) if compiling else product(a_q, b_q)
        return y.to(a.dtype)

    def _make_operands(self) -> Any:
        a_zero_point, b_zero_point = int(self.a_zero_point), int(self.b_zero_point)
        multiplier = float(self.a_scale * self.b_scale)  # a float32 product
        constants = Paired(a_zero_point, b_zero_point, multiplier, self.a_grid.quant_max, self.b_grid.quant_max)
        product = prepare_matmul(self.kernel_report().name, constants)
        grids = (float(self.a_scale), a_zero_point), (float(self.b_scale), b_zero_point)
        return *grids, product, trace(product, matmul_shape, constants if self.kernel == AUTO else None)

    def extra_repr(self) -> str:
        kernel = self.kernel if self.a_scale.is_meta else self.kernel_report().name
        return f"a{self.a_grid.bits} x a{self.b_grid.bits}, kernel={kernel}"
