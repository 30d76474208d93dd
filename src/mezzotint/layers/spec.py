"""What one quantized layer is, as plain data: enough to build it empty and to write it in a manifest."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mezzotint.grid.spec import GridSpec


class LayerSpec(BaseModel):
    """The grids of one layer.

    Attributes:
        kind: `conv2d` and `linear` have a weight grid; `matmul` (a product of two activations) has two input grids.
        weight: grid of the weights, None for `matmul`.
        input: grid of the (first) input; None leaves activations in float (`a32`, or an input kept in float).
        other: grid of the second input of a `matmul`, else None.
        times: number of times of the sampler for each of which the input has a grid (`layers.timed`); 0: one for all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["conv2d", "linear", "matmul"]
    weight: GridSpec | None = None
    input: GridSpec | None = None
    other: GridSpec | None = None
    times: int = Field(0, ge=0)
