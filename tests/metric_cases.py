"""Seeded inputs of the metrics, the same wherever they are drawn: NumPy's PCG64, nothing of torch.

`tests/evaluation/metrics.json` holds what torch-fidelity made of them (benchmarks/metric_fixtures.py), for machines
where its package cannot be imported.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mezzotint.evaluation.inception import Inception
from mezzotint.evaluation.perceptual import AlexNet

FIXTURE = Path(__file__).parent / "evaluation" / "metrics.json"
PLACES = {"pool3": 128, "spatial": 119, "logits": 63}  # every so many values of an output are recorded


def inception_state() -> dict[str, Tensor]:
    """Weights for the Inception network that keep activations near 1, whatever the depth."""
    rng, state = np.random.default_rng(0), {}
    for name, value in Inception().state_dict().items():
        shape = tuple(value.shape)
        if name.endswith("num_batches_tracked"):
            state[name] = value
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = torch.from_numpy(rng.uniform(0.8, 1.2, shape).astype(np.float32))
        elif value.ndim == 1:
            state[name] = torch.from_numpy(0.1 * rng.standard_normal(shape, dtype=np.float32))
        else:
            scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
            state[name] = torch.from_numpy(scale * rng.standard_normal(shape, dtype=np.float32))
    return state


def alexnet_state() -> dict[str, Tensor]:
    """Weights for LPIPS's backbone under torchvision's names."""
    rng = np.random.default_rng(7)
    state = {}
    for name, value in AlexNet().state_dict().items():
        scale = np.float32(np.sqrt(2 / np.prod(value.shape[1:]))) if value.ndim > 1 else np.float32(0.1)
        state[name] = torch.from_numpy(scale * rng.standard_normal(tuple(value.shape), dtype=np.float32))
    return state


def pictures() -> Tensor:
    """uint8 [2, 3, 40, 56]: smooth, as noise all looks alike to a random network."""
    coarse = np.random.default_rng(1).integers(0, 256, (2, 3, 5, 7)).astype(np.uint8)
    return torch.from_numpy(coarse.repeat(8, axis=2).repeat(8, axis=3))


def features(count: int, seed: int, shift: float = 0.0) -> Tensor:
    """float64 [count, 16] with correlations."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((16, 16)) / 4
    return torch.from_numpy(rng.standard_normal((count, 16)) @ mixing + shift)


def logits() -> Tensor:
    """float64 [53, 11]."""
    return torch.from_numpy(2 * np.random.default_rng(5).standard_normal((53, 11)))
