"""TDAC: how many calibration samples each time step deserves (EDA-DM, section on temporal distribution alignment).

Let F_i (i = 0..T-1) be the mid-block features of step i over a pilot batch, flattened to d entries, and f_i[p] the
channel vector of pixel p scaled to unit length (P pixels over the whole batch).

    d_ij = mean (F_i - F_j)^2                                   squared distance of two steps             (1)
    D_i  = #{ j != i : d_ij <= r }                              density: how many steps look like this    (2)
    V_i  = sum_{j != i} sum_p [ 1 - <f_i[p], f_j[p]> ]          variety: how unlike the others            (3)
    S_i  = mm(D)_i + lambda mm(V)_i                             mm = scaled to [0, 1]                     (4)
    n_i  = N S_i / sum_j S_j                                    samples of step i, rounded to sum to N    (5)

Both sums are computed without the T^2 loops of the released code (checked against them in the tests):

- (1) from the Gram matrix of features *centred over the steps*. Without centring, float32 cancellation makes the
  distance of near-identical steps negative.
- (3) as (T-1) P - (<g_i, sum_j g_j> - <g_i, g_i>), O(T d).

The pilot is walked batch by batch; only [T, T] and [T] sums are kept between batches.

    name      dtype    shape    unit
    distance  float64  [T, T]   squared feature units
    density   float64  [T]      steps
    variety   float64  [T]      pixels (0 = same direction everywhere)
    counts    int64    [T]      samples

Differs from the released code: min-max of a constant score is 0 instead of 0/0, an all-zero score allocates
uniformly; the radius defaults to a quantile of the off-diagonal d_ij, since an absolute one means nothing on another
model; counts are rounded by largest remainder (plain rounding sends every sample to an arbitrary run of steps when N
<< T).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

COSINE_EPS = 1e-6


class StepSimilarity:
    """Running sums of (1) and (3) over pilot batches.

    Feed it with `add`; read `distance()` and `variety()`.
    """

    def __init__(self) -> None:
        self._gram: Tensor | None = None
        self._variety: Tensor | None = None
        self._entries = 0

    def add(self, features: Float[Tensor, "t b c *pixels"]) -> None:
        """Adds a pilot batch: features of all T steps for the same b trajectories."""
        centred = (features - features.mean(dim=0, keepdim=True)).flatten(1)
        gram = torch.mm(centred, centred.t()).double()
        variety = _variety(features)
        self._gram = gram if self._gram is None else self._gram + gram
        self._variety = variety if self._variety is None else self._variety + variety
        self._entries += centred.shape[1]

    def distance(self) -> Float[Tensor, "t t"]:
        """Equation (1), symmetric, exactly zero on the diagonal, never negative."""
        if self._gram is None:
            raise ValueError("no pilot batch was added")
        norms = self._gram.diagonal()
        distance = (norms[:, None] + norms[None, :] - 2 * self._gram) / self._entries
        return distance.clamp_min(0).fill_diagonal_(0)

    def variety(self) -> Float[Tensor, "t"]:
        """Equation (3)."""
        if self._variety is None:
            raise ValueError("no pilot batch was added")
        return self._variety


def _variety(features: Float[Tensor, "t b c *pixels"]) -> Float[Tensor, "t"]:
    units = features / features.norm(dim=2, keepdim=True).clamp_min(COSINE_EPS)
    steps, channels = features.shape[0], features.shape[2]
    pixels = features[0].numel() // channels
    flat = units.flatten(1).double()
    total = flat.sum(dim=0)
    return (steps - 1) * pixels - (flat @ total - flat.square().sum(dim=1))


def choose_radius(distance: Float[Tensor, "t t"], quantile: float) -> float:
    """The `quantile` of the off-diagonal distances; 0 when there is a single step."""
    steps = distance.shape[0]
    if steps < 2:
        return 0.0
    off_diagonal = distance[~torch.eye(steps, dtype=torch.bool, device=distance.device)]
    return float(torch.quantile(off_diagonal, quantile))


def density(distance: Float[Tensor, "t t"], radius: float) -> Float[Tensor, "t"]:
    """Equation (2): how many other steps lie within `radius` (squared feature units)."""
    return (distance <= radius).sum(dim=1).double() - 1


def min_max(values: Float[Tensor, "t"]) -> Float[Tensor, "t"]:
    """`values` scaled to [0, 1]; zeros when they are all equal."""
    low, high = values.min(), values.max()
    return torch.zeros_like(values) if high <= low else (values - low) / (high - low)


def step_score(
    density: Float[Tensor, "t"], variety: Float[Tensor, "t"], variety_weight: float, density_weight: float = 1.0
) -> Float[Tensor, "t"]:
    """Equation (4); `variety_weight` is lambda. The paper weighs density by 1."""
    return density_weight * min_max(density) + variety_weight * min_max(variety)


def largest_remainder(score: Float[Tensor, "t"], total: int) -> Int[Tensor, "t"]:
    """Whole numbers proportional to `score` that sum to `total`: floors, then one more for the largest remainders.

    Ties go to the earlier step. An all-zero score is spread evenly.
    """
    score = score.double()
    if float(score.sum()) <= 0:
        score = torch.ones_like(score)
    share = score / score.sum() * total
    counts = share.floor().long()
    missing = total - int(counts.sum())
    order = torch.argsort(share - counts, descending=True, stable=True)
    counts[order[:missing]] += 1
    return counts


def rounded_allocation(score: Float[Tensor, "t"], total: int) -> Int[Tensor, "t"]:
    """The released code's allocation: round (half to even), then correct the sum.

    What is missing goes to the largest counts, one each; what is too much is taken from the last steps that have any.
    An all-zero score is spread evenly.
    """
    if float(score.sum()) <= 0:
        score = torch.ones_like(score)
    counts = torch.round(score / score.sum() * total).long()
    missing = total - int(counts.sum())
    while missing > 0:
        order = torch.argsort(counts, descending=True, stable=True)[:missing]
        counts[order] += 1
        missing -= order.numel()
    for i in reversed(range(counts.numel())):
        if missing >= 0:
            break
        if counts[i] > 0:
            counts[i] -= 1
            missing += 1
    return counts
