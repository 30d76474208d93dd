"""How long work tells an outsider how far it is. Library code reports; only the command line draws.

A run is a row of phases that do not nest: `start`, any number of `advance`, `finish`. An exception between them leaves
the phase open, and the one who draws closes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Who is told about the phases of a run."""

    def start(self, phase: str, total: int) -> None:
        """A phase of `total` equal steps begins."""

    def advance(self, n: int = 1, **info: float | str) -> None:
        """`n` more steps of the phase are done; `info` is what is worth seeing now, such as `loss=0.031`."""

    def finish(self) -> None:
        """The phase has ended."""


class NullProgress:
    """Tells nobody. The default everywhere."""

    def start(self, phase: str, total: int) -> None:
        pass

    def advance(self, n: int = 1, **info: float | str) -> None:
        pass

    def finish(self) -> None:
        pass


def as_callback(progress: Progress, phase: str) -> Callable[[int, int], None]:
    """`progress` in the form the samplers call, `callback(done, total)`: one phase, closed when done == total."""
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
