"""The simulated grid of one activation tensor.

One scale for all time steps, per tensor, as EDA-DM deploys it (one scale for each half of a split shortcut). The
scale is set by `calibration.ranges`, refined by `reconstruction`; nothing initialises itself in `forward`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mezzotint.grid.affine import fake_quantize
from mezzotint.grid.spec import GridSpec
from mezzotint.kernels.rounding import can_round, round_to_grid


class ActivationQuantizer(nn.Module):
    """Rounds what flows through it to its grid.

    Buffers:
        scale: float32 [G], grid step in the units of the tensor.
        zero_point: int32 [G].

    Attributes:
        learner: while reconstruction learns the scale, the module that computes the output in place of the fixed grid.
        enabled: False lets the tensor through unchanged (used while ranges are fitted on float activations).
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, spec: GridSpec) -> None:
        super().__init__()
        self.spec = spec
        self.learner: nn.Module | None = None
        self.enabled = True
        self.register_buffer("scale", torch.ones(spec.n_groups))
        self.register_buffer("zero_point", torch.zeros(spec.n_groups, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        if self.learner is not None:
            return self.learner(x)
        if not self.enabled:
            return x
        if can_round(x, self.scale):
            return round_to_grid(x, self.scale, self.zero_point, self.spec.quant_min, self.spec.quant_max)
        return fake_quantize(x, self.scale, self.zero_point, self.spec)

    def extra_repr(self) -> str:
        return f"bits={self.spec.bits}, groups={self.spec.groups}"
