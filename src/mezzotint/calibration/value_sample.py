"""A bounded sample of the values of one tensor over many batches, each with the number of values it stands for.

A search for the range of a grid weighs many small errors inside against few large ones outside. So the sample must hold
the tails, and must not make them count for more than they are: with its extremes added to a plain random sample, one
probability of 0.8 among 67 million of attention weighed as much as 2,000 others, and the grid found for it rounded
nearly uniform attention to nothing.

    stratum            which values                                       each stands for
    body               random ones between the two thresholds             values there / how many were taken
    upper, lower tail  beyond a threshold: up to an eighth of the sample  values there / how many were taken
    extremes           the largest and the smallest                       one value

The thresholds are order statistics of the random values. A tensor that is small enough is taken whole.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.grid.spec import GridSpec

TAIL = 256  # one in so many values lies beyond each threshold
TAIL_SHARE = 8  # of the sample, one in so many is taken from each tail


class Weighted(NamedTuple):
    """Values, and how many values of the tensor each stands for."""

    values: Float[Tensor, " k"]
    weights: Float[Tensor, " k"]


class ValueSample:
    """Collects batches of one activation tensor, each group of its channels for itself.

    Args:
        spec: the grid whose groups count.
        per_batch: random values of a batch; with its tails a batch gives at most 1 + 2 / TAIL_SHARE times as many.
    """

    def __init__(self, spec: GridSpec, per_batch: int, seed: int) -> None:
        self._spec = spec
        self._per_batch = per_batch
        self._generator = torch.Generator().manual_seed(seed)
        self._parts: list[list[Weighted]] = [[] for _ in range(spec.n_groups)]

    def add(self, x: Tensor) -> None:
        """A batch [B, C, ...], of which one without groups may have any shape."""
        slices = self._spec.group_slices(x.shape[1]) if self._spec.groups else [slice(None)]
        for parts, part in zip(self._parts, slices, strict=True):
            flat = x[:, part].flatten() if self._spec.groups else x.flatten()
            parts.extend(_strata(flat, self._per_batch, self._generator))

    def weighted(self, group: int) -> Weighted:
        """What was collected of `group`."""
        values, weights = zip(*self._parts[group], strict=True)
        return Weighted(torch.cat(values), torch.cat(weights))


def _strata(flat: Float[Tensor, " n"], count: int, generator: torch.Generator) -> list[Weighted]:
    if flat.numel() <= count:
        return [_standing_for(flat, flat.numel())]
    picks = _pick(flat, count, generator)
    ordered, beyond = picks.sort().values, count // TAIL
    low, high = ordered[beyond], ordered[-1 - beyond]
    tails = flat[flat < low], flat[flat > high]
    inside = flat.numel() - sum(tail.numel() for tail in tails)
    strata = [_standing_for(picks[(picks >= low) & (picks <= high)], inside)]
    for tail, end in zip(tails, (torch.amin, torch.amax), strict=True):
        if not tail.numel():
            continue
        most, rest = max(1, count // TAIL_SHARE), tail.numel() - 1
        if rest < most:
            strata.append(_standing_for(tail, tail.numel()))
        else:
            strata += [_standing_for(end(tail)[None], 1), _standing_for(_pick(tail, most, generator), rest)]
    return strata


def _pick(flat: Float[Tensor, " n"], count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
    return flat[torch.randint(flat.numel(), (count,), generator=generator).to(flat.device)]


def _standing_for(values: Float[Tensor, " k"], count: int) -> Weighted:
    return Weighted(values, values.new_full(values.shape, count / max(1, values.numel())))
