"""Frechet distance between two sets of features, each taken as a Gaussian.

    d^2 = |mean_a - mean_b|^2 + tr(cov_a) + tr(cov_b) - 2 tr( (cov_a cov_b)^(1/2) )                (1)

(Dowson & Landau 1982; Heusel et al. 2017 for images.) As is usual, what is reported is d^2.

The last trace is the sum of the singular values of sqrt(cov_a) @ sqrt(cov_b). Both roots come from symmetric
eigenproblems with negative rounding noise set to zero, so nothing turns complex and no matrix needs to be invertible:
with fewer samples than features the covariances are singular. `scipy.linalg.sqrtm` of the product, the common choice,
is unstable there.

The distance of finite samples is biased: two sets drawn from one distribution have d^2 > 0, the more so the fewer
samples. `enough_samples` says from where on we call the bias small.

Symmetric eigenproblems are a chain of small steps, after each of which all CPU threads wait for each other. Where other
work runs on the same cores that wait is all there is: one `eigh` of 256 features took 6 ms with one thread, 3 s with
two. So problems below `THREADED_FROM` features get one thread (`one_thread`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.evaluation.intervals import Estimate, bootstrap

SAMPLES_PER_FEATURE = 2
THREADED_FROM = 1024  # features; from there on a product outweighs the wait


@dataclass(frozen=True)
class Statistics:
    """Mean [f] and covariance [f, f] of a set of features, float64; how many samples, None if that is not recorded."""

    mean: Tensor
    cov: Tensor
    samples: int | None

    @property
    def enough_samples(self) -> bool:
        """At least two samples a feature; with fewer the distance says more about the sample than about the model."""
        return self.samples is not None and self.samples >= SAMPLES_PER_FEATURE * len(self.mean)


@contextmanager
def one_thread(features: int) -> Iterator[None]:
    """Torch with one CPU thread inside, if there are fewer than `THREADED_FROM` features; as before afterwards."""
    threads = torch.get_num_threads()
    if features >= THREADED_FROM or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def statistics(features: Float[Tensor, "n f"]) -> Statistics:
    """Mean and covariance (divided by n - 1, or by 1 for a single sample) in float64."""
    features = features.double()
    mean = features.mean(dim=0)
    centred = features - mean
    cov = centred.T @ centred / max(1, len(features) - 1)
    return Statistics(mean, cov, len(features))


def first_features(stats: Statistics, count: int) -> Statistics:
    """Statistics of the first `count` features alone."""
    return Statistics(stats.mean[:count], stats.cov[:count, :count], stats.samples)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Equation (1), never negative. Symmetric in its arguments; 0 for equal statistics up to rounding."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"statistics of {len(a.mean)} and of {len(b.mean)} features have no Frechet distance")
    with one_thread(len(a.mean)):
        coupling = torch.linalg.svdvals(psd_root(a.cov) @ psd_root(b.cov)).sum()
    squared = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * coupling
    return max(0.0, float(squared))


def distance_to(reference: Statistics) -> Callable[[Statistics], float]:
    """`frechet_distance` to one reference, faster for many sets: its root is computed once, and of each set only the
    eigenvalues of root cov root. Their rounding noise passes through a square root, so two equal sets are 1e-5 of
    tr(cov) apart: for the spread over resamples, not for the distance itself."""
    root, trace = psd_root(reference.cov), reference.cov.trace()

    def distance(stats: Statistics) -> float:
        coupling = torch.linalg.eigvalsh(root @ stats.cov @ root).clamp_min(0).sqrt().sum()
        squared = (stats.mean - reference.mean).square().sum() + stats.cov.trace() + trace - 2 * coupling
        return max(0.0, float(squared))

    return distance


def frechet_estimate(features: Float[Tensor, "n f"], reference: Statistics, *, resamples: int, seed: int) -> Estimate:
    """Distance of a set to a reference that stays as it is, with its interval over the set."""
    features = features.double()
    with one_thread(features.shape[1]):
        value, distance = frechet_distance(statistics(features), reference), distance_to(reference)
        count, draw = len(features), {"resamples": resamples, "seed": seed}
        drawn = bootstrap(lambda rows: distance(statistics(features[rows])), count, **draw)
    half = (drawn.high - drawn.low) / 2
    return Estimate(value=value, low=max(0.0, value - half), high=value + half)


def psd_root(matrix: Float[Tensor, "f f"]) -> Float[Tensor, "f f"]:
    """The symmetric root of a positive semi-definite matrix; eigenvalues below zero, rounding noise, count as zero."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
