"""Which of the times that a model was trained on a sampler visits.

The quadratic times of the DDIM code are truncated squares: 100 steps give 0, 0, 0, 0, 1, 2, 2, 3, ... Repeated times
are kept, so that `steps` is the number of network calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

QUADRATIC_REACH = 0.8  # share of the training times that the quadratic schedule of the DDIM code spans


def uniform_times(train_steps: int, steps: int) -> list[int]:
    """The first `steps` of 0, k, 2k, ... with k = train_steps // steps, ascending."""
    stride = train_steps // steps
    return [step * stride for step in range(steps)]


def quadratic_times(train_steps: int, steps: int) -> list[int]:
    """int(linspace(0, sqrt(0.8 train_steps), steps) ** 2), ascending; small times repeat."""
    return [int(time) for time in np.linspace(0, math.sqrt(train_steps * QUADRATIC_REACH), steps) ** 2]


SPACINGS: dict[str, Callable[[int, int], list[int]]] = {"uniform": uniform_times, "quadratic": quadratic_times}
