"""Grids of the time layers, one for each time of the sampler (TFMQ-DM, section 4.3: finite set calibration).

A time layer has one input at each time, a vector, so its range is known and not estimated: from its smallest to its
largest value, widened to hold zero. All T times go through the time block at once; each layer's grids are set as its
inputs arrive, which by then come from quantized layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.grid.search import SMALLEST_SCALE
from mezzotint.layers.swap import TIME_PROJ
from mezzotint.layers.timed import TaggedTimes, TimedQuantizer
from mezzotint.models.time_block import TimeBlock


def timed_quantizers(network: nn.Module) -> list[TimedQuantizer]:
    """The quantizers of `network` that have a grid for every time."""
    return [module for module in network.modules() if isinstance(module, TimedQuantizer)]


@torch.no_grad()
def fit_time_ranges_(simulated: nn.Module) -> None:
    """Sets the grids of the time layers of `simulated` for its weights as they are, if it has any."""
    quantizers = timed_quantizers(simulated)
    if not quantizers:
        return
    tagged = simulated.get_submodule(TIME_PROJ)
    assert isinstance(tagged, TaggedTimes)  # `prepare` put both there
    handles = [quantizer.register_forward_pre_hook(_fit_) for quantizer in quantizers]
    try:
        TimeBlock(simulated)(tagged.times.long())
    finally:
        for handle in handles:
            handle.remove()


def _fit_(quantizer: Any, inputs: tuple[Tensor, Tensor]) -> None:
    """Sets the grids of the rows that arrive: x [B, K], rows [B]."""
    (x, rows), spec = inputs, quantizer.spec
    low, high = x.amin(dim=1).clamp_max(0), x.amax(dim=1).clamp_min(0)
    scale = ((high - low) / (spec.quant_max - spec.quant_min)).clamp_min(SMALLEST_SCALE)
    quantizer.scale[rows] = scale
    quantizer.zero_point[rows] = torch.round(-low / scale).clamp(spec.quant_min, spec.quant_max).int()
