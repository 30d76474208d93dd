"""EDA-DM (Liu et al., arXiv 2401.04585): TDAC selects calibration samples, FBR learns rounding and activation steps.

Defaults follow the paper where it is silent about faults of the released code; deviations, each with its reason
(`recipes.differences` has them as options, one by one):

- activations asymmetric: what follows SiLU is nearly one-sided, a symmetric range wastes almost a bit;
- conv_in and conv_out are the 8-bit layers, by name (the released code hits the first time-embedding layer);
- the rounding regulariser of AdaRound is on: without it over half of the soft roundings are undecided when hardened;
- the density radius is a quantile of the pairwise distances, repeated times are merged, counts are by largest
  remainder;
- inner layers of a unit are declared per block type, not taken by registration order;
- activation steps are learned in log space: they stay positive and one rate fits every layer;
- no QDrop (`reconstruction.input_drop=0.5` and `activation_drop=0.5` are the released ones): a block that sees half of
  its input in float learns to mend less of the error it will get (up to 0.5 dB of eps at W4A8, `docs/LOG.md`;
  at W4A4 the pixel model's pictures are 1.5 dB better with it, at the same eps);
- the first grid of attention's probabilities is chosen by the error of their product with v (`ranges.probabilities`);
- conv_out's bias takes up the mean error of eps that the sampler would pile up (`reconstruction.drift`); not in the
  paper, `drift_trajectories=0` leaves it out.
"""

from __future__ import annotations

from mezzotint.config import QuantizeConfig, RangeConfig, ReconstructionConfig, SelectionConfig
from mezzotint.models.families import Family
from mezzotint.recipes.paper import PAPER
from mezzotint.sampling.defaults import SAMPLERS

# Rows in an optimiser step. A block of Stable Diffusion at 64 x 64 keeps 4 to 5 GB a row for its gradients.
BATCH_SIZE: dict[Family, int] = {"ddim": 32, "ldm-vq": 32, "ldm-kl": 32, "ldm-class": 32, "sd": 4}


def eda_dm(bits: str, family: Family = "ddim") -> QuantizeConfig:
    """Config of EDA-DM at `bits` for a model of `family`, with the paper's sampler, lambda and gamma for it."""
    paper = PAPER[family]
    return QuantizeConfig(
        recipe="eda-dm",
        bits=bits,
        sampler=SAMPLERS[family],
        selection=SelectionConfig(variety_weight=paper.variety_weight),
        ranges=RangeConfig(probabilities="product"),
        reconstruction=ReconstructionConfig(layer_weight=paper.layer_weight, batch_size=BATCH_SIZE[family]),
    )
