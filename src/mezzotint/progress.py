"""How long work tells an outsider how far it is. Library code reports; only the command line draws.

A run is a row of phases: `start`, any number of `advance`, `finish`. A phase may be interrupted by others that begin
and end within it: what is told belongs to the phase that began last and is open, so whoever draws keeps a stack. An
exception leaves its phases open, and the one who draws closes them.

Work that prepares itself interrupts: an optimized network is traced and compiled in its first call with inputs of a
shape, and that call is a step of somebody's sampling. Rejected: preparing before that phase opens. Whoever samples
would have to know every shape beforehand (the rest of a batch, rows that guidance doubles) and call the network once
more for each, and sampling would have to know of quantization.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Who is told about the phases of a run."""

    def start(self, phase: str, total: int) -> None:
        """A phase of `total` equal steps begins."""

    def advance(self, n: int = 1, **info: float | str) -> None:
        """`n` more steps of the phase are done; `info` is what is worth seeing now, such as `loss=0.031`."""

    def finish(self) -> None:
        """The phase has ended; the one that it interrupted goes on."""


class NullProgress:
    """Tells nobody. The default everywhere."""

    def start(self, phase: str, total: int) -> None:
        pass

    def advance(self, n: int = 1, **info: float | str) -> None:
        pass

    def finish(self) -> None:
        pass


@contextmanager
def one_phase(progress: Progress, phase: str, total: int = 1) -> Iterator[None]:
    """The block as a phase."""
    progress.start(phase, total)
    yield
    progress.finish()


class Closing:
    """A Progress that tells another one, and can close what an attempt left open that was given up."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._open = progress, 0

    def start(self, phase: str, total: int) -> None:
        self._open += 1
        self._progress.start(phase, total)

    def advance(self, n: int = 1, **info: float | str) -> None:
        self._progress.advance(n, **info)

    def finish(self) -> None:
        self._open -= 1
        self._progress.finish()

    def close(self) -> None:
        while self._open:
            self.finish()


def as_callback(progress: Progress, phase: str) -> Callable[[int, int], None]:
    """`progress` in the form the samplers call, `callback(done, total)`: one phase, closed when done == total.

    The first call opens it, so work that says (0, total) when it begins is seen before its first step is done.
    """
    seen = 0
    started = False

    def callback(done: int, total: int) -> None:
        nonlocal seen, started
        if not started:
            progress.start(phase, total)
            seen, started = 0, True
        progress.advance(done - seen)
        seen = done
        if done >= total:
            progress.finish()
            started = False

    return callback
