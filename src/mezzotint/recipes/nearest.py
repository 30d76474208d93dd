"""Round to nearest: fitted ranges, no learning. The baseline that every method has to beat.

Ranges and calibration sampling are those of `eda_dm`, except that time steps are drawn uniformly, so that the
comparison isolates what selection and reconstruction bring.
"""

from __future__ import annotations

from mezzotint.config import QuantizeConfig, SelectionConfig
from mezzotint.models.families import Family
from mezzotint.sampling.defaults import SAMPLERS


def nearest(bits: str, family: Family = "ddim") -> QuantizeConfig:
    """Config of round-to-nearest at `bits` for a model of `family`."""
    return QuantizeConfig(
        recipe="nearest",
        bits=bits,
        sampler=SAMPLERS[family],
        selection=SelectionConfig(method="uniform"),
        reconstruction=None,
        drift_trajectories=0,
    )
