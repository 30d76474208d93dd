"""Inception score (Salimans et al. 2016, arXiv 1606.03498): are single images one clear thing, and all of them many?

    IS = mean over splits of exp( mean_i KL( p(y | x_i) || mean_j p(y | x_j) ) )                                 (1)

with p = softmax(logits) over the network's 1008 classes and 10 splits of the images in their order (torch-fidelity
shuffles them first; images of consecutive seeds need none). Means something for photographs of ImageNet's things only.
"""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

SPLITS = 10


def inception_score(logits: Float[Tensor, "n k"], splits: int = SPLITS) -> float:
    """Equation (1) in float64; fewer images than splits are one split each."""
    splits = min(splits, len(logits))
    edges = [index * len(logits) // splits for index in range(splits + 1)]
    logits = logits.double()
    scores = []
    for start, end in pairwise(edges):
        log_p = logits[start:end].log_softmax(dim=1)
        p = log_p.exp()
        divergence = (p * (log_p - p.mean(dim=0, keepdim=True).log())).sum(dim=1)
        scores.append(float(divergence.mean().exp()))
    return sum(scores) / splits
