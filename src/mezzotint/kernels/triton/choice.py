"""Which configuration a product runs with on a device: found in a table, tuned once, or the model's best that fits.

MEZZOTINT_TUNE=0          unknown shapes take the model's best; nothing is measured
MEZZOTINT_SPECIALIZED=1   products with specialized warps may be chosen; they are experimental
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from triton.runtime import driver
from triton.runtime.errors import OutOfResources
from triton.testing import do_bench

from mezzotint.errors import KernelError
from mezzotint.kernels.triton.tuning import SHARED, Config, Problem, cached, candidates, remember, shipped

Attempt = Callable[[Config], None]
TRIED = 6  # candidates that are measured for an unknown shape
_LOG = logging.getLogger(__name__)
_CHOSEN: dict[tuple[str, str], Config] = {}


@dataclass(frozen=True)
class Device:
    """What the choice depends on. `family` names a shipped table; `shared` are bytes that a block may have."""

    name: str
    family: str
    multiprocessors: int
    hopper: bool  # the copy engine and wgmma
    shared: int


@cache
def device_of(device: torch.device) -> Device:
    """Facts about `device`; of a CPU, what Triton's interpreter pretends."""
    if device.type != "cuda":
        return Device(device.type, "none", 4, True, SHARED)
    found = torch.cuda.get_device_properties(device)
    family = f"sm_{found.major}{found.minor} {found.multi_processor_count}"
    index = torch.cuda.current_device() if device.index is None else device.index
    shared = driver.active.utils.get_device_properties(index)["max_shared_mem"]  # what Triton compares with
    return Device(found.name, family, found.multi_processor_count, found.major == 9, shared)


def launch_best(problem: Problem, place: torch.device, attempt: Attempt) -> Config:
    """Calls `attempt` with the configuration of `problem` on `place`; what does not fit is passed over.

    Raises:
        KernelError: no configuration fits the device.
    """
    device = device_of(place)
    name = (device.name, problem.key)
    configs = [_CHOSEN[name]] if name in _CHOSEN else _ordered(problem, device, attempt, _can_measure(place))
    for config in configs:
        try:
            attempt(config)
        except OutOfResources as error:  # raised before the launch, also in the capture of a graph
            _LOG.info("%s: %s does not fit %s: %s", problem.key, config.name, device.name, error)
            continue
        _CHOSEN[name] = config
        return config
    tried = ", ".join(config.name for config in configs)
    raise KernelError(f"product {problem.key}: no configuration fits {device.name}; tried {tried}")


def _ordered(problem: Problem, device: Device, attempt: Attempt, measure: bool) -> list[Config]:
    specialized = os.environ.get("MEZZOTINT_SPECIALIZED") == "1"
    found = candidates(
        problem, device.multiprocessors, tiled=device.hopper, specialized=specialized, shared=device.shared
    )
    known = shipped(device.family).get(problem.key) or cached(device.name).get(problem.key)
    if known is not None and (specialized or known.kernel != "specialized"):
        return [known, *found]
    if measure and len(found) > 1:
        best = fastest(found[:TRIED], attempt)
        remember(device.name, problem.key, best)
        _LOG.info("%s: tuned on %s, takes %s", problem.key, device.name, best.name)
        return [best, *found]
    return found


def fastest(configs: list[Config], attempt: Attempt, bench: Callable[..., float] = do_bench) -> Config:
    """The configuration of least median time; the first where none can run."""
    times: dict[Config, float] = {}
    for config in configs:
        try:
            times[config] = bench(lambda c=config: attempt(c), warmup=3, rep=12, return_mode="median")
        except OutOfResources:
            continue
    return min(times, key=lambda c: times[c]) if times else configs[0]


def _can_measure(place: torch.device) -> bool:
    if place.type != "cuda" or os.environ.get("MEZZOTINT_TUNE") == "0":
        return False
    return not torch.cuda.is_current_stream_capturing()
