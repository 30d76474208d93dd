"""What a lowered network reads beside its inputs: weights of the layers as the kernels want them, on the device, once.

The graphs of all input shapes share them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mezzotint.errors import KernelError
from mezzotint.kernels.contract import Weighted
from mezzotint.kernels.triton import Operand, conv2d_operand, linear_operand
from mezzotint.layers.float_attention import OutputShift
from mezzotint.layers.int_base import IntLayer, IntWeightedLayer
from mezzotint.layers.integer import IntConv2d


class Constants:
    """Operands of products by the layers they come from; made on first use, on the device of the layers.

    Args:
        shift: comes off the bias of the layer that it names.

    Attributes:
        norms: float32 parameters of norms by their names in the network.
    """

    def __init__(self, layers: Mapping[str, IntLayer], shift: OutputShift | None = None) -> None:
        self.layers = layers
        self._shift = shift
        self.norms: dict[str, Tensor] = {}
        self._made: dict[Any, Operand] = {}

    def operand(self, names: tuple[str, ...], edges: tuple[int, ...], geglu: bool) -> Operand:
        """The operand of `names` side by side."""
        key = (names, edges, geglu)
        if key not in self._made:
            try:
                self._made[key] = self._make(names, edges, geglu)
            except KernelError as error:
                raise KernelError(f"{', '.join(names)}: {error}; call the network without optimize") from error
        return self._made[key]

    def nbytes(self) -> int:
        """Bytes of all operands made so far."""
        tensors = [value for o in self._made.values() for value in (o.weight, o.multiplier, o.correction, o.bias)]
        return sum(value.nbytes for value in tensors if value is not None)

    def _make(self, names: tuple[str, ...], edges: tuple[int, ...], geglu: bool) -> Operand:
        first = self.layers[names[0]]
        if isinstance(first, IntConv2d):
            padding = first.geometry.padding
            own = (padding[0], padding[0], padding[1], padding[1])
            around: Any = tuple(a + b for a, b in zip(own, edges, strict=True))
            bias = self._bias(names[0])
            parts, whole = _weighted(first, bias), bias if first.groups else None
            return conv2d_operand(parts, bias=whole, padding=around, bits=_stored_bits(first))
        parts = [part for name in names for part in _weighted(self.layers[name], self._bias(name))]
        return linear_operand(parts, bits=_stored_bits(first), geglu=geglu)

    def _bias(self, name: str) -> Tensor | None:
        layer = self.layers[name]
        assert isinstance(layer, IntWeightedLayer)
        if self._shift is None or self._shift.layer != name or layer.bias is None:
            return layer.bias
        return layer.bias - self._shift.tensor(layer.bias)


def _stored_bits(layer: IntLayer) -> int:
    assert isinstance(layer, IntWeightedLayer)
    return 4 if layer.weight_grid.bits == 4 else 8


def _weighted(layer: IntLayer, whole: Tensor | None) -> list[Weighted]:
    """Constants of every group of input channels of `layer`; the bias `whole` where there is one group."""
    assert isinstance(layer, IntWeightedLayer)
    assert layer.spec.input is not None
    weight, largest, groups = layer.weight_codes(), layer.spec.input.quant_max, layer.group_constants()
    bias = whole if len(groups) == 1 else None
    extra: dict[str, Any] = {"geometry": layer.geometry} if isinstance(layer, IntConv2d) else {}
    return [
        Weighted(weight[:, slice(*channels)].contiguous(), multiplier, bias, zero_point, largest, **extra)
        for channels, _, zero_point, multiplier in groups
    ]
