"""The hyper-parameters of EDA-DM's experiments, family by family: what `--preset paper` spends.

Read off the released scripts (arXiv 2401.04585, repository BienLuky/EDA-DM, scripts/for_*.sh, and task_config.py where
a script gives nothing). Learning rates come in pairs, for 8-bit weights and for fewer bits. The samplers of the same
scripts are `mezzotint.sampling.defaults.SAMPLERS`.

    family     experiment                      N     lambda  r    pilot  gamma  iters  batch
    ddim       CIFAR-10, 32 x 32               1024  1.2     3.0  1024   0.8    5000   32
    ldm-vq     LSUN-Bedroom, LDM-4             1024  1.0     0.3    64   1.0    5000   32
    ldm-kl     LSUN-Church, LDM-8              1024  1.0     0.3    64   1.0    5000   32
    ldm-class  ImageNet, LDM-4                 1024  1.2     3.0    64   0.8    1000   32
    sd         MS-COCO, Stable Diffusion v1.4   256  5.0     0.3     8   0.8    1000    2

The radius r is absolute and was set by hand for each model; only `eda-dm-official` takes it.

`Q_DIFFUSION` is the same for Q-Diffusion (arXiv 2302.04304, scripts of Xiuyu-Li/q-diffusion): 20,000 iterations a block
(and a quarter of it for the steps) of 32 rows. Its set is 256 samples at each of 20 steps, 128 at 25 for Stable
Diffusion with 8 rows. Adam's rate is 0.001 throughout; 0.002 falling along a cosine has that mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from mezzotint.grid.bits import parse_bits
from mezzotint.models.families import Family


@dataclass(frozen=True)
class PaperSettings:
    """One row of the table above.

    Attributes:
        calib_size: N, trajectories.
        variety_weight: lambda.
        radius: r, mean squared distance of mid-block features.
        pilot_size: trajectories whose features score the steps (their first batch).
        layer_weight: gamma.
        iters, batch_size: of a unit's reconstruction.
        rounding_lr, step_lr: Adam's rates for (8-bit, lower) weights.
    """

    calib_size: int
    variety_weight: float
    radius: float
    pilot_size: int
    layer_weight: float
    iters: int
    batch_size: int
    rounding_lr: tuple[float, float]
    step_lr: tuple[float, float]

    def learning_rates(self, bits: str) -> dict[str, float]:
        """{"rounding_lr", "step_lr"} at `bits`."""
        low = parse_bits(bits).weight < 8
        return {"rounding_lr": self.rounding_lr[low], "step_lr": self.step_lr[low]}

    def spending(self, bits: str) -> dict[str, Any]:
        """What it says of size and learning, by the flat names of `mezzotint.config.FLAT_FIELDS`."""
        return {
            "calib_size": self.calib_size,
            "pilot_size": self.pilot_size,
            "variety_weight": self.variety_weight,
            "layer_weight": self.layer_weight,
            "iters": self.iters,
            "batch_size": self.batch_size,
            "rounding_lr": self.learning_rates(bits)["rounding_lr"],
        }


PAPER: dict[Family, PaperSettings] = {
    "ddim": PaperSettings(1024, 1.2, 3.0, 1024, 0.8, 5000, 32, (5e-2, 5e-1), (1e-3, 5e-4)),
    "ldm-vq": PaperSettings(1024, 1.0, 0.3, 64, 1.0, 5000, 32, (5e-4, 1e-2), (1e-4, 5e-3)),
    "ldm-kl": PaperSettings(1024, 1.0, 0.3, 64, 1.0, 5000, 32, (5e-2, 5e-2), (1e-4, 1e-4)),
    "ldm-class": PaperSettings(1024, 1.2, 3.0, 64, 0.8, 1000, 32, (1e-4, 5e-1), (1e-3, 1e-4)),
    "sd": PaperSettings(256, 5.0, 0.3, 8, 0.8, 1000, 2, (5e-4, 3e-2), (1e-4, 1e-4)),
}

_Q_DIFFUSION: dict[str, Any] = {"calib_size": 5120, "iters": 20000, "batch_size": 32, "rounding_lr": 2e-3}
Q_DIFFUSION: dict[Family, dict[str, Any]] = {
    **dict.fromkeys(get_args(Family), _Q_DIFFUSION),
    "sd": {**_Q_DIFFUSION, "calib_size": 3200, "batch_size": 8},
}
