"""Round to nearest on ranges from the smallest to the largest value: no search, no clipping, no learning.

What a toolkit does that knows nothing of diffusion. It is `nearest` with one clip threshold, the whole range.
"""

from __future__ import annotations

from mezzotint.config import QuantizeConfig, RangeConfig
from mezzotint.models.families import Family
from mezzotint.recipes.nearest import nearest


def nearest_minmax(bits: str, family: Family = "ddim") -> QuantizeConfig:
    """Config of round-to-nearest with min-max ranges at `bits` for a model of `family`."""
    update = {"recipe": "nearest-minmax", "ranges": RangeConfig(candidates=1)}
    return nearest(bits, family).model_copy(update=update)
