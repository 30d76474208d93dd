"""An evaluation in words. The thresholds are ours, stand on every report, and judge one number: the mean image PSNR.

Words need a scale, and no standard has one for images of a quantized generator, so this one is written down instead
of implied. It was set by looking at pairs of 32 x 32 images; it says nothing about beauty, only about sameness.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from mezzotint.evaluation.result import Evaluation

SMALLER = 1.05  # from this ratio of sizes on the headline calls it smaller
HYPHEN = "\u2011"  # does not break at the end of a line


@dataclass(frozen=True)
class Grade:
    """Words for a mean image PSNR of at least `from_db`."""

    from_db: float
    name: str
    meaning: str


GRADES = (
    Grade(40.0, "the same to the eye", "differences hide below what a screen shows"),
    Grade(30.0, "a close print", "the same pictures; differences show on a second look"),
    Grade(25.0, "a fair print", "the same pictures, details differ"),
    Grade(20.0, "a worn print", "mostly the same subjects, visibly different pictures"),
    Grade(-math.inf, "a spoiled print", "many pictures no longer show what the float model drew"),
)


@dataclass(frozen=True)
class Verdict:
    """A headline, and the sentences with the numbers behind it."""

    headline: str
    grade: Grade
    sentences: list[str]


def grade_of(psnr_mean: float) -> Grade:
    """The first grade whose threshold the mean image PSNR reaches."""
    return next(grade for grade in GRADES if psnr_mean >= grade.from_db or grade is GRADES[-1])


def bits_in_words(bits: str) -> str:
    """`w4a8` -> "4-bit weights, 8-bit activations"; anything else stays as it is."""
    match = re.fullmatch(r"w(\d+)a(\d+)", bits.strip().lower())
    if match is None:
        return bits
    weights, activations = match.groups()
    return (
        f"{weights}{HYPHEN}bit weights, {'float' if activations == '32' else f'{activations}{HYPHEN}bit'} activations"
    )


def verdict(evaluation: Evaluation) -> Verdict:
    """The headline and three sentences: pictures, network, cost."""
    grade = grade_of(evaluation.paired.psnr_mean.value)
    ratio = evaluation.cost.network.ratio
    size = f"{ratio:.1f}× smaller" if ratio >= SMALLER else "not smaller"
    headline = f"{bits_in_words(evaluation.bits)}: {size}, {grade.name}."
    return Verdict(headline, grade, [_pictures(evaluation), _network(evaluation), _speed(evaluation)])


def decibel(value: float, digits: int = 1) -> str:
    """A dB value for a sentence."""
    return f"{value:.{digits}f} dB" if math.isfinite(value) else ("∞ dB" if value > 0 else "no signal")


def _pictures(evaluation: Evaluation) -> str:
    paired = evaluation.paired
    return (
        f"Over {evaluation.samples} seeds the quantized model’s image has a mean PSNR of "
        f"{decibel(paired.psnr_mean.value)} against the float model’s image of the same seed. "
        f"One image in ten is below {decibel(paired.psnr_low)}; "
        f"with all errors pooled it is {decibel(paired.psnr_pooled.value)}."
    )


def _network(evaluation: Evaluation) -> str:
    worst = min(evaluation.steps, key=lambda row: row.sqnr_db)
    best = max(evaluation.steps, key=lambda row: row.sqnr_db)
    return (
        f"In a single call of the network the predicted noise keeps {decibel(evaluation.sqnr_db)} of signal to "
        f"quantization noise on average: {decibel(best.sqnr_db)} at best (t = {best.t}), "
        f"{decibel(worst.sqnr_db)} at worst (t = {worst.t})."
    )


def _speed(evaluation: Evaluation) -> str:
    latency = evaluation.cost.latency
    return (
        f"One call with a batch of {latency.batch} ran {latency.speedup:.2f}× as fast as the float network "
        f"on {latency.device}, {latency.threads} thread{'s' if latency.threads != 1 else ''}, measured in this run."
    )
