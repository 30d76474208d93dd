"""What has to be learned in one unit: its inputs on both paths, its target, and its two modules."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mezzotint.layers.activation import ActivationQuantizer
from mezzotint.layers.simulated import SimulatedLayer
from mezzotint.models.units import Unit
from mezzotint.reconstruction.losses import feature_axis, lp_loss
from mezzotint.reconstruction.store import RowStore, RowTensor
from mezzotint.reconstruction.walk import Call, Place, Walker

MAIN: Place = 0


@dataclass
class UnitProblem:
    """One unit to reconstruct.

    Attributes:
        simulated, floating: the unit in the simulated and in the float network.
        call: how the unit is called, for the arguments that are not rows.
        quantized_inputs: per argument place, rows as the quantized prefix gives them.
        float_inputs: the same from the float network.
        target: rows of the float unit's output.
        owned: the inputs that are kept for this unit alone; the others belong to earlier units or to the conditions.
        weight: rows of the Fisher weights of the output, or None.
    """

    unit: Unit
    simulated: nn.Module
    floating: nn.Module
    call: Call
    quantized_inputs: dict[Place, RowTensor]
    float_inputs: dict[Place, RowTensor]
    target: RowTensor
    n_rows: int
    owned: list[RowTensor]
    weight: RowTensor | None = None
    layers: dict[str, SimulatedLayer] = field(default_factory=dict)
    grids: dict[str, ActivationQuantizer] = field(default_factory=dict)

    def release(self) -> None:
        """Frees the inputs and weights of this unit; its target may live on."""
        for rows in self.owned:
            rows.release()
        if self.weight is not None:
            self.weight.release()

    def run(self, rows: slice) -> Tensor:
        """Output of the simulated unit on the quantized inputs."""
        return self.call(self.simulated, {k: v.read(rows) for k, v in self.quantized_inputs.items()})

    @torch.no_grad()
    def block_loss(self, batch: int, output: RowTensor | None = None) -> float:
        """Mean block loss over all rows on the quantized inputs, no dropping: what is deployed.

        Args:
            output: takes the rows of the simulated unit's output.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.target.read(slice(0, 1)).device)
        for rows in self.batches(batch):
            weight = None if self.weight is None else self.weight.read(rows)
            made = self.run(rows)
            if output is not None:
                output.write(rows, made)
            total += lp_loss(made, self.target.read(rows), weight).double() * (rows.stop - rows.start)
        return float(total) / self.n_rows

    @torch.no_grad()
    def mean_error(self, batch: int) -> Tensor:
        """Mean over rows and positions of target - output, per feature: float32 [F]."""
        total, count = torch.zeros((), dtype=torch.float64), 0
        for rows in self.batches(batch):
            error = self.target.read(rows) - self.run(rows)
            features = error.movedim(feature_axis(error), 0).flatten(1)
            total = total.to(error.device) + features.double().sum(dim=1)
            count += features.shape[1]
        return (total / count).float()

    def batches(self, size: int) -> list[slice]:
        return [slice(a, min(a + size, self.n_rows)) for a in range(0, self.n_rows, size)]


def pose(unit: Unit, float_walker: Walker, quantized_walker: Walker, store: RowStore) -> UnitProblem:
    """Runs both networks up to `unit` and collects its inputs and target."""
    floating = float_walker.network.get_submodule(unit.name)
    simulated = quantized_walker.network.get_submodule(unit.name)
    n_rows = len(float_walker.rows)
    float_side = _Inputs(n_rows, store)
    target: RowTensor | None = None
    for rows, call in float_walker.calls(unit.name):
        float_side.write(rows, call)
        with torch.no_grad():
            output = call(floating, {})
        target = target or store.allocate((n_rows, *output.shape[1:]))
        target.write(rows, output)
        constants = call.without_rows(rows.stop - rows.start)
    assert target is not None  # a calibration set has at least one row
    quantized_side = _Inputs(n_rows, store)
    for rows, call in quantized_walker.calls(unit.name):
        quantized_side.write(rows, call)
    owned = [*float_side.owned.values(), *quantized_side.owned.values()]
    problem = UnitProblem(
        unit, simulated, floating, constants, quantized_side.all(), float_side.all(), target, n_rows, owned
    )
    named = {*unit.inner, *unit.output}  # not layers that lie in the unit and are learned apart from it
    problem.layers = {n: m for n, m in simulated.named_modules() if isinstance(m, SimulatedLayer) and n in named}
    problem.grids = {n: m for n, m in simulated.named_modules() if isinstance(m, ActivationQuantizer)}
    return problem


class _Inputs:
    """Collects the inputs of a unit from the calls of it; refers to those that are kept already."""

    def __init__(self, n_rows: int, store: RowStore) -> None:
        self._n_rows, self._store = n_rows, store
        self.owned: dict[Place, RowTensor] = {}
        self._kept: dict[Place, RowTensor] = {}

    def write(self, rows: slice, call: Call) -> None:
        self._kept = call.kept
        for place, x in call.tensors(rows.stop - rows.start).items():
            if place not in self.owned:
                self.owned[place] = self._store.allocate((self._n_rows, *x.shape[1:]), x.dtype)
            self.owned[place].write(rows, x)

    def all(self) -> dict[Place, RowTensor]:
        return {**self._kept, **self.owned}
