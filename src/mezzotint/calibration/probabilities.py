"""The first grid of attention's probabilities, by the error of what is made of them.

A row of probabilities adds up to 1 over hundreds or thousands of keys, most of them near 0. A search by the error of
the values themselves takes steps that are good for the peaks and rounds the rest to nothing: each of these errors is
small, but all have one sign, and a row of codes adds up to 0.96 (`docs/LOG.md`). What counts is

    sum ||(p_hat - p) v||**2                                                                              (1)

over rows p of probabilities with their values v: a lost mass is an error along the mean of v. The grid is one-sided
with zero point 0; thresholds are a quarter of an octave apart, since uniform attention needs steps thousands of times
smaller than the peaks.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mezzotint.grid.spec import GridSpec
from mezzotint.layers.simulated import FakeQuantMatMul
from mezzotint.layers.swap import attentions, product_names

QUERIES = 32  # rows of probabilities that are kept of a head of a calibration row
PAIRS = 64  # heads of calibration rows that are kept, fewer where they are large
BYTES = 1 << 25  # of one attention layer
OCTAVES, PARTS = 12, 4  # thresholds: down to max p / 2**12, four in an octave


class ProductSample:
    """Collects rows p [QUERIES, M] with their v [M, d] from the calls of one product of attention.

    Args:
        batches: calls that will come; the pairs that are kept are spread over them.

    Attributes:
        pairs: float32, where the network lies.
        highest: the largest probability of all calls, kept or not.
    """

    def __init__(self, batches: int, seed: int) -> None:
        self._batches = batches
        self._generator = torch.Generator().manual_seed(seed)
        self.pairs: list[tuple[Float[Tensor, "q m"], Float[Tensor, "m d"]]] = []
        self.highest = 0.0

    def add(self, p: Float[Tensor, "h n m"], v: Float[Tensor, "h m d"]) -> None:
        """One call: of `h` heads a few, of their `n` queries some."""
        self.highest = max(self.highest, float(p.max()))
        size = 4 * (min(QUERIES, p.shape[1]) * p.shape[2] + v[0].numel())
        wanted = max(1, min(PAIRS, BYTES // size))
        count = min(-(-wanted // self._batches), p.shape[0])
        for head in torch.randperm(p.shape[0], generator=self._generator)[:count].tolist():
            queries = torch.randperm(p.shape[1], generator=self._generator)[:QUERIES].to(p.device)
            self.pairs.append((p[head, queries].float(), v[head].float().clone()))


def collect_(simulated: nn.Module, batches: int, seed: int) -> tuple[dict[str, ProductSample], list[RemovableHandle]]:
    """Samples of every product of attention by the name of its quantizer, filled by hooks that are to be removed."""
    samples, handles, modules = {}, [], dict(simulated.named_modules())
    for number, name in enumerate(product_names(attention)[1] for attention in attentions(simulated)):
        product = modules.get(name)
        if isinstance(product, FakeQuantMatMul):
            sample = samples[f"{name}.input_quantizer"] = ProductSample(batches, seed + number)
            handles.append(product.register_forward_pre_hook(_adds_to(sample)))
    return samples, handles


def fit_probabilities(sample: ProductSample, spec: GridSpec) -> tuple[Float[Tensor, ""], Tensor]:
    """(scale float32 [], zero_point int32 [], which is 0) with the smallest error (1) on the sample."""
    device = sample.pairs[0][0].device
    tops = max(sample.highest, 1e-6) * 2.0 ** (-torch.arange(OCTAVES * PARTS + 1, dtype=torch.float64) / PARTS)
    steps = (tops / spec.quant_max).to(device, torch.float32)
    errors = torch.zeros(len(steps), dtype=torch.float64, device=device)
    for p, v in sample.pairs:
        trials = steps[:, None, None]
        lost = torch.round(p / trials).clamp_(0, spec.quant_max).mul_(trials).sub_(p)
        errors += (lost @ v).square().sum((1, 2), dtype=torch.float64)
    return steps[errors.argmin()], torch.zeros((), dtype=torch.int32, device=device)


def _adds_to(sample: ProductSample) -> Any:
    return lambda _, args: sample.add(args[0].detach(), args[1].detach())
