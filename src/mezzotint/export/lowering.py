"""A QDQ graph in integers that ONNX Runtime multiplies: MatMulIntegerToFloat for every quantized product.

    y = conv(dequantize(x_q), dequantize(codes)) + bias  ->  columns(x_q) @ codes * (x_scale * scale) + bias      (1)

ONNX Runtime turns a QDQ convolution into integers only where the output is quantized too. Ours are read in float, by a
norm or a sum, so it would run them as float convolutions of dequantized weights: slower than the float network. Its
product of integers with a float result, MatMulIntegerToFloat, has no such condition, is threaded and packs its weights
once, on x86 and ARM64 alike. A convolution becomes that product by laying the codes of every window side by side:

    name     dtype    shape                   meaning
    x_q      uint8    [B, C, H, W]            codes of the activation
    columns  uint8    [B, H', W', kh kw C]    the window around every output pixel; outside the picture x_zero_point
    codes    int8     [kh kw C, O]            weight codes in the same order

The int32 sums are exact, so (1) is the integer layer's own equation; only its last addition may be fused.

Rejected: ConvInteger, exact as well and simpler, but much slower than (1), with signed weights slower than float; and
QLinearConv, which rounds its output to 8 bits.

The rewriting is done by onnxscript's rewriter when a model is loaded; the file stays the standard QDQ graph, which
other runtimes read. Grouped convolutions are left as they are.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from mezzotint.export.extra import need

CONTRIB = "com.microsoft"
_TO_CHANNELS_LAST, _TO_CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
_MIDDLE = 128  # code of 0 among unsigned weights
_TO_THE_END = np.iinfo(np.int64).max


def lower(model: Any, *, unsigned: bool = False) -> bytes:
    """The serialized `model` (onnx_ir, modified) with its quantized products as integer ones, for ONNX Runtime.

    Args:
        unsigned: store weight codes as uint8, 128 more, with 128 as their zero point: the same integers by products of
            unsigned bytes, which are exact on every processor and slower where the signed ones are.
    """
    ir, rewriter = need("onnx_ir"), need("onnxscript.rewriter")
    ir.external_data.load_to_model(model)
    model.opset_imports[CONTRIB] = 1
    rewriter.rewrite(model, pattern_rewrite_rules=_rules(unsigned))
    return ir.to_proto(model).SerializeToString()


def _rules(unsigned: bool) -> list[Any]:
    rule = need("onnxscript.rewriter.pattern").RewriteRule
    conv = functools.partial(_lower_conv, unsigned=unsigned)
    linear = functools.partial(_lower_linear, unsigned=unsigned)
    parts = (
        (_conv_with_bias, conv, _is_plain_conv),
        (_conv, conv, _is_plain_conv),
        (_linear_with_bias, linear, _has_codes),
        (_linear, linear, _has_codes),
        (_product, _lower_product, _are_activations),
    )
    return [rule(pattern, rewrite, check, remove_nodes=False) for pattern, rewrite, check in parts]


def _conv_with_bias(op: Any, x_q: Any, x_scale: Any, x_zero_point: Any, codes: Any, scale: Any, bias: Any) -> Any:
    x = op.DequantizeLinear(x_q, x_scale, x_zero_point)
    return op.Conv(x, op.DequantizeLinear(codes, scale), bias, _outputs=["y"])


def _conv(op: Any, x_q: Any, x_scale: Any, x_zero_point: Any, codes: Any, scale: Any) -> Any:
    x = op.DequantizeLinear(x_q, x_scale, x_zero_point)
    return op.Conv(x, op.DequantizeLinear(codes, scale), _outputs=["y"])


def _linear_with_bias(op: Any, x_q: Any, x_scale: Any, x_zero_point: Any, codes: Any, scale: Any, bias: Any) -> Any:
    return op.Add(_linear(op, x_q, x_scale, x_zero_point, codes, scale), bias)


def _linear(op: Any, x_q: Any, x_scale: Any, x_zero_point: Any, codes: Any, scale: Any) -> Any:
    return op.MatMul(op.DequantizeLinear(x_q, x_scale, x_zero_point), op.DequantizeLinear(codes, scale))


def _product(op: Any, x_q: Any, x_scale: Any, x_zero_point: Any, y_q: Any, y_scale: Any, y_zero_point: Any) -> Any:
    x = op.DequantizeLinear(x_q, x_scale, x_zero_point)
    return op.MatMul(x, op.DequantizeLinear(y_q, y_scale, y_zero_point))


def _has_codes(context: Any, codes: Any, bias: Any = None, **_: Any) -> bool:
    """Whether the weight is an initializer, and the sum behind it, if there is one, that of a bias."""
    return codes.const_value is not None and (bias is None or (bias.const_value is not None and len(bias.shape) == 1))


def _is_plain_conv(context: Any, codes: Any, y: Any, **_: Any) -> bool:
    return codes.const_value is not None and _ints(y, "group", [1]) == [1]


def _are_activations(context: Any, y_q: Any, **_: Any) -> bool:
    return y_q.const_value is None


def _lower_conv(
    op: Any,
    x_q: Any,
    x_scale: Any,
    x_zero_point: Any,
    codes: Any,
    scale: Any,
    y: Any,
    *,
    unsigned: bool,
    bias: Any = None,
) -> Any:
    weight = codes.const_value.numpy()  # [O, C, kh, kw]
    window = _Window(y, weight.shape[2:])
    columns = window.columns(op, op.Transpose(x_q, perm=_TO_CHANNELS_LAST), x_zero_point, codes.name)
    flat = weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])
    operand = _weight(op, codes.name, flat, unsigned)
    return op.Transpose(
        _integer_product(op, columns, operand, x_scale, scale, x_zero_point, bias), perm=_TO_CHANNELS_FIRST
    )


def _lower_linear(
    op: Any, x_q: Any, x_scale: Any, x_zero_point: Any, codes: Any, scale: Any, *, unsigned: bool, bias: Any = None
) -> Any:
    operand = _weight(op, codes.name, codes.const_value.numpy(), unsigned)
    return _integer_product(op, x_q, operand, x_scale, scale, x_zero_point, bias)


def _weight(op: Any, name: str, codes: np.ndarray, unsigned: bool) -> tuple[Any, Any]:
    """Initializers of weight codes [K, O] and of their zero point, None where that is 0."""
    wide = codes.astype(np.int16)
    if not unsigned:
        return _initializer(op, f"{name}_flat", np.ascontiguousarray(wide.astype(np.int8))), None
    zero_point = _initializer(op, f"{name}_flat_zero_point", np.array(_MIDDLE, np.uint8))
    return _initializer(op, f"{name}_flat", np.ascontiguousarray((wide + _MIDDLE).astype(np.uint8))), zero_point


def _lower_product(
    op: Any, x_q: Any, x_scale: Any, x_zero_point: Any, y_q: Any, y_scale: Any, y_zero_point: Any
) -> Any:
    return op.MatMulIntegerToFloat(x_q, y_q, x_scale, y_scale, x_zero_point, y_zero_point, _domain=CONTRIB)


def _integer_product(
    op: Any, x_q: Any, operand: tuple[Any, Any], x_scale: Any, scale: Any, x_zero_point: Any, bias: Any
) -> Any:
    weight, zero_point = operand
    return op.MatMulIntegerToFloat(x_q, weight, x_scale, scale, x_zero_point, zero_point, bias, _domain=CONTRIB)


class _Window:
    """How the kernel of the convolution that gives `y` moves, and the columns that it sees."""

    def __init__(self, y: Any, kernel: tuple[int, ...]) -> None:
        self.kernel = kernel
        self.stride, self.dilation = _ints(y, "strides", [1, 1]), _ints(y, "dilations", [1, 1])
        self.pads = _ints(y, "pads", [0, 0, 0, 0])  # top, left, bottom, right

    def columns(self, op: Any, x: Any, x_zero_point: Any, name: str) -> Any:
        """[B, H', W', kh kw C] of x [B, H, W, C]."""
        if any(self.pads):
            top, left, bottom, right = self.pads
            x = op.Pad(
                x, _initializer(op, f"{name}_pads", np.array([0, top, left, 0, 0, bottom, right, 0])), x_zero_point
            )
        if self.kernel == (1, 1) and self.stride == [1, 1]:
            return x
        kh, kw = self.kernel
        slices = [self._slice(op, x, row, column, name) for row in range(kh) for column in range(kw)]
        return slices[0] if len(slices) == 1 else op.Concat(*slices, axis=-1)

    def _slice(self, op: Any, x: Any, row: int, column: int, name: str) -> Any:
        """What position (row, column) of the kernel sees of x, one pixel for every output pixel."""
        starts, ends = [], []
        for place, size, dilation in zip((row, column), self.kernel, self.dilation, strict=True):
            behind = (size - 1 - place) * dilation
            starts.append(place * dilation)
            ends.append(-behind if behind else _TO_THE_END)
        bounds = (starts, ends, [1, 2], self.stride)
        inputs = [
            _initializer(op, f"{name}_{row}_{column}_{number}", np.array(bound)) for number, bound in enumerate(bounds)
        ]
        return op.Slice(x, *inputs)


def _initializer(op: Any, name: str, value: np.ndarray) -> Any:
    return op.initializer(need("onnx_ir").tensor(value, name=name), name)


def _ints(y: Any, name: str, otherwise: list[int]) -> list[int]:
    """An attribute of the node that gives `y`, as a list."""
    attribute = y.producer().attributes.get(name)
    if attribute is None:
        return otherwise
    return [int(value) for value in np.atleast_1d(attribute.value)]
