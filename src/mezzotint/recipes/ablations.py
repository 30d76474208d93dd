"""What becomes of `eda-dm` without a part of it, or with another value of one option.

A row changes dotted options of the config (`mezzotint.config.with_settings`); a row that says what a config has
already changes nothing and need not be run.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Ablation(NamedTuple):
    """A sentence about the changed method, and the changes."""

    sentence: str
    changes: dict[str, Any]


ABLATIONS: dict[str, Ablation] = {
    # TDAC
    "no TDAC": Ablation("as many calibration samples from every time step", {"selection.method": "uniform"}),
    "density only": Ablation("steps scored by density alone (lambda 0)", {"selection.variety_weight": 0.0}),
    "variety only": Ablation(
        "steps scored by variety alone", {"selection.density_weight": 0.0, "selection.variety_weight": 1.0}
    ),
    "lambda 0.5": Ablation("less weight on variety", {"selection.variety_weight": 0.5}),
    "lambda 5": Ablation("more weight on variety", {"selection.variety_weight": 5.0}),
    "N 128": Ablation("128 calibration samples", {"selection.calib_size": 128}),
    "N 256": Ablation("256 calibration samples", {"selection.calib_size": 256}),
    "N 1024": Ablation("1,024 calibration samples", {"selection.calib_size": 1024}),
    # FBR
    "no FBR": Ablation("block losses alone (gamma 0)", {"reconstruction.layer_weight": 0.0}),
    "gamma 0.2": Ablation("less weight on the inner layers", {"reconstruction.layer_weight": 0.2}),
    "gamma 3": Ablation("more weight on the inner layers", {"reconstruction.layer_weight": 3.0}),
    "no reconstruction": Ablation("nearest rounding on TDAC's samples", {"reconstruction": None}),
    "Fisher": Ablation(
        "errors of a block weighted by a diagonal Fisher estimate", {"reconstruction.block_weighting": "fisher"}
    ),
    "no regulariser": Ablation("nothing pulls roundings to a decision", {"reconstruction.rounding_weight": 0.0}),
    "QDrop": Ablation(
        "half of a block's inputs and half of its activations stay in float while the block learns, as released",
        {"reconstruction.input_drop": 0.5, "reconstruction.activation_drop": 0.5},
    ),
    "weights then steps": Ablation(
        "rounding learned with float activations, steps in a walk of their own (Q-Diffusion's order)",
        {"reconstruction.step_phase": {"share": 0.25, "norm": 2.0}},
    ),
    # grids and what comes after
    "no split": Ablation("one grid for both halves of a shortcut", {"split_shortcuts": False}),
    "float edges": Ablation("inputs of conv_in and conv_out as they are", {"edge_layers": "float-inputs"}),
    "symmetric": Ablation("symmetric activation ranges", {"ranges.symmetric_activations": True}),
    "no output correction": Ablation("conv_out's bias as it was", {"drift_trajectories": 0}),
}
