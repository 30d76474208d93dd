"""A quantized network as one graph, with the steps between integer products fused: what `optimize` turns it into.

torch.compile traces the network once (seconds, for each shape of the input); the graph is rewritten here and runs as it
is, operator by operator. Nothing else is compiled, except fused.cpp once per machine.

    removed      dropout, division by 1, casts to the dtype there is, detach
    merged       equal SiLU and quantization of one tensor (the time embedding; q, k, v with equal grids)
    moved        codes before nearest upsampling, padding, transposition: the same codes from fewer floats
    fused        [+ time embedding] -> group norm [-> SiLU] [-> codes]

The first three are exact. The last sums in its own fixed order, see `kernels.fused`: eps differs from that of the plain
integer network by what a few codes out by one do to it, as it does between two processors of different vector width.
Where fused.cpp cannot be built, torch's own steps run in its place and every output is that of the plain network.
"""

from __future__ import annotations

import itertools
import logging
import operator
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mezzotint.errors import ConfigError, ModelError
from mezzotint.kernels import fused
from mezzotint.kernels.traced import product_of
from mezzotint.layers.int_base import IntLayer, IntWeightedLayer

logger = logging.getLogger("mezzotint")

WEIGHTS = ("unpacked", "packed")

_CODES = torch.ops.mezzotint.codes
_CASTS = ("to", "float", "detach")
_MERGED = (_CODES, F.silu)
_ALL = slice(None, None, None)
_PRODUCTS = (torch.ops.mezzotint.conv2d, torch.ops.mezzotint.linear, torch.ops.mezzotint.matmul)
_FUNCTIONS = {
    _CODES: fused.codes,
    torch.ops.mezzotint.group_norm: fused.group_norm,
    torch.ops.mezzotint.group_norm_codes: fused.group_norm_codes,
}


def optimize(pipeline: Any, *, fuse: bool = True, weights: str = "unpacked") -> Any:
    """`pipeline` with its quantized networks prepared for fast calls on this CPU; changes and returns it.

    Args:
        fuse: trace the denoiser on its first call and fuse what lies between the products (seconds, once for each
            batch size). Without it the layers only unpack their weights now instead of in the first call.
        weights: "packed" keeps the codes of the weights packed in memory and unpacks them in every call: the same
            output, less memory, much slower.

    Raises:
        ModelError: no part of the pipeline is quantized.
        ConfigError: `weights` is none of the above, or the pipeline is not on the CPU and `fuse` is on.
    """
    networks = {name: m for name, m in pipeline.components.items() if isinstance(m, nn.Module) and _layers(m)}
    if not networks:
        raise ModelError(f"{type(pipeline).__name__} has no quantized part to optimize; quantize it first")
    for name, network in networks.items():
        optimize_network_(network, fuse=fuse and name == "unet", weights=weights)
    return pipeline


def optimize_network_(network: nn.Module, *, fuse: bool = True, weights: str = "unpacked") -> nn.Module:
    """As `optimize`, for one network; changes and returns it."""
    if weights not in WEIGHTS:
        raise ConfigError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    layers = _layers(network)
    if fuse and any(buffer.device.type != "cpu" for layer in layers for buffer in layer.buffers()):
        raise ConfigError("fusing is for the CPU; load the model with device='cpu', or call optimize(fuse=False)")
    for layer in layers:
        if isinstance(layer, IntWeightedLayer):
            layer.keep_packed = weights == "packed"
        layer.prepare_kernel_()
    if fuse:
        network.requires_grad_(False)
        # The tracer reads through diffusers' cached version checks, as it should, and warns of each.
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`", module="torch")
        network._compiled_call_impl = _Traced(network)  # what Module.compile sets; copies and pickles go without it
    return network


class _Traced:
    """Calls of a network, traced and fused once for each kind of input.

    Every kind gets a function with code of its own. The tracer keeps what it learned by code object: two networks of
    one class would share it, their differing scales would be taken for variables, and eight recompilations for a bug.
    """

    _names = itertools.count()

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._layers = _layers(network)
        self._prepared = [layer.operands for layer in self._layers]
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        key = (*modes, *map(_kind, args), *((name, _kind(value)) for name, value in sorted(kwargs.items())))
        pairs = zip(self._layers, self._prepared, strict=True)
        if any(layer.operands is not prepared for layer, prepared in pairs):  # the state of a layer changed
            self._prepared = [layer.prepare_kernel_().operands for layer in self._layers]
            self._compiled.clear()
        if key not in self._compiled:
            entry = _with_own_code(self._network.forward, next(self._names))
            options: Any = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}  # looked at above
            compiled = torch.compile(entry, backend=fusing_backend, fullgraph=True, dynamic=False, options=options)
            self._compiled[key] = compiled
        return self._compiled[key](*args, **kwargs)


def _kind(value: Any) -> Any:
    """What a traced graph depends on: of a tensor its layout, else the value."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return repr(value)


def _with_own_code(forward: Callable[..., Any], number: int) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    code = call.__code__.replace(co_name=f"call_{number}")
    return types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)


def fusing_backend(graph: fx.GraphModule, example_inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """A backend of torch.compile: `graph` rewritten, to be run as it is."""
    changed_in_place = [node for node in graph.graph.nodes if _changes_its_argument(node)]
    if changed_in_place:
        logger.warning("not fused: the network changes tensors in place (%s)", changed_in_place[0].format_node())
        return graph.forward
    _remove_identities(graph.graph)
    _move_codes_up(graph.graph)
    _merge_equal(graph.graph)
    _fuse_norms(graph.graph)
    _call_directly(graph.graph)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    return graph.forward


def _layers(network: nn.Module) -> list[IntLayer]:
    return [module for module in network.modules() if isinstance(module, IntLayer)]


def _changes_its_argument(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place_operator = node.op == "call_function" and node.target in (operator.iadd, operator.imul, operator.setitem)
    method = node.op == "call_method" and name.endswith("_") and not name.endswith("__")
    return in_place_operator or method or bool(node.kwargs.get("inplace")) or "out" in node.kwargs


def _remove_identities(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if _is_identity(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _is_identity(node: fx.Node) -> bool:
    if node.op == "call_function" and node.target is operator.truediv:
        return isinstance(node.args[0], fx.Node) and isinstance(node.args[1], int | float) and node.args[1] == 1
    if node.op == "call_function" and node.target is F.dropout:
        named = {**dict(zip(("input", "p", "training"), node.args, strict=False)), **node.kwargs}
        return named.get("training", True) is False or bool(named.get("p", 0.5) == 0)
    if node.op != "call_method" or node.target not in _CASTS:
        return False
    before, after = _value(node.args[0]), _value(node)
    return before is not None and after is not None and (before.dtype, before.device) == (after.dtype, after.device)


def _move_codes_up(graph: fx.Graph) -> None:
    """codes(f(x)) -> f(codes(x)) for every f that only moves values, while nothing else reads f(x)."""
    for node in list(graph.nodes):
        while node.target is _CODES and (moved := _moved(graph, node)) is not None:
            node = moved


def _moved(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Exchanges the codes `node` with the step before it; the new codes node, or None if that cannot be done."""
    step, *grid = node.args
    if not isinstance(step, fx.Node) or any(user.target is not _CODES for user in step.users):
        return None
    again = _on_codes(step, zero_point=grid[1])
    if again is None:
        return None
    with graph.inserting_before(node):
        codes = graph.call_function(_CODES, (step.args[0], *grid))
        after = graph.create_node(step.op, step.target, (codes, *again[0]), again[1])
    node.replace_all_uses_with(after)
    graph.erase_node(node)
    if not step.users:
        graph.erase_node(step)
    return codes


def _on_codes(step: fx.Node, zero_point: Any) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments after the first with which `step` moves codes as it moves floats; None if it computes."""
    if step.op == "call_method" and step.target in ("transpose", "permute"):
        return step.args[1:], dict(step.kwargs)
    if step.op == "call_function" and step.target is F.interpolate:
        mode = step.kwargs.get("mode", step.args[3] if len(step.args) > 3 else "nearest")
        return (step.args[1:], dict(step.kwargs)) if mode == "nearest" else None
    if step.op == "call_function" and step.target in (F.pad, torch._C._nn.pad):
        named = {**dict(zip(("input", "pad", "mode", "value"), step.args, strict=False)), **step.kwargs}
        if named.get("mode", "constant") == "constant" and not named.get("value"):
            return (named["pad"], "constant", zero_point), {}
    return None


def _merge_equal(graph: fx.Graph) -> None:
    """One node for each distinct SiLU and quantization."""
    seen: dict[tuple[Any, ...], fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _MERGED:
            continue
        key = (node.target, node.args, tuple(sorted(node.kwargs.items())))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _fuse_norms(graph: fx.Graph) -> None:
    for norm in list(graph.nodes):
        if norm.op != "call_function" or norm.target is not F.group_norm:
            continue
        names = ("input", "num_groups", "weight", "bias", "eps")
        given = {"weight": None, "bias": None, "eps": 1e-5, **dict(zip(names, norm.args, strict=False)), **norm.kwargs}
        x, added = _without_added(given["input"])
        value = _value(x)
        if value is None or value.dtype != torch.float32 or value.device.type != "cpu" or value.dim() < 3:
            continue
        last = silu if (silu := _only_user(norm)) is not None and silu.target is F.silu else norm
        arguments: tuple[Any, ...] = (
            x,
            added,
            given["weight"],
            given["bias"],
            given["num_groups"],
            given["eps"],
            last is not norm,
        )
        codes, operation = _only_user(last), torch.ops.mezzotint.group_norm
        if codes is not None and codes.target is _CODES:
            last, operation = codes, torch.ops.mezzotint.group_norm_codes
            arguments = (*arguments, *codes.args[1:])
        with graph.inserting_before(last):
            fused = graph.call_function(operation, arguments)
        last.replace_all_uses_with(fused)


def _call_directly(graph: fx.Graph) -> None:
    """Functions in place of operators: nothing traces the graph any more, and the dispatcher takes its time."""
    for node in graph.nodes:
        if node.target in _PRODUCTS:
            *codes, number = node.args
            node.target, node.args = product_of(number), tuple(codes)
        elif node.target in _FUNCTIONS:
            node.target = _FUNCTIONS[node.target]


def _without_added(x: Any) -> tuple[Any, fx.Node | None]:
    """(h, v) if `x` is h + v[:, :, None, ...] and nothing else reads it, else (x, None)."""
    if not isinstance(x, fx.Node) or x.target is not operator.add or len(x.users) > 1:
        return x, None
    h, more = x.args
    if not isinstance(h, fx.Node) or not isinstance(more, fx.Node) or more.target is not operator.getitem:
        return x, None
    vector, index = more.args
    source, whole = _value(vector), _value(h)
    if (
        not isinstance(vector, fx.Node)
        or source is None
        or whole is None
        or source.dim() != 2
        or whole.shape[:2] != source.shape
    ):
        return x, None
    broadcast = isinstance(index, tuple) and index == (_ALL, _ALL, *(None,) * (whole.dim() - 2))
    return (h, vector) if broadcast else (x, None)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _value(node: Any) -> Tensor | None:
    """The fake tensor that the tracer saw at `node`."""
    value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return value if isinstance(value, Tensor) else None
