"""Running a network up to one unit, over all calibration rows.

The inputs of unit k depend on units 1..k-1, which do not change any more. A finished unit does not compute again: it
returns its kept rows where unit k reads them (`sources`), and zeros of their shape where it does not, so preparing all
units costs one pass through the network, and of the outputs only the frontier is in memory: those that later units
still read. The released code runs the whole prefix twice for each of its 38 to 80 units.

Inputs that are kept anyway, because they are the very output of an earlier unit (the time embedding, a residual block
before an attention layer) or the rows' condition, are referred to and not stored again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.calibration.rows import CalibrationSet
from mezzotint.errors import ModelError
from mezzotint.models.denoiser import predict_eps
from mezzotint.reconstruction.sources import Sources
from mezzotint.reconstruction.store import RowTensor

Place = int | str


class _Reached(Exception):
    """The unit was reached; carries how it was called."""

    def __init__(self, call: Call) -> None:
        self.call = call


@dataclass(frozen=True)
class Call:
    """How a unit is called: values by place, an index for positional and a name for keyword arguments.

    The value at place 0 is the main input.

    Attributes:
        values: of one batch.
        kept: the rows of those values that are kept elsewhere.
    """

    values: dict[Place, Any]
    kept: dict[Place, RowTensor] = field(default_factory=dict)

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        values: dict[Place, Any] = dict(enumerate(args))
        values.update(kwargs)
        if 0 not in values:  # a unit called by keywords alone: the first is the main input
            first = next(iter(values))
            raise ModelError(f"a unit is called with keyword {first!r} only; its main input must be positional")
        return cls(values)

    def referring_to(self, known: list[tuple[Tensor, RowTensor]]) -> Call:
        """The same call, with the places noted whose value is one of the `known` tensors itself."""
        found = {place: rows for place, value in self.values.items() for tensor, rows in known if tensor is value}
        return Call(self.values, found)

    def tensors(self, batch: int) -> dict[Place, Tensor]:
        """The values that have one row per sample and are not kept elsewhere."""
        rows = {k: v for k, v in self.values.items() if isinstance(v, Tensor) and v.dim() and v.shape[0] == batch}
        return {place: value for place, value in rows.items() if place not in self.kept}

    def without_rows(self, batch: int) -> Call:
        """The same call without the tensors of its batch; a call of the result gives them anew."""
        given = {*self.tensors(batch), *self.kept}
        return Call({place: None if place in given else value for place, value in self.values.items()})

    def __call__(self, module: nn.Module, replaced: Mapping[Place, Tensor]) -> Tensor:
        """Calls `module` with the values in `replaced` put in their places."""
        values = {**self.values, **replaced}
        args = [values[i] for i in range(sum(isinstance(k, int) for k in values))]
        return module(*args, **{k: v for k, v in values.items() if isinstance(k, str)})


class Walker:
    """Walks one network over the calibration rows.

    Args:
        network: float or simulated; not modified between calls.
        batch: rows in a forward pass.
        sources: of the network's units, see `reconstruction.sources`.
        cond: kept rows of the conditions, by the network's keyword.
    """

    def __init__(
        self,
        network: nn.Module,
        rows: CalibrationSet,
        *,
        batch: int,
        device: torch.device,
        sources: Sources,
        cond: Mapping[str, RowTensor],
    ) -> None:
        self.network = network
        self.rows = rows
        self.batch = batch
        self.device = device
        self._sources = sources
        self._cond = cond
        self._shapes: dict[str, tuple[int, ...]] = {}  # of the finished units' outputs
        self._kept: dict[str, RowTensor] = {}

    @torch.no_grad()
    def calls(self, unit: str) -> Iterator[tuple[slice, Call]]:
        """(rows, how `unit` is called) for every batch."""
        for rows, x_t, t, cond in self._batches():
            yield rows, self._call_of(unit, rows, x_t, t, cond)

    def _batches(self) -> Iterator[tuple[slice, Tensor, Tensor, dict[str, Tensor]]]:
        for rows, x_t, t, cond in self.rows.batches(self.batch, self.device):
            yield rows, x_t, t, {**cond, **{name: kept.read(rows) for name, kept in self._cond.items()}}

    def _call_of(self, unit: str, rows: slice, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Call:
        handle = self.network.get_submodule(unit).register_forward_pre_hook(_stop, with_kwargs=True)
        known = [(cond[name], kept) for name, kept in self._cond.items()]
        try:
            with self._replaying(rows, self._sources[unit]) as replayed:
                predict_eps(self.network, x_t, t, cond)
        except _Reached as reached:
            return reached.call.referring_to(known + replayed)
        finally:
            handle.remove()
        raise ModelError(f"{unit}: the network did not call this unit")

    def finish(self, unit: str, shape: tuple[int, ...], kept: RowTensor | None) -> None:
        """From now on `unit` does not compute; it gives `kept` to the units that read it (None: there are none)."""
        self._shapes[unit] = shape
        if kept is not None:
            self._kept[unit] = kept

    def forget(self, unit: str) -> None:
        """No unit reads the output of `unit` any more."""
        self._kept.pop(unit).release()

    def output_gradients(self, unit: str, direction: Callable[[Tensor], Tensor]) -> Iterator[tuple[slice, Tensor]]:
        """(rows, d <direction(eps), eps> / d output of `unit`) for every batch."""
        target = self.network.get_submodule(unit)
        for rows, x_t, t, cond in self._batches():
            outputs: list[Tensor] = []

            def as_leaf(_: nn.Module, args: Any, output: Tensor, outputs: list[Tensor] = outputs) -> Tensor:
                outputs.append(output.detach().requires_grad_(True))
                return outputs[-1]

            handle = target.register_forward_hook(as_leaf)
            try:
                with self._replaying(rows, self._kept.keys()), torch.enable_grad():
                    eps = predict_eps(self.network, x_t, t, cond)
                    (gradient,) = torch.autograd.grad((eps * direction(eps)).sum(), outputs[0])
            finally:
                handle.remove()
            yield rows, gradient

    @contextmanager
    def _replaying(self, rows: slice, wanted: Any) -> Iterator[list[tuple[Tensor, RowTensor]]]:
        """Inside the block finished units return their rows if they are among the `wanted`, else zeros.

        Gives what was returned, and where it is kept.
        """
        replayed: list[tuple[Tensor, RowTensor]] = []

        def returning(name: str) -> Callable[..., Tensor]:
            kept = self._kept.get(name) if name in wanted else None

            def forward(*args: Any, **kwargs: Any) -> Tensor:
                if kept is None:
                    return torch.zeros((rows.stop - rows.start, *self._shapes[name][1:]), device=self.device)
                replayed.append((kept.read(rows), kept))
                return replayed[-1][0]

            return forward

        modules = [(self.network.get_submodule(name), returning(name)) for name in self._shapes]
        for module, forward in modules:
            module.forward = forward
        try:
            yield replayed
        finally:
            for module, _ in modules:
                del module.forward  # the class's own method shows again


def _stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _Reached(Call.of(args, kwargs))
