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
from mezzotint.reconstruction.walk import Call, Walker

Place = int | str
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
    weight: RowTensor | None = None
    layers: dict[str, SimulatedLayer] = field(default_factory=dict)
    grids: dict[str, ActivationQuantizer] = field(default_factory=dict)

    def release(self) -> None:
        """Frees the inputs and weights (the target may live on as a remembered output)."""
        for rows in (*self.quantized_inputs.values(), *self.float_inputs.values()):
            rows.release()
        if self.weight is not None:
            self.weight.release()

    @torch.no_grad()
    def output(self, batch: int, store: RowStore) -> RowTensor | None:
        """Rows of the simulated unit's output on the quantized inputs, if memory allows keeping them."""
        kept = store.allocate_optional(tuple(self.target.tensor.shape))
        if kept is not None:
            for rows in self.batches(batch):
                kept.write(rows, self.run(rows))
        return kept

    def run(self, rows: slice) -> Tensor:
        """Output of the simulated unit on the quantized inputs."""
        return self.call(self.simulated, {k: v.read(rows) for k, v in self.quantized_inputs.items()})

    @torch.no_grad()
    def block_loss(self, batch: int) -> float:
        """Mean block loss over all rows on the quantized inputs, no dropping: what is deployed."""
        total = torch.zeros((), dtype=torch.float64, device=self.target.read(slice(0, 1)).device)
        for rows in self.batches(batch):
            weight = None if self.weight is None else self.weight.read(rows)
            loss = lp_loss(self.run(rows), self.target.read(rows), weight)
            total += loss.double() * (rows.stop - rows.start)
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
    """Runs both networks up to `unit` and collects its inputs and target.

    The float unit's output is remembered by `float_walker`, so the target is computed once.
    """
    floating = float_walker.network.get_submodule(unit.name)
    simulated = quantized_walker.network.get_submodule(unit.name)
    n_rows = len(float_walker.rows)
    float_inputs: dict[Place, RowTensor] = {}
    target: RowTensor | None = None
    call = None
    for rows, call in float_walker.calls(unit.name):
        inputs = call.tensors(rows.stop - rows.start)
        with torch.no_grad():
            output = call(floating, {})
        if target is None:
            float_inputs = _allocate(inputs, n_rows, store)
            target = store.allocate((n_rows, *output.shape[1:]))
        _write(float_inputs, rows, inputs)
        target.write(rows, output)
    quantized_inputs: dict[Place, RowTensor] = {}
    for rows, quantized_call in quantized_walker.calls(unit.name):
        inputs = quantized_call.tensors(rows.stop - rows.start)
        quantized_inputs = quantized_inputs or _allocate(inputs, n_rows, store)
        _write(quantized_inputs, rows, inputs)
    assert target is not None  # a calibration set has at least one row
    assert call is not None
    problem = UnitProblem(unit, simulated, floating, call, quantized_inputs, float_inputs, target, n_rows)
    problem.layers = {n: m for n, m in simulated.named_modules() if isinstance(m, SimulatedLayer)}
    problem.grids = {n: m for n, m in simulated.named_modules() if isinstance(m, ActivationQuantizer)}
    return problem


def _allocate(inputs: dict[Place, Tensor], n_rows: int, store: RowStore) -> dict[Place, RowTensor]:
    return {place: store.allocate((n_rows, *x.shape[1:])) for place, x in inputs.items()}


def _write(kept: dict[Place, RowTensor], rows: slice, inputs: dict[Place, Tensor]) -> None:
    for place, x in inputs.items():
        kept[place].write(rows, x)
