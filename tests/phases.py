"""What a Progress is told, written down."""

from __future__ import annotations


class Told:
    """A Progress that keeps every word: (phase, total), n, "end"."""

    def __init__(self) -> None:
        self.words: list[tuple[str, int] | int | str] = []

    def start(self, phase: str, total: int) -> None:
        self.words.append((phase, total))

    def advance(self, n: int = 1, **info: float | str) -> None:
        self.words.append(n)

    def finish(self) -> None:
        self.words.append("end")
