"""Round to nearest: fitted ranges, no learning. The baseline that every method has to beat.

Ranges and calibration sampling are those of `eda_dm`, except that time steps are drawn uniformly, so that the
comparison isolates what selection and reconstruction bring.
"""

from __future__ import annotations

from mezzotint.config import QuantizeConfig, SelectionConfig


def nearest(bits: str) -> QuantizeConfig:
    """Config of round-to-nearest at `bits`."""
    return QuantizeConfig(
        recipe="nearest",
        bits=bits,
        selection=SelectionConfig(method="uniform"),
        reconstruction=None,
        drift_trajectories=0,
    )
