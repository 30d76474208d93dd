"""EDA-DM as its authors released it, faults included, so that every fix can be measured.

Sizes, learning rates and radius are those of `paper`, family by family. From the description of the released code:
symmetric ranges for activations too (an inverted flag), searched per batch
and averaged; absolute density radius, plain rounding of the counts, repeated times counted; the first
*registered* weight (a time-embedding layer) and conv_out's weight at 8 bit, conv_out's input float; no rounding
regulariser; the last registered layer of a unit
left out of the layer loss; layer losses from a second quantized forward with new QDrop masks;
learned rounding kept even where it lost.
"""

from __future__ import annotations

from mezzotint.config import QuantizeConfig, RangeConfig, ReconstructionConfig, SelectionConfig
from mezzotint.models.families import Family
from mezzotint.recipes.paper import PAPER
from mezzotint.sampling.defaults import SAMPLERS


def eda_dm_official(bits: str, family: Family = "ddim") -> QuantizeConfig:
    """Config of the released EDA-DM at `bits` for a model of `family`."""
    paper = PAPER[family]
    return QuantizeConfig(
        recipe="eda-dm-official",
        bits=bits,
        edge_layers="released",
        sampler=SAMPLERS[family],
        selection=SelectionConfig(
            calib_size=paper.calib_size,
            pilot_size=paper.pilot_size,
            variety_weight=paper.variety_weight,
            radius=paper.radius,
            merge_repeated=False,
            allocation="round",
        ),
        ranges=RangeConfig(symmetric_activations=True, method="ema"),
        reconstruction=ReconstructionConfig(
            iters=paper.iters,
            batch_size=paper.batch_size,
            layer_weight=paper.layer_weight,
            **paper.learning_rates(bits),
            step_parameter="linear",
            inner_layers="registered",
            rounding_weight=0.0,
            separate_layer_pass=True,
            keep_better=False,
        ),
        drift_trajectories=0,
    )
