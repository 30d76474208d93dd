"""Peak memory of a network on the CPU: the resident set of a process that does nothing else.

    once      the network as one variant is made, called and dropped; what stays is libraries'          -> base
    again     made and called: kernels are chosen, buffers made, the network traced
    reset     Linux sets the peak of a process to what it has now (5 into /proc/self/clear_refs, proc(5))
    call      one step; the peak since (VmHWM), less the base                                            -> bytes

So the weights of the variant, in whatever form its kernels keep them, what its trace takes, and all that a step needs
beside them count; libraries do not. `getrusage` cannot tell this: its peak never falls, and for most networks it is
that of reading the weights.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import logging
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from mezzotint import speed
from mezzotint.loading import load
from mezzotint.optimization import optimize_network_

PROC = Path("/proc/self")
INTEGERS = "integers"  # the variant that is the artifact itself, as `optimize` runs it
WARM_UP = 2

logger = logging.getLogger("mezzotint")


def can_measure() -> bool:
    """Whether this system lets a process forget its peak: Linux does."""
    return (PROC / "clear_refs").is_file()


def peak_bytes(model: str, variants: Sequence[str], batch: int, threads: int) -> dict[str, int | None]:
    """Peak bytes of one step of each variant of `model`, one process after the other.

    Args:
        model: name or folder, as `mezzotint.load` takes it.
        variants: of `speed.float_calls`, or `INTEGERS`.
        threads: of torch.

    Returns:
        None for a variant whose process was killed, which one log line says.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    found: dict[str, int | None] = {}
    for variant in variants:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            try:
                found[variant] = pool.submit(measure, model, variant, batch, threads).result()
            except BrokenProcessPool:
                logger.warning("%s: the process that measured its memory was killed; there may be too little", variant)
                found[variant] = None
    return found


@torch.no_grad()
def measure(model: str, variant: str, batch: int, threads: int) -> int:
    """As `peak_bytes`, in this very process, which should have nothing to do but this."""
    torch.set_num_threads(threads)
    _peak(model, variant, batch)
    _let_go()
    base = _status("VmRSS")
    return _peak(model, variant, batch) - base


def _peak(model: str, variant: str, batch: int) -> int:
    """The peak of this process in one step of the variant, after calls that warm up."""
    call, given = _prepared(model, variant, batch)
    for inputs in given[:WARM_UP]:
        call(*inputs)
    _let_go()
    (PROC / "clear_refs").write_text("5", encoding="ascii")
    call(*given[-1])
    return _status("VmHWM")


def _prepared(model: str, variant: str, batch: int) -> tuple[speed.Call, list[speed.Inputs]]:
    """The variant as a call, with inputs; nothing else of the model is kept."""
    network: Any = load(model, device="cpu").unet
    quantized = hasattr(network, "quantization")
    floating = speed.float_twin(network) if quantized else network
    given = speed.input_sets(floating, batch)
    if variant == INTEGERS:
        return optimize_network_(network), given
    return speed.float_calls(copy.copy(floating), (variant,))[variant], given


def _status(field: str) -> int:
    """A field of this process's status, in bytes."""
    lines = (PROC / "status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _let_go() -> None:
    """Collects what nothing holds, and gives it back to the system where the C library can (glibc)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
