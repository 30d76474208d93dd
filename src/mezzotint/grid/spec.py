"""What an integer grid is.

A grid has 2**bits codes. A float x lands on the code

    q = clamp(round(x / scale) + zero_point, quant_min, quant_max)          (1)

and the code stands for the float (q - zero_point) * scale. `scale` is the grid step in the units of x, `zero_point` the
code of 0.0, so zero is always exact.

    name        dtype     shape         meaning
    scale       float32   [G] or [G, O] grid step; G groups of input channels, O output channels (weights)
    zero_point  int32     as scale      code that stands for 0.0; 0 for signed grids
    codes       int8      as x          signed grids (weights)
    codes       uint8     as x          unsigned grids (activations)

A *group* is a run of channels along axis 1 with a scale of its own. Groups serve the split shortcut of Q-Diffusion
(Li et al. 2023, section 4.2): the shortcut convolution of an up block reads [h, skip] whose halves have very
different ranges. Making the split a property of the grid, rather than a second quantizer, leaves one code path for
every layer.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

MIN_BITS, MAX_BITS = 2, 8


class GridSpec(BaseModel):
    """An integer grid: how many codes, signed or not, and along which axes the scale varies.

    Attributes:
        bits: 2 to 8.
        signed: codes in [-2**(bits-1), 2**(bits-1) - 1] (int8) if true, else [0, 2**bits - 1] (uint8).
        axis: the axis *kept*, that is, with a scale of its own for every index (0 for weights), or None.
        groups: channel counts of the groups along axis 1; () is one group over all channels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: int = Field(ge=MIN_BITS, le=MAX_BITS)
    signed: bool
    axis: int | None = None
    groups: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _groups_are_positive(self) -> GridSpec:
        if any(size <= 0 for size in self.groups):
            raise ValueError(f"groups must be positive channel counts, got {self.groups}")
        if self.axis not in (None, 0):
            raise ValueError(f"axis must be None (per tensor) or 0 (per output channel), got {self.axis}")
        return self

    @property
    def quant_min(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def quant_max(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def dtype(self) -> torch.dtype:
        """Storage type of one code."""
        return torch.int8 if self.signed else torch.uint8

    @property
    def n_groups(self) -> int:
        return max(1, len(self.groups))

    def group_slices(self, channels: int) -> list[slice]:
        """Channel ranges of the groups along axis 1; one full range when there are no groups."""
        if not self.groups:
            return [slice(0, channels)]
        if sum(self.groups) != channels:
            raise ValueError(f"groups {self.groups} cover {sum(self.groups)} channels, the tensor has {channels}")
        bounds = [0]
        for size in self.groups:
            bounds.append(bounds[-1] + size)
        return [slice(a, b) for a, b in pairwise(bounds)]


def weight_spec(bits: int, groups: tuple[int, ...] = ()) -> GridSpec:
    """Signed codes, one scale per output channel (and per group of input channels)."""
    return GridSpec(bits=bits, signed=True, axis=0, groups=groups)


def activation_spec(bits: int, groups: tuple[int, ...] = ()) -> GridSpec:
    """Unsigned codes with a zero point, one scale for the whole tensor (and per group of channels)."""
    return GridSpec(bits=bits, signed=False, groups=groups)
