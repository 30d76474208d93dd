"""Running a network up to one unit, over all calibration rows.

The inputs of unit k depend on units 1..k-1, which do not change any more. Their outputs are remembered while memory
allows: a remembered unit returns its rows instead of computing, so preparing all units costs about one pass through
the network instead of one pass per unit (the released code runs the whole prefix twice for each of its 38 to 80
units).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.calibration.selection import CalibrationSet
from mezzotint.errors import ModelError
from mezzotint.models.denoiser import predict_eps
from mezzotint.reconstruction.store import RowStore, RowTensor


class _Reached(Exception):
    """The unit was reached; carries how it was called."""

    def __init__(self, call: Call) -> None:
        self.call = call


@dataclass(frozen=True)
class Call:
    """How a unit is called: values by place, an index for positional and a name for keyword arguments.

    The value at place 0 is the main input.
    """

    values: dict[int | str, Any]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        values: dict[int | str, Any] = dict(enumerate(args))
        values.update(kwargs)
        if 0 not in values:  # a unit called by keywords alone: the first is the main input
            first = next(iter(values))
            raise ModelError(f"a unit is called with keyword {first!r} only; its main input must be positional")
        return cls(values)

    def tensors(self, batch: int) -> dict[int | str, Tensor]:
        """The values that have one row per sample."""
        return {k: v for k, v in self.values.items() if isinstance(v, Tensor) and v.dim() and v.shape[0] == batch}

    def __call__(self, module: nn.Module, replaced: dict[int | str, Tensor]) -> Tensor:
        """Calls `module` with the values in `replaced` put in their places."""
        values = {**self.values, **replaced}
        args = [values[i] for i in range(sum(isinstance(k, int) for k in values))]
        return module(*args, **{k: v for k, v in values.items() if isinstance(k, str)})


class Walker:
    """Walks one network over the calibration rows.

    Args:
        network: float or simulated; not modified between calls.
        batch: rows in a forward pass.
    """

    def __init__(
        self, network: nn.Module, rows: CalibrationSet, *, batch: int, device: torch.device, store: RowStore
    ) -> None:
        self.network = network
        self.rows = rows
        self.batch = batch
        self.device = device
        self._store = store
        self._remembered: dict[str, RowTensor] = {}

    @torch.no_grad()
    def calls(self, unit: str) -> Iterator[tuple[slice, Call]]:
        """(rows, how `unit` is called) for every batch."""
        for rows, x_t, t in self.rows.batches(self.batch):
            yield rows, self._call_of(unit, rows, x_t, t)

    def _call_of(self, unit: str, rows: slice, x_t: Tensor, t: Tensor) -> Call:
        handle = self.network.get_submodule(unit).register_forward_pre_hook(_stop, with_kwargs=True)
        try:
            with self._replaying(rows):
                predict_eps(self.network, x_t.to(self.device), t.to(self.device))
        except _Reached as reached:
            return reached.call
        finally:
            handle.remove()
        raise ModelError(f"{unit}: the network did not call this unit")

    def remember(self, unit: str, rows: RowTensor | None) -> None:
        """From now on `unit` returns `rows`; None (no memory left) leaves it to be computed."""
        if rows is not None:
            self._remembered[unit] = rows

    def output_gradients(self, unit: str, direction: Callable[[Tensor], Tensor]) -> Iterator[tuple[slice, Tensor]]:
        """(rows, d <direction(eps), eps> / d output of `unit`) for every batch."""
        target = self.network.get_submodule(unit)
        for rows, x_t, t in self.rows.batches(self.batch):
            outputs: list[Tensor] = []

            def as_leaf(_: nn.Module, args: Any, output: Tensor, outputs: list[Tensor] = outputs) -> Tensor:
                outputs.append(output.detach().requires_grad_(True))
                return outputs[-1]

            handle = target.register_forward_hook(as_leaf)
            try:
                with self._replaying(rows), torch.enable_grad():
                    eps = predict_eps(self.network, x_t.to(self.device), t.to(self.device))
                    (gradient,) = torch.autograd.grad((eps * direction(eps)).sum(), outputs[0])
            finally:
                handle.remove()
            yield rows, gradient

    @contextmanager
    def _replaying(self, rows: slice) -> Iterator[None]:
        """Inside the block remembered units return their rows instead of computing."""
        modules = [(self.network.get_submodule(name), kept) for name, kept in self._remembered.items()]
        for module, kept in modules:
            module.forward = _returning(kept, rows)
        try:
            yield
        finally:
            for module, _ in modules:
                del module.forward  # the class's own method shows again


def _stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _Reached(Call.of(args, kwargs))


def _returning(kept: RowTensor, rows: slice) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: kept.read(rows)
