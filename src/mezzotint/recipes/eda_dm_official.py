"""EDA-DM as its authors released it, faults included, so that every fix can be measured (`recipes.differences`).

From a description of the released code (arXiv 2401.04585, repository BienLuky/EDA-DM); sizes, learning rates and radius
are those of `recipes.paper`, family by family. What else it does:

- calibration set: absolute density radius, scores from the first batch of trajectories, repeated times counted, counts
  rounded and their rest given to the biggest; the first step of PLMS scored by its second network call; the prompts
  and classes that are evaluated calibrate;
- grids: symmetric activations (an inverted flag), searched per batch and averaged, one-sided where the first batch
  was; 8 bits for the first *registered* weight (a time-embedding layer), for conv_out's weight and for the second last
  registered input, conv_out's input in float; shortcuts of Stable Diffusion not split (a flag on the wrong object);
- reconstruction: no rounding regulariser; the layer that is registered last left out of the layer losses; these from a
  second quantized pass with new QDrop masks; sums over axis 1, which are tokens in transformer blocks; blocks that it
  checkpoints (attention of the unconditional latent models, residual blocks of Stable Diffusion) without any
  gradient of layer losses, and with that of the block loss at the masks of a recomputed pass; absolute learning rate of
  the steps, without a guard; what was learned kept even where it lost.

Not reproduced, because it crashes there: min-max of a constant score (0/0), counts that its code for LSUN-Church takes
below zero, sizes that its batches do not divide. Because it is no part of quantization: float16 autocast of Stable
Diffusion's sampling, the invisible watermark in its images before they are scored. Because it is not known well
enough: when the attention products of the unconditional latent models get their first ranges (they are wrapped after
all others were fitted). Ranges are searched on a random sample of each tensor with its extremes, not on all of it.
"""

from __future__ import annotations

from typing import Literal

from mezzotint.config import QuantizeConfig, RangeConfig, ReconstructionConfig, SelectionConfig
from mezzotint.models.families import Family
from mezzotint.recipes.paper import PAPER
from mezzotint.sampling.defaults import SAMPLERS

# Blocks whose forward pass is checkpointed there.
CHECKPOINTED: dict[Family, tuple[Literal["resnet", "attention"], ...]] = {
    "ddim": (),
    "ldm-vq": ("attention",),
    "ldm-kl": ("attention",),
    "ldm-class": (),
    "sd": ("resnet",),
}
# Network rows of a batch of the running ranges: batches of 256, 32 and 2 samples, two rows each under guidance.
RANGE_ROWS: dict[Family, int] = {"ddim": 256, "ldm-vq": 32, "ldm-kl": 32, "ldm-class": 64, "sd": 4}


def eda_dm_official(bits: str, family: Family = "ddim") -> QuantizeConfig:
    """Config of the released EDA-DM at `bits` for a model of `family`; a fault is there where it has an effect."""
    paper, sampler = PAPER[family], SAMPLERS[family]
    conditional = family in ("ldm-class", "sd")  # these have conditions, and transformer blocks to take them in
    return QuantizeConfig(
        recipe="eda-dm-official",
        bits=bits,
        edge_layers="released" if family == "ddim" else "released-latent",
        split_shortcuts=family != "sd",
        sampler=sampler,
        condition_split="evaluation" if conditional else "calibration",
        selection=SelectionConfig(
            calib_size=paper.calib_size,
            pilot_size=paper.pilot_size,
            variety_weight=paper.variety_weight,
            radius=paper.radius,
            merge_repeated=sampler.spacing == "uniform",  # uniform times do not repeat
            allocation="round",
            feature_call="last" if sampler.kind == "plms" else "first",
        ),
        ranges=RangeConfig(symmetric_activations=True, method="ema", ema_batch=RANGE_ROWS[family]),
        reconstruction=ReconstructionConfig(
            iters=paper.iters,
            batch_size=paper.batch_size,
            layer_weight=paper.layer_weight,
            input_drop=0.5,
            activation_drop=0.5,
            **paper.learning_rates(bits),
            step_parameter="linear",
            inner_layers="registered",
            loss_axis="first" if conditional else "features",
            checkpointed=CHECKPOINTED[family],
            rounding_weight=0.0,
            separate_layer_pass=True,
            keep_better=False,
        ),
        drift_trajectories=0,
    )
