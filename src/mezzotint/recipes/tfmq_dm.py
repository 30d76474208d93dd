"""TFMQ-DM (Huang et al., CVPR 2024, arXiv 2311.16503): what sees the time alone is quantized apart.

The time embedding and the projections by which every residual block is told the time form one block. It is learned
against its float outputs at all times of the sampler (`reconstruction.time_block`), and its layers have a grid for
each of these times (`calibration.time_ranges`, `layers.timed`). Everything else is block reconstruction of weights on
uniformly drawn samples, with AdaRound's regulariser, as in `q_diffusion`, on which the authors' code (ModelTC/TFMQ-DM,
Apache 2.0; read, not copied) is built too; activation ranges are averaged over batches and not learned.

Deviations, each with its reason:

- only the time layers have grids by time, as the paper describes; the authors' code swaps the grids of *all*
  activations at every step of its sampler, a hundred sets of parameters;
- activation ranges of the other layers are one search over all rows, and 8-bit layers and split shortcuts are those of
  every recipe here, so that a comparison shows the method;
- rates and iterations are those of `q_diffusion`, for the reasons given there.
"""

from __future__ import annotations

from mezzotint.config import QuantizeConfig, with_settings
from mezzotint.models.families import Family
from mezzotint.recipes.q_diffusion import q_diffusion


def tfmq_dm(bits: str, family: Family = "ddim") -> QuantizeConfig:
    """Config of TFMQ-DM at `bits` for a model of `family`."""
    changes = {"recipe": "tfmq-dm", "time_layers": "apart", "reconstruction.step_phase.share": 0.0}
    return with_settings(q_diffusion(bits, family), changes)
