"""A lowered network step by step, each operator computed twice on the same inputs: where do they differ, and how far?

End to end, two right ways to sum drift apart: a value within rounding of the middle between two codes becomes one or
the other, every later step sees that, and what is left of a bound tells no fault from such a tie. Step by step nothing
is carried on, so a bound can be sharp, and one number tells ties from faults:

    beyond = max(|x_q - clamp(y / s + z, 0, largest)| - 1/2, 0)            in codes                                  (1)

with y the float32 value that the step makes codes of and (s, z, largest) its grid. A right code is the nearest one, so
it is 0 in exact arithmetic, and otherwise no more than the error of y in steps of the grid, however many codes tipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map

from mezzotint.kernels.triton import attention, exact, int_attention, shared_reading
from mezzotint.kernels.triton.operands import SHIFT

Step = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]  # (operator, args, kwargs) -> its result
EXACT: dict[str, Callable[..., Any]] = {
    "int8_product": exact.int8_product,
    "int8_product_codes": exact.int8_product_codes,
    "nhwc_codes": exact.nhwc_codes,
    "nhwc_group_norm": exact.nhwc_group_norm,
    "nhwc_group_norm_codes": exact.nhwc_group_norm_codes,
    "nhwc_entry_codes": shared_reading.entry_codes,
    "nhwc_upsampled_codes": shared_reading.upsampled_codes,
    "nhwc_layer_norm_codes": exact.nhwc_layer_norm_codes,
    "flash_attention": attention.exact_attention,
    "flash_attention_codes": attention.exact_attention_codes,
    "int_attention": int_attention.exact_int_attention,
    "int_attention_codes": int_attention.exact_int_attention_codes,
}


def called(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the operator makes of its arguments."""
    return operator(*args, **kwargs)


def exactly(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What exact torch arithmetic makes of them, on their device; None of an operator that is torch's own."""
    function = EXACT.get(name_of(operator))
    return None if function is None else function(*args, **kwargs)


def on_cpu(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the operator makes of copies on the CPU, where ours are exact torch arithmetic."""
    return operator(*_moved(args, "cpu"), **_moved(kwargs, "cpu"))


def name_of(operator: Any) -> str:
    """`int8_product` of `mezzotint::int8_product`."""
    return str(getattr(operator, "_opname", getattr(operator, "__name__", operator)))


@dataclass(frozen=True)
class Difference:
    """One result of one step, found and expected.

    Attributes:
        name: of the operator; of the codes for a shortcut, `nhwc_entry_codes, shortcut`.
        layers: whose product it is, side by side.
        count: elements.
        off: those that are not equal.
        farthest: the largest difference; of floats over the largest value expected. Infinite where one is no number.
        error: Frobenius norm of the difference over that of what was expected; 0 of codes.
        beyond: (1); 0 of floats.
        args: of the step.
    """

    name: str
    layers: tuple[str, ...]
    count: int
    off: int
    farthest: float
    error: float
    beyond: float
    args: tuple[Any, ...]


def differences(
    module: fx.GraphModule, inputs: Sequence[Tensor], by: Step = called, against: Step = exactly
) -> Iterator[Difference]:
    """Every step of a lowered `module`: `by` is looked at, and computes what later steps read, `against` is believed.

    Steps that `against` returns None of, and those that compute no tensor, are left out.
    """
    found: list[Difference] = []

    class Twice(fx.Interpreter):
        def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            result, expected = by(target, args, kwargs), against(target, args, kwargs)
            if expected is not None:
                layers = self.running.meta.get("layers", ())
                found.extend(_of_step(name_of(target), layers, args, result, expected))
            return result

        def run_node(self, n: fx.Node) -> Any:
            self.running = n
            return super().run_node(n)

    with torch.no_grad():
        Twice(module).run(*inputs)
    yield from found


def compare_steps(module: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[str, dict[str, float]]:
    """Every step of a lowered `module` against exact torch arithmetic on the same inputs, by operator.

    Returns:
        {operator: {"steps", "codes off" (share of codes that differ), "farthest" (in codes), "beyond" (equation (1)),
        or "error" (relative, of float results)}}; of each the largest of its steps.
    """
    table: dict[str, dict[str, float]] = {}
    for step in differences(module, inputs):
        row = table.setdefault(step.name, {"steps": 0})
        row["steps"] += 1
        codes = step.name.endswith(("codes", "shortcut"))
        measured = {"codes off": step.off / max(1, step.count), "farthest": step.farthest, "beyond": step.beyond}
        for key, value in (measured if codes else {"error": step.error}).items():
            row[key] = max(row.get(key, 0.0), value)
    return table


def _of_step(
    name: str, layers: tuple[str, ...], args: tuple[Any, ...], result: Any, expected: Any
) -> Iterator[Difference]:
    """Nothing of a step without tensors; all is looked at where `expected` lies."""
    if not isinstance(result, Tensor | tuple):
        return
    results, wanted = (given if isinstance(given, tuple) else (given,) for given in (result, expected))
    place = wanted[0].device
    values = _values(name, _moved(args, place))
    for index, (one, other) in enumerate(zip(results, wanted, strict=True)):
        found = one.to(place)
        far, error = _apart(found, other)
        beyond = _beyond(found, *values[index]) if values else 0.0
        label = f"{name}, shortcut" if index else name
        yield Difference(label, layers, found.numel(), int((found != other).sum()), far, error, beyond, args)


def _moved(values: Any, place: Any) -> Any:
    """`values` with every tensor in them on the device `place`."""
    return tree_map(lambda value: value.to(place) if isinstance(value, Tensor) else value, values)


def _apart(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """(`farthest`, `error`) of a `Difference`."""
    if not found.numel():
        return 0.0, 0.0
    far, wanted = (found.double() - expected.double()).abs(), expected.double().abs()
    if not expected.is_floating_point():
        return float(far.max()), 0.0
    if not math.isfinite(float(far.sum())):
        return math.inf, math.inf
    return float(far.max() / wanted.max().clamp_min(1e-30)), float(far.norm() / wanted.norm().clamp_min(1e-30))


def _beyond(codes: Tensor, y: Tensor, scale: float, zero_point: int, largest: int) -> float:
    """Equation (1) of signed codes."""
    step = float(torch.tensor(scale, dtype=torch.float32))
    place = (y.double() / step + zero_point).clamp(0, largest)
    return max(0.0, float(((codes.double() + SHIFT) - place).abs().max()) - 0.5) if codes.numel() else 0.0


def _values(name: str, args: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """(float32 values before they become codes, scale, zero point, largest code) of each result; [] of other steps."""
    function = _BEFORE.get(name)
    return [] if function is None else function(*args)


def _joined(x: Tensor, second: Tensor | None) -> Tensor:
    return torch.cat([part.float() for part in (x, second) if part is not None], -1)


def _product(*args: Any) -> list[tuple[Any, ...]]:
    product, (geglu, scale, zero_point, largest) = args[:12], args[12:]
    y = EXACT["int8_product"](*product, torch.float32)
    return [(exact.gated(y) if geglu else y, scale, zero_point, largest)]


def _group_norm(x: Tensor, *args: Any) -> list[tuple[Any, ...]]:
    *norm, scale, zero_point, largest = args
    return [(exact.nhwc_group_norm(x.float(), *norm), scale, zero_point, largest)]


def _entry(x: Tensor, second: Tensor | None, *args: Any) -> list[tuple[Any, ...]]:
    *normed, scales, zero_points, largests = args
    sizes = [part.shape[-1] for part in (x, second) if part is not None]
    counts = torch.tensor(sizes)
    # Grids differ from part to part: values in steps of their own, on a grid of step 1 around 0.
    scale = torch.tensor(scales, dtype=torch.float32).repeat_interleave(counts).to(x.device)
    zero, most = (torch.tensor(v).repeat_interleave(counts).to(x.device) for v in (zero_points, largests))
    place = (_joined(x, second).double() / scale + zero).clamp(torch.zeros_like(most), most)
    return [*_group_norm(x, second, *normed), (place, 1.0, 0, max(largests))]


def _layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *grid: Any) -> list[tuple[Any, ...]]:
    return [(torch.nn.functional.layer_norm(x.float(), x.shape[-1:], weight, bias, eps), *grid)]


def _upsampled(x: Tensor, factor: int, *grid: Any) -> list[tuple[Any, ...]]:
    return [(x.float().repeat_interleave(factor, 1).repeat_interleave(factor, 2), *grid)]


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, *grid: Any) -> list[tuple[Any, ...]]:
    return [(attention.exact_attention(q.float(), k.float(), v.float(), heads, scale), *grid)]


_BEFORE: dict[str, Callable[..., list[tuple[Any, ...]]]] = {
    "int8_product_codes": _product,
    "nhwc_codes": lambda x, second, *grid: [(_joined(x, second), *grid)],
    "nhwc_group_norm_codes": _group_norm,
    "nhwc_entry_codes": _entry,
    "nhwc_layer_norm_codes": _layer_norm,
    "nhwc_upsampled_codes": _upsampled,
    "flash_attention_codes": _attention,
    "int_attention_codes": lambda *args: [(EXACT["int_attention"](*args[:8], torch.float32), *args[8:])],
}
