"""Which configuration a product runs with on a device: found in a table, tuned once, or the model's best that fits.

MEZZOTINT_TUNE=0   unknown shapes take the model's best; nothing is measured or compared

What is tuned is compared first (`check`): a configuration that computes something else is not chosen, and a shape
without a right one is an error, not a wrong picture.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from triton.runtime import driver
from triton.runtime.errors import OutOfResources
from triton.testing import do_bench

from mezzotint.errors import KernelError
from mezzotint.kernels.triton.tables import cached, remember, shipped
from mezzotint.kernels.triton.tuning import SHARED, Config, Problem, candidates, refuses

Attempt = Callable[[Config], None]
Wrong = Callable[[Config], str | None]
TRIED = 6  # candidates that are measured for an unknown shape
_LOG = logging.getLogger(__name__)
_CHOSEN: dict[tuple[str, Problem], Config] = {}
_UNKNOWN: ContextVar[set[str] | None] = ContextVar("only_compiling", default=None)
_TELL: ContextVar[Callable[[], object]] = ContextVar("telling_of_tuning", default=lambda: None)


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


@contextmanager
def only_compiling() -> Iterator[set[str]]:
    """In here a launch compiles and does nothing else: all that may be tuned is asked for, and nothing is chosen.

    Gives a set that fills with the keys of the products whose next launch will tune them.
    """
    unknown: set[str] = set()
    token = _UNKNOWN.set(unknown)
    try:
        yield unknown
    finally:
        _UNKNOWN.reset(token)


@contextmanager
def telling_of_tuning(tell: Callable[[], object]) -> Iterator[None]:
    """In here `tell` is called after every product that was tuned."""
    token = _TELL.set(tell)
    try:
        yield
    finally:
        _TELL.reset(token)


def launch_best(problem: Problem, place: torch.device, attempt: Attempt, wrong: Wrong) -> Config:
    """Calls `attempt` with the configuration of `problem` on `place`; what does not fit is passed over.

    Args:
        wrong: calls `attempt` too, and says what is wrong with the result, or None; asked before one is timed.

    Raises:
        KernelError: no configuration fits the device, or none computes the product.
    """
    device = device_of(place)
    name = (device.name, problem)
    configs, known = ([_CHOSEN[name]], True) if name in _CHOSEN else _ordered(problem, device)
    tune = not known and _can_measure(place)
    unknown = _UNKNOWN.get()
    if unknown is not None:
        if tune:
            unknown.add(problem.key)
        for config in configs[: TRIED if tune else 1]:
            attempt(config)
        return configs[0]
    if tune:
        configs = [_tuned(problem, device, configs, attempt, wrong)]
        _TELL.get()()
    for config in configs:
        try:
            attempt(config)
        except OutOfResources as error:  # raised before the launch, also in the capture of a graph
            _note_size(problem, config, device, error)
            continue
        _CHOSEN[name] = config
        return config
    raise _nothing_fits(problem, device, configs)


def _ordered(problem: Problem, device: Device) -> tuple[list[Config], bool]:
    """Configurations in the order to try, and whether a table names the first of them."""
    found = candidates(problem, device.multiprocessors, tiled=device.hopper, shared=device.shared)
    known = shipped(device.family).get(problem.key) or cached(device.name).get(problem.key)
    if known is None or refuses(problem, known):
        return found, False
    return [known, *found], True


def _tuned(problem: Problem, device: Device, configs: list[Config], attempt: Attempt, wrong: Wrong) -> Config:
    """The fastest of the first that are right; remembered."""
    found: list[Config] = []
    fault = None
    for index, config in enumerate(configs):
        if index >= TRIED and found:
            break
        try:
            fault = wrong(config)
        except OutOfResources as error:
            _note_size(problem, config, device, error)
            continue
        if fault is None:
            found.append(config)
        else:
            _LOG.warning("product %s: %s is not used on %s: %s", problem.key, config.name, device.name, fault)
    if not found and fault is None:
        raise _nothing_fits(problem, device, configs)
    if not found:
        raise KernelError(
            f"product {problem.key}, groups {problem.groups}: no configuration computes it on {device.name}, the last: "
            f"{fault}; call the network without optimize, and report this"
        )
    best = fastest(found, attempt)
    remember(device.name, problem.key, best)
    _LOG.info("%s: tuned on %s, takes %s", problem.key, device.name, best.name)
    return best


def _note_size(problem: Problem, config: Config, device: Device, error: OutOfResources) -> None:
    _LOG.info("%s: %s does not fit %s: %s", problem.key, config.name, device.name, error)


def _nothing_fits(problem: Problem, device: Device, configs: list[Config]) -> KernelError:
    tried = ", ".join(config.name for config in configs)
    return KernelError(f"product {problem.key}: no configuration fits {device.name}; tried {tried}")


def fastest(configs: list[Config], attempt: Attempt, bench: Callable[..., float] = do_bench) -> Config:
    """The configuration of least median time, of some that can run; of one, that."""
    if len(configs) == 1:
        return configs[0]
    options: dict[str, Any] = {"warmup": 3, "rep": 12, "return_mode": "median"}
    times = {config: bench(lambda config=config: attempt(config), **options) for config in configs}
    return min(times, key=lambda config: times[config])


def _can_measure(place: torch.device) -> bool:
    if place.type != "cuda" or os.environ.get("MEZZOTINT_TUNE") == "0":
        return False
    return not torch.cuda.is_current_stream_capturing()
