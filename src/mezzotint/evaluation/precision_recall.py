"""Precision and recall of generated images (Kynkaanniemi et al. 2019, arXiv 1904.06991).

The manifold of a set is the union of balls around its members, each as large as the distance to the member's k-th
nearest other one. Precision is the share of generated images inside the reference's manifold (are they good?), recall
the share of reference images inside the generated one's (is everything there?). k = 3, as in the paper; features are
Inception's pool3, as guided-diffusion takes them, where the paper took VGG-16's.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NEIGHBOURS = 3
BLOCK = 1024  # rows of a distance matrix at once


def radii(x: Float[Tensor, "n f"], neighbours: int = NEIGHBOURS) -> Float[Tensor, " n"]:
    """Distance of each member to its k-th nearest other member, or to the farthest if there are fewer."""
    rank = min(neighbours + 1, len(x))  # the nearest is the member itself
    return torch.cat([torch.cdist(part, x).kthvalue(rank, dim=1).values for part in x.split(BLOCK)])


def inside(x: Float[Tensor, "n f"], members: Float[Tensor, "m f"], radius: Float[Tensor, " m"]) -> Bool[Tensor, " n"]:
    """Whether each of x is in a ball of a member."""
    return torch.cat([(torch.cdist(part, members) <= radius).any(dim=1) for part in x.split(BLOCK)])


def precision_recall(
    generated: Float[Tensor, "n f"], reference: Float[Tensor, "m f"]
) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " m"]]:
    """(generated images inside the reference's manifold, reference images inside the generated one's)."""
    generated, reference = generated.double(), reference.double()
    return (
        inside(generated, reference, radii(reference)),
        inside(reference, generated, radii(generated)),
    )
