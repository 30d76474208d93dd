"""Which earlier units a unit reads from: what has to be kept of a network that is walked unit by unit.

A unit's inputs are made from the outputs of earlier units by operations outside of units: norms, concatenations,
residual sums, resampling. A U-Net's later units read early ones (skips), most read only the last. Knowing who reads
whom, a walk keeps an output no longer than it is needed, and computes every unit once:

    needed to run up to unit k       the outputs of sources[k]; anything else may be any number
    can be forgotten after unit k    the outputs that no later unit has among its sources

Traced, not assumed: the network runs once on one row, every unit's output is replaced by a marked one, and the graph
that autograd records between units says which marks reach which inputs. Units themselves run on detached inputs, so the
graph holds no more than what lies between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.models.units import Unit

Sources = Mapping[str, frozenset[str]]


def unit_sources(network: nn.Module, units: Sequence[Unit], run: Callable[[], Any]) -> dict[str, frozenset[str]]:
    """{unit: names of the units whose outputs reach its inputs not through another unit}; `run` calls `network`."""
    sources: dict[str, frozenset[str]] = {}
    marks: dict[Any, str] = {}  # autograd node of a unit's output -> unit

    def before(name: str) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            sources[name] = sources.get(name, frozenset()) | _reached(tensors, marks)
            return tuple(map(_detached, args)), {key: _detached(value) for key, value in kwargs.items()}

        return hook

    def after(name: str) -> Callable[..., Any]:
        def hook(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            marked = output.detach().requires_grad_(True).clone()
            marks[marked.grad_fn] = name
            return marked

        return hook

    handles = []
    for unit in units:
        module = network.get_submodule(unit.name)
        handles.append(module.register_forward_pre_hook(before(unit.name), with_kwargs=True))
        handles.append(module.register_forward_hook(after(unit.name)))
    try:
        with torch.enable_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return sources


def last_readers(units: Sequence[Unit], sources: Sources) -> dict[str, int]:
    """{unit: index of the last unit that reads its output}; a unit that none reads is left out."""
    return {name: index for index, unit in enumerate(units) for name in sources[unit.name]}


def _reached(tensors: Iterable[Tensor], marks: Mapping[Any, str]) -> frozenset[str]:
    """The marks that the graph behind `tensors` reaches."""
    found: set[str] = set()
    seen: set[Any] = set()
    waiting = [tensor.grad_fn for tensor in tensors]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in marks:
            found.add(marks[node])
        else:
            waiting.extend(following for following, _ in node.next_functions)
    return frozenset(found)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
