"""How phases look: bars that fill on a terminal, one line each elsewhere."""

from __future__ import annotations

import pytest
from rich.console import Console
from rich.progress import Progress

from mezzotint.cli import output
from mezzotint.cli.output import LineProgress, RichProgress


def test_off_a_terminal_a_phase_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LineProgress(Console(stderr=True))
    progress.start("reconstruct", 28)
    for _ in range(28):
        progress.advance(unit="mid_block", loss=0.03125)
    progress.finish()
    err = capsys.readouterr().err
    assert err == "reconstructed in 0.0 s (28 steps) unit mid_block loss 0.03125\n"
    for phase in ("load emoji: an old one", "fit: weights", "ponder"):
        progress.start(phase, 1)
        progress.finish()
    said = ("loaded emoji an old one", "fitted weights", "ponder: done")
    assert capsys.readouterr().err == "".join(f"{words} in 0.0 s\n" for words in said)


def test_lines_of_phases_that_interrupt_add_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(output.time, "perf_counter", lambda: now)
    progress = LineProgress(Console(stderr=True))
    progress.start("sample", 8)
    for phase, total, seconds in (("trace network", 1, 4.0), ("compile kernels", 60, 20.0), ("tune products", 3, 1.5)):
        progress.start(phase, total)
        now += seconds
        progress.finish()
    now += 2.0
    progress.advance(8, loss=0.5)
    progress.finish()
    progress.finish()  # nothing is open
    assert capsys.readouterr().err.splitlines() == [
        "traced network in 4.0 s",
        "compiled kernels in 20.0 s (60 steps)",
        "tuned products in 1.5 s (3 steps)",
        "sampled in 2.0 s (8 steps) loss 0.5",
    ]


def test_bars_fill_and_show_the_newest_numbers() -> None:
    bars = Progress(disable=True)
    progress = RichProgress(bars)
    progress.start("fit", 10)
    progress.advance(4, loss=0.5)
    task = bars.tasks[0]
    assert (task.completed, task.total, task.fields["info"]) == (4, 10, "loss 0.5")
    progress.finish()
    assert task.finished


def test_a_bar_that_was_interrupted_goes_on() -> None:
    bars = Progress(disable=True)
    progress = RichProgress(bars)
    progress.start("sample", 8)
    progress.start("trace network", 1)
    progress.finish()
    progress.advance(3)
    sampling, tracing = bars.tasks
    assert (sampling.description, sampling.completed, sampling.finished) == ("sample", 3, False)
    assert (tracing.description, tracing.finished) == ("trace network", True)
    progress.finish()
    progress.advance()  # nothing is open
    assert [task.completed for task in bars.tasks] == [8, 1]
