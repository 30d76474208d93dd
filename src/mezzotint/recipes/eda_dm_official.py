"""EDA-DM as its authors released it (CIFAR-10 settings), faults included, so that every fix can be measured.

From the description of the released code: symmetric ranges for activations too (an inverted flag), searched per batch
and averaged; absolute density radius 3.0, plain rounding of the counts, repeated times counted; the first
*registered* weight (a time-embedding layer) and conv_out's weight at 8 bit, conv_out's input float; no rounding
regulariser; learning rates 0.5 / 5e-4 at 4-bit and 5e-2 / 1e-3 at 8-bit weights; the last registered layer of a unit
left out of the layer loss; layer losses from a second quantized forward with new QDrop masks;
learned rounding kept even where it lost.
"""

from __future__ import annotations

from mezzotint.config import QuantizeConfig, RangeConfig, ReconstructionConfig, SelectionConfig
from mezzotint.grid.bits import parse_bits


def eda_dm_official(bits: str) -> QuantizeConfig:
    """Config of the released EDA-DM at `bits`."""
    low = parse_bits(bits).weight < 8
    return QuantizeConfig(
        recipe="eda-dm-official",
        bits=bits,
        edge_layers="released",
        selection=SelectionConfig(
            calib_size=1024,
            pilot_size=1024,
            variety_weight=1.2,
            radius=3.0,
            merge_repeated=False,
            allocation="round",
        ),
        ranges=RangeConfig(symmetric_activations=True, method="ema"),
        reconstruction=ReconstructionConfig(
            iters=5000,
            rounding_lr=0.5 if low else 5e-2,
            step_lr=5e-4 if low else 1e-3,
            step_parameter="linear",
            inner_layers="registered",
            rounding_weight=0.0,
            separate_layer_pass=True,
            keep_better=False,
        ),
        drift_trajectories=0,
    )
