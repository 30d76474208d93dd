"""Attention products in floats, of a network that was calibrated with them on codes, and what its output then owes.

Where probabilities lose mass on their grid, all that follows was calibrated on that loss. A deployment that computes
the products in floats has no such loss: nearer to the float model layer by layer, but the mean of its output moves,
equally in every pixel of a channel. The output shift says by how much; whoever computes in floats takes it off the
bias of the last layer. How it is measured: `reconstruction.drift`, equation (4).

The shift hangs on the network as the attribute `output_shift` and goes where the network goes. The network's own layers
compute on codes and never apply it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from torch import Tensor, nn

from mezzotint.layers.simulated import FakeQuantMatMul


class OutputShift(BaseModel):
    """What to take off the output where attention products are in floats.

    Attributes:
        layer: the network's last layer, whose bias takes it.
        values: one for each of its output channels, in units of the output.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    values: tuple[FiniteFloat, ...] = Field(min_length=1)

    def tensor(self, like: Tensor) -> Float[Tensor, " c"]:
        """The values in the dtype and on the device of `like`."""
        return torch.tensor(self.values, dtype=like.dtype, device=like.device)


def shift_output_(network: nn.Module, shift: OutputShift) -> None:
    """From now on lowerings of `network` with attention products in floats take `shift` off its output."""
    network.output_shift = shift  # type: ignore[assignment]


def output_shift_of(network: nn.Module) -> OutputShift | None:
    """The shift of `network`, None if it has none."""
    return getattr(network, "output_shift", None)


def has_quantized_products(simulated: nn.Module) -> bool:
    """Whether attention products of `simulated` are on codes."""
    return any(isinstance(module, FakeQuantMatMul) for module in simulated.modules())


@contextmanager
def float_products(simulated: nn.Module) -> Iterator[None]:
    """Inside the block `simulated` computes attention products in floats, and all else as before."""
    products = [module for module in simulated.modules() if isinstance(module, FakeQuantMatMul)]
    grids = [grid for product in products for grid in (product.input_quantizer, product.other_quantizer)]
    before = [grid.enabled for grid in grids]
    for grid in grids:
        grid.enabled = False
    try:
        yield
    finally:
        for grid, enabled in zip(grids, before, strict=True):
            grid.enabled = enabled
