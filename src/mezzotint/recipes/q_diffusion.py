"""Q-Diffusion (Li et al., ICCV 2023, arXiv 2302.04304): uniform time steps, block reconstruction, split shortcuts.

Calibration samples come evenly from all time steps. Blocks are reconstructed twice over (BRECQ, arXiv 2102.05426):
first the rounding of all weights, with AdaRound's regulariser (0.01, beta 20 to 2, warm-up 0.2) and float
activations, one block after the other; then, with weights final, the activation steps under an L_2.4 loss. No losses
of inner layers, no QDrop: nothing is dropped. The paper spends 20,000 and 5,000 iterations a block
(`--preset paper`, see `recipes.paper`); here the second phase takes a quarter of the first as well.

Deviations, each with its reason:

- ranges, split shortcuts and 8-bit layers as in every recipe here, so that a comparison shows the method. Its code
  starts from min-max ranges, asymmetric for weights too, which integer products would pay for;
- the regulariser acts on both halves of a split shortcut; in its code only the first half feels it;
- the rate of the rounding falls along a cosine from the rate that `eda-dm` has, which suits 1,000 iterations; Adam's
  own 0.001 without a schedule suits 20,000. Steps are learned in log space;
- softmax stays at 8 bit for Stable Diffusion too, where the paper needs 16.
"""

from __future__ import annotations

from mezzotint.config import QuantizeConfig, ReconstructionConfig, SelectionConfig, StepPhase
from mezzotint.models.families import Family
from mezzotint.recipes.eda_dm import BATCH_SIZE
from mezzotint.sampling.defaults import SAMPLERS


def q_diffusion(bits: str, family: Family = "ddim") -> QuantizeConfig:
    """Config of Q-Diffusion at `bits` for a model of `family`."""
    return QuantizeConfig(
        recipe="q-diffusion",
        bits=bits,
        sampler=SAMPLERS[family],
        selection=SelectionConfig(method="uniform"),
        reconstruction=ReconstructionConfig(
            batch_size=BATCH_SIZE[family],
            step_phase=StepPhase(share=0.25, norm=2.4),
            layer_weight=0.0,
            input_drop=0.0,
            activation_drop=0.0,
            keep_better=False,
        ),
        drift_trajectories=0,
    )
