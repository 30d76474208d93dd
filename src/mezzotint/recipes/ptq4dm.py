"""PTQ4DM (Shang et al., CVPR 2023, arXiv 2211.15736): time steps that calibrate are normally distributed.

The method is its calibration set, "normally distributed time-step calibration": sample k is x_t at a step drawn from
a normal distribution around 0.4 of the way from the image to pure noise, standard deviation 0.4 (the setting of its
script for DDIM; the paper asks for a middle below one half). Ranges are searched, weights are rounded to nearest:
that script learns no rounding.

Deviations, each with its reason:

- counts are the expected ones of that distribution, its tails on the end steps, instead of random draws: repeatable;
- ranges as in every recipe here (p = 2.4, activations asymmetric, conv_in and conv_out at 8 bit), so that a
  comparison shows the calibration set; its code has symmetric activations;
- x_t is labelled with its own time. Its code counts the loop's passes from pure noise and labels them as if from the
  image.
"""

from __future__ import annotations

from mezzotint.config import QuantizeConfig, SelectionConfig
from mezzotint.models.families import Family
from mezzotint.recipes.nearest import nearest


def ptq4dm(bits: str, family: Family = "ddim") -> QuantizeConfig:
    """Config of PTQ4DM at `bits` for a model of `family`."""
    selection = SelectionConfig(method="normal", normal_mean=0.4, normal_std=0.4)
    return nearest(bits, family).model_copy(update={"recipe": "ptq4dm", "selection": selection})
