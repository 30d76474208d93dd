"""What all tests share: one thread a process, quiet hubs, patient properties."""

from __future__ import annotations

import os

# Tests run in several processes. More threads than cores would make every small product wait for the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a network

import torch
from hypothesis import settings

from mezzotint.calibration import ranges

torch.set_num_threads(1)
settings.register_profile("mezzotint", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("mezzotint")

# What a range search looks at of every tensor: 2**15 values in earnest. Tiny networks need no more than this, and the
# searches would take two thirds of the suite's time.
ranges.SAMPLED_VALUES = 1 << 10
