"""What integer layers share: packed weights as buffers, and operands of a kernel made from them when they are needed.

A layer's state is what an artifact holds, nothing more. Everything a kernel wants beyond that (unpacked, repacked,
transposed weights, multipliers) is derived on first use by `prepare_kernel_`, lives in a plain attribute, and is
dropped whenever the state may have changed (`to`, `load_state_dict`) and in copies and pickles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from mezzotint.errors import KernelError
from mezzotint.grid.affine import dequantize
from mezzotint.grid.packing import pack, packed_bytes, unpack
from mezzotint.grid.spec import GridSpec
from mezzotint.kernels import fused  # noqa: F401 - defines the operator mezzotint::codes
from mezzotint.kernels.choose import AUTO
from mezzotint.kernels.contract import KernelReport, Product, Weighted
from mezzotint.kernels.traced import Traced
from mezzotint.layers.spec import LayerSpec


@dataclass(frozen=True, eq=False)
class Part:
    """One group of input channels, ready to run: first and last + 1, grid of its codes, product, its traced twin."""

    channels: tuple[int | None, int | None]
    scale: float
    zero_point: int
    product: Product
    traced: Traced


class IntLayer(nn.Module):
    """A module whose operands are derived from its buffers, lazily.

    Attributes:
        kernel: "auto" or the name of a kernel to insist on; see `kernels.choose`.
        keep_packed: weights stay packed in memory; every call unpacks and prepares them anew. The same bits, slower.
    """

    def __init__(self, spec: LayerSpec, kernel: str = AUTO) -> None:
        super().__init__()
        self.spec = spec
        self.kernel = kernel
        self.keep_packed = False
        self._operands: Any = None

    def prepare_kernel_(self) -> Self:
        """Makes the operands of the kernel now instead of in the first `forward`."""
        self._operands = self._make_operands()
        return self

    @property
    def operands(self) -> Any:
        """What the kernel computes with; None before `prepare_kernel_` and after the state may have changed."""
        return self._operands

    def kernel_report(self) -> KernelReport:
        """Which kernel this layer runs on where it is now, and why."""
        raise NotImplementedError

    def _make_operands(self) -> Any:
        raise NotImplementedError

    def prepared(self, constants: Callable[[], Weighted], prepare: Callable[[Weighted], Product]) -> Product:
        """The product of `constants`: made once, or, with `keep_packed`, made anew in every call."""
        if not self.keep_packed:
            return prepare(constants())
        return lambda x_q: prepare(replace(constants(), again=None))(x_q)  # unpacked once, not twice

    def _ready(self) -> Any:
        if self._operands is None:
            self.prepare_kernel_()
        return self._operands

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves the buffers, but never casts them: scales stay float32 in a float16 network."""
        self._operands = None

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        self._operands = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_operands": None}


class IntWeightedLayer(IntLayer):
    """An integer layer with weights.

    Buffers:
        weight_packed: uint8 [bytes], the codes of the weights, `grid.packing`.
        weight_scale: float32 [G, O].
        input_scale, input_zero_point: float32 [G], int32 [G]; absent when activations stay in float. [T] in a layer
            with a grid for every time.
        bias: float32 [O], or absent.
    """

    weight_packed: Tensor
    weight_scale: Tensor
    input_scale: Tensor | None
    input_zero_point: Tensor | None
    bias: Tensor | None

    def __init__(
        self, spec: LayerSpec, weight_shape: tuple[int, ...], bias: bool, kernel: str, device: torch.device | str | None
    ) -> None:
        super().__init__(spec, kernel)
        self.weight_grid = _weight_grid(spec)
        self.weight_shape = weight_shape
        self.groups = _common_groups(spec, self.weight_grid)
        count = weight_shape[0]
        for size in weight_shape[1:]:
            count *= size
        n_bytes = packed_bytes(count, self.weight_grid.bits)
        self.register_buffer("weight_packed", torch.zeros(n_bytes, dtype=torch.uint8, device=device))
        self.register_buffer("weight_scale", torch.ones(self.weight_grid.n_groups, weight_shape[0], device=device))
        grids = 0 if spec.input is None else spec.times or spec.input.n_groups
        self.register_buffer("input_scale", torch.ones(grids, device=device) if grids else None)
        zero_point = torch.zeros(grids, dtype=torch.int32, device=device) if grids else None
        self.register_buffer("input_zero_point", zero_point)
        self.register_buffer("bias", torch.zeros(weight_shape[0], device=device) if bias else None)

    def weight_codes(self) -> Tensor:
        """int8 codes in the shape of the weight, unpacked anew."""
        return unpack(self.weight_packed, self.weight_grid.bits, self.weight_shape, self.weight_grid.signed)

    def dequantized_weight(self) -> Tensor:
        """float32 weight that the codes stand for."""
        zero = torch.zeros_like(self.weight_scale, dtype=torch.int32)
        return dequantize(self.weight_codes(), self.weight_scale, zero, self.weight_grid)

    def fill_(
        self,
        weight_codes: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None,
        input_scale: Tensor | None,
        input_zero_point: Tensor | None,
    ) -> Self:
        """Sets the state from unpacked parts, checking every one against the layer; KernelError if one does not fit."""
        self._operands = None
        if tuple(weight_codes.shape) != self.weight_shape or weight_codes.dtype != self.weight_grid.dtype:
            raise KernelError(
                f"weight_codes must be {self.weight_grid.dtype} {list(self.weight_shape)}, "
                f"got {weight_codes.dtype} {list(weight_codes.shape)}"
            )
        parts = {
            "weight_packed": pack(weight_codes, self.weight_grid.bits),
            "weight_scale": weight_scale,
            "bias": bias,
            "input_scale": input_scale,
            "input_zero_point": input_zero_point,
        }
        for name, value in parts.items():
            fill_buffer_(self, name, value)
        return self

    def group_constants(self) -> list[tuple[tuple[int | None, int | None], float, int, Tensor]]:
        """(channels, input scale, input zero point, multiplier [O]) of each group of input channels."""
        if self.input_scale is None or self.input_zero_point is None:
            raise KernelError("a layer with float activations has no integer product")
        slices = _group_slices(self.groups)
        scales = self.input_scale.expand(len(slices))
        zero_points = self.input_zero_point.expand(len(slices)).tolist()
        weight_scales = self.weight_scale.expand(len(slices), -1)
        return [
            (channels, float(scales[g]), zero_points[g], scales[g] * weight_scales[g])
            for g, channels in enumerate(slices)
        ]

    def description(self) -> str:
        """Bits and kernel, for `extra_repr`."""
        activation = 32 if self.spec.input is None else self.spec.input.bits
        groups = f", groups={self.groups}" if self.groups else ""
        return f"w{self.weight_grid.bits}a{activation}{groups}, kernel={self.kernel_name()}"

    def kernel_name(self) -> str:
        """The kernel that runs, or the setting while the layer is nowhere (on the meta device)."""
        return self.kernel if self.weight_packed.is_meta else self.kernel_report().name


def as_float32(x: Tensor) -> Tensor:
    """`x` without its gradient, as float32."""
    x = x.detach() if x.requires_grad else x
    return x if x.dtype == torch.float32 else x.float()


def fill_buffer_(layer: nn.Module, name: str, value: Tensor | None) -> None:
    """Sets buffer `name` of `layer` to a copy of `value`; KernelError unless shape, dtype and absence agree."""
    old = getattr(layer, name)
    wanted = "nothing" if old is None else f"{old.dtype} {list(old.shape)}"
    came = "nothing" if value is None else f"{value.dtype} {list(value.shape)}"
    if wanted != came:
        raise KernelError(f"{type(layer).__name__}.{name} must be {wanted}, got {came}")
    setattr(layer, name, None if value is None else value.detach().clone())


def check_input_grid(spec: LayerSpec, grid: GridSpec | None) -> None:
    """Raises KernelError unless `grid` is absent or unsigned: kernels take uint8 activations."""
    if grid is not None and grid.signed:
        raise KernelError(f"{spec.kind}: activations need an unsigned grid, got {grid}")


def _weight_grid(spec: LayerSpec) -> GridSpec:
    if spec.weight is None or not spec.weight.signed or spec.weight.axis != 0:
        raise KernelError(f"{spec.kind}: weights need a signed grid with axis=0, got {spec.weight}")
    return spec.weight


def _common_groups(spec: LayerSpec, weight: GridSpec) -> tuple[int, ...]:
    """Channel counts of the groups of input channels, () for one group."""
    check_input_grid(spec, spec.input)
    inputs = () if spec.input is None else spec.input.groups
    if inputs and weight.groups and inputs != weight.groups:
        raise KernelError(f"{spec.kind}: input groups {inputs} and weight groups {weight.groups} differ")
    return inputs or weight.groups


def _group_slices(groups: tuple[int, ...]) -> list[tuple[int | None, int | None]]:
    if not groups:
        return [(None, None)]
    ends = [sum(groups[: i + 1]) for i in range(len(groups))]
    return [(end - size, end) for size, end in zip(groups, ends, strict=True)]
