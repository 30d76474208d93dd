"""What separates `eda-dm` from `eda-dm-official`, fault by fault, so that each can be measured alone.

A row names the options in which the two recipes differ, each option in one row only. What a row changes is read off the
two configs at hand (`differences`), since sizes and rates depend on the family, the bits and what was asked for on the
command line. All rows together turn one config into the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mezzotint.config import QuantizeConfig, setting


class Row(NamedTuple):
    """A difference: what the released code does, in a sentence, and the dotted names of the options that say so."""

    sentence: str
    options: tuple[str, ...]


class Difference(NamedTuple):
    """A row at given configs: `changes` takes `eda-dm` there, for `mezzotint.config.with_settings`."""

    sentence: str
    changes: dict[str, Any]


DIFFERENCES: dict[str, Row] = {
    # calibration set
    "size": Row("takes the published number of calibration samples", ("selection.calib_size",)),
    "pilot": Row("scores the steps on the first batch of trajectories", ("selection.pilot_size",)),
    "radius": Row("counts neighbours within an absolute radius, set by hand for each model", ("selection.radius",)),
    "repeats": Row("scores repeated times as steps of their own", ("selection.merge_repeated",)),
    "allocation": Row("rounds the counts and gives what is left to the biggest", ("selection.allocation",)),
    "plms-feature": Row(
        "scores the first step of PLMS by its second network call, which is at the next time",
        ("selection.feature_call",),
    ),
    "conditions": Row("calibrates on the prompts or classes that are evaluated", ("condition_split",)),
    # grids
    "edges": Row(
        "gives 8 bits to the first time-embedding layer instead of conv_in, and leaves conv_out's input in float",
        ("edge_layers",),
    ),
    "split": Row("does not split the shortcuts (a flag on the wrong object)", ("split_shortcuts",)),
    "symmetric": Row("has symmetric ranges for activations (an inverted flag)", ("ranges.symmetric_activations",)),
    "running-ranges": Row(
        "searches activation ranges batch by batch and averages them; which side is open is fixed by the first batch",
        ("ranges.method", "ranges.ema_batch"),
    ),
    "softmax-grid": Row(
        "searches the grid of attention's probabilities by their own error, not by that of their product with v",
        ("ranges.probabilities",),
    ),
    # reconstruction
    "iterations": Row(
        "takes the published iterations and rows in each", ("reconstruction.iters", "reconstruction.batch_size")
    ),
    "rounding-rate": Row("learns the rounding at the published rate", ("reconstruction.rounding_lr",)),
    "linear-steps": Row(
        "learns activation steps themselves, at one absolute rate and with nothing to keep them positive",
        ("reconstruction.step_parameter", "reconstruction.step_lr"),
    ),
    "qdrop": Row(
        "leaves half of a block's inputs and half of its activations in float while the block learns (QDrop)",
        ("reconstruction.input_drop", "reconstruction.activation_drop"),
    ),
    "no-regulariser": Row("leaves out the rounding regulariser", ("reconstruction.rounding_weight",)),
    "registered-layers": Row(
        "leaves the layer registered last out of the layer losses, which is often not the one that makes the output",
        ("reconstruction.inner_layers",),
    ),
    "second-pass": Row(
        "takes the layer losses from a second quantized pass, which has other masks where QDrop is on",
        ("reconstruction.separate_layer_pass",),
    ),
    "token-axis": Row(
        "sums losses over the tokens of transformer blocks, not over features", ("reconstruction.loss_axis",)
    ),
    "checkpointing": Row(
        "checkpoints some blocks: their layer losses have no gradient (and that of the block loss is at other masks, "
        "where QDrop is on)",
        ("reconstruction.checkpointed",),
    ),
    "keep-learned": Row(
        "keeps what was learned even where nearest rounding is better", ("reconstruction.keep_better",)
    ),
    # after reconstruction
    "no-output-correction": Row("leaves the mean error of eps in the output", ("drift_trajectories",)),
}


def differences(ours: QuantizeConfig, released: QuantizeConfig) -> dict[str, Difference]:
    """The rows in which two configs differ, `ours` from `eda-dm` and `released` from `eda-dm-official`."""
    found = {}
    for name, row in DIFFERENCES.items():
        changes = {option: setting(released, option) for option in row.options}
        if any(setting(ours, option) != value for option, value in changes.items()):
            found[name] = Difference(row.sentence, changes)
    return found
