"""The metrics by name: which features each is made of, what it needs of a reference, and how it is computed.

    metric      score(s)            features              needs of the reference      images of the protocol
    fid         FID                 pool3                 statistics                  50,000
    sfid        sFID                spatial               statistics                  50,000
    is          IS                  logits                nothing                     50,000
    kid         KID                 pool3                 images                      10,000
    pr          precision, recall   pool3                 images                      10,000
    fd-zoo      FD-zoo              fd-zoo                statistics                  2,048
    kd-zoo      KD-zoo              fd-zoo                images                      2,048
    fd-dino     FD-DINOv2           dinov2                statistics                  50,000
    cmmd        CMMD                clip-336              images                      5,000
    clip        CLIP score          clip                  nothing; captions           10,000

The last column is how many images published values are made of (for FD-zoo and KD-zoo, what we suggest).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mezzotint.evaluation.clip import clip_scores, cmmd
from mezzotint.evaluation.frechet import Statistics, frechet_estimate
from mezzotint.evaluation.inception_score import inception_score
from mezzotint.evaluation.intervals import Estimate, bootstrap, interval, resample_counts
from mezzotint.evaluation.kid import kid
from mezzotint.evaluation.precision_recall import precision_recall

LIMIT = 10_000  # images a side compared pair by pair: the cost grows with the square, the interval hardly shrinks


@dataclass(frozen=True)
class Measured:
    """What a metric is computed from: features of the images, and of the reference what the metric needs."""

    features: Tensor
    statistics: Statistics | None
    reference: Tensor | None
    resamples: int
    seed: int

    @property
    def draw(self) -> dict[str, int]:
        """Arguments of `bootstrap` over the images."""
        return {"count": len(self.features), "resamples": self.resamples, "seed": self.seed}


def measure_frechet(given: Measured) -> list[Estimate]:
    """Frechet distance."""
    assert given.statistics is not None
    return [frechet_estimate(given.features, given.statistics, resamples=given.resamples, seed=given.seed)]


def measure_kid(given: Measured) -> list[Estimate]:
    """Kernel distance of at most LIMIT images a side."""
    assert given.reference is not None
    x, y = given.features[:LIMIT], given.reference[:LIMIT]
    drawn = kid(x, y, _weights(len(x), given))
    return [interval(float(drawn[0]), drawn[1:].tolist())]


def measure_cmmd(given: Measured) -> list[Estimate]:
    """CMMD of at most LIMIT images a side."""
    assert given.reference is not None
    x, y = given.features[:LIMIT], given.reference[:LIMIT]
    drawn = cmmd(x, y, _weights(len(x), given))
    return [interval(float(drawn[0]), drawn[1:].tolist())]


def measure_precision_recall(given: Measured) -> list[Estimate]:
    """Precision and recall of at most LIMIT images a side; the interval of recall is over the reference's images."""
    assert given.reference is not None
    shares = precision_recall(given.features[:LIMIT], given.reference[:LIMIT])
    return [_share(hits, given) for hits in shares]


def measure_inception_score(given: Measured) -> list[Estimate]:
    """Inception score of the logits."""
    return [bootstrap(lambda rows: inception_score(given.features[rows]), **given.draw, lower_bound=1.0)]


def measure_clip(given: Measured) -> list[Estimate]:
    """Mean CLIP score; the reference's features are those of the captions."""
    assert given.reference is not None
    scores = clip_scores(given.features, given.reference).double()
    return [bootstrap(lambda rows: float(scores[rows].mean()), **given.draw, lower_bound=0.0, upper_bound=100.0)]


@dataclass(frozen=True)
class Metric:
    """A row of the table above; `measure` gives an estimate for each of `names`."""

    names: tuple[str, ...]
    features: str
    needs: Literal["statistics", "images", "captions", "nothing"]
    protocol: int
    measure: Callable[[Measured], list[Estimate]]
    higher_is_better: bool = False


METRICS: dict[str, Metric] = {
    "fid": Metric(("FID",), "pool3", "statistics", 50_000, measure_frechet),
    "sfid": Metric(("sFID",), "spatial", "statistics", 50_000, measure_frechet),
    "is": Metric(("IS",), "logits", "nothing", 50_000, measure_inception_score, True),
    "kid": Metric(("KID",), "pool3", "images", 10_000, measure_kid),
    "pr": Metric(("precision", "recall"), "pool3", "images", 10_000, measure_precision_recall, True),
    "fd-zoo": Metric(("FD-zoo",), "fd-zoo", "statistics", 2_048, measure_frechet),
    "kd-zoo": Metric(("KD-zoo",), "fd-zoo", "images", 2_048, measure_kid),
    "fd-dino": Metric(("FD-DINOv2",), "dinov2", "statistics", 50_000, measure_frechet),
    "cmmd": Metric(("CMMD",), "clip-336", "images", 5_000, measure_cmmd),
    "clip": Metric(("CLIP score",), "clip", "captions", 10_000, measure_clip, True),
}


def _weights(count: int, given: Measured) -> Float[Tensor, "r n"]:
    """How often each image counts: once in the first row, then as in each resample."""
    once = torch.ones((1, count), dtype=torch.float64)
    return torch.cat([once, resample_counts(count, given.resamples, given.seed)])


def _share(hits: Bool[Tensor, " n"], given: Measured) -> Estimate:
    """Share of the images that are hits."""
    values = hits.double()
    draw = {**given.draw, "count": len(hits)}
    return bootstrap(lambda rows: float(values[rows].mean()), **draw, lower_bound=0.0, upper_bound=1.0)
