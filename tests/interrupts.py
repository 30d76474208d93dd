"""Runs that are stopped on the way."""

from __future__ import annotations

from mezzotint.progress import NullProgress


class Killer(NullProgress):
    """Stops the run, as Ctrl-C would, at the third unit."""

    def __init__(self) -> None:
        self.reports = 0

    def advance(self, n: int = 1, **info: float | str) -> None:
        self.reports += "unit" in info
        if self.reports == 3:
            raise KeyboardInterrupt
