"""EDA-DM (Liu et al., arXiv 2401.04585): TDAC selects calibration samples, FBR learns rounding and activation steps.

Defaults follow the paper where it is silent about faults of the released code; deviations, each with its reason:

- activations asymmetric: what follows SiLU is nearly one-sided, a symmetric range wastes almost a bit;
- conv_in and conv_out are the 8-bit layers, by name (the released code hits the first time-embedding layer);
- the rounding regulariser of AdaRound is on: without it over half of the soft roundings are undecided when hardened;
- the density radius is a quantile of the pairwise distances, repeated times are merged, counts are by largest
  remainder;
- inner layers of a unit are declared per block type, not taken by registration order;
- activation steps are learned in log space: they stay positive and one rate fits every layer;
- conv_out's bias takes up the mean error of eps that the sampler would pile up (`reconstruction.drift`); not in the
  paper, `drift_trajectories=0` leaves it out.
"""

from __future__ import annotations

from mezzotint.config import QuantizeConfig


def eda_dm(bits: str) -> QuantizeConfig:
    """Config of EDA-DM at `bits`."""
    return QuantizeConfig(recipe="eda-dm", bits=bits)
