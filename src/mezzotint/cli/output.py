"""What the commands print: results on stdout, everything else on stderr."""

from __future__ import annotations

import functools
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec

import typer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from mezzotint import progress as protocol
from mezzotint.errors import MezzotintError

BAD_INPUT, BUG, INTERRUPTED = 2, 1, 130
DONE = {  # of the verbs that phases begin with
    "load": "loaded",
    "import": "imported",
    "export": "exported",
    "record": "recorded",
    "fit": "fitted",
    "reconstruct": "reconstructed",
    "correct": "corrected",
    "measure": "measured",
    "sample": "sampled",
    "decode": "decoded",
    "time": "timed",
    "prepare": "prepared",
    "trace": "traced",
    "compile": "compiled",
    "tune": "tuned",
}
P = ParamSpec("P")


def stdout() -> Console:
    """Where results go. Made anew every time, since tests exchange sys.stdout."""
    return Console()


def stderr() -> Console:
    """Where progress and errors go."""
    return Console(stderr=True)


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """`command` with every error as one line on stderr and an exit code: 2 bad input, 1 a bug, 130 Ctrl-C."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        debug = bool(kwargs.get("debug"))
        _quiet_others(debug)
        try:
            command(*args, **kwargs)
        except (typer.Exit, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            raise fail("interrupted", INTERRUPTED) from None
        except Exception as error:  # noqa: BLE001 - the last place where an error can become a line
            if debug:
                stderr().print_exception()
            raise fail(*_explain(error)) from None

    return run


def fail(message: str, code: int) -> typer.Exit:
    """Prints `message` as one line on stderr; returns what to raise."""
    line = " ".join(message.split())
    stderr().print(f"mezzotint: {line}", markup=False, highlight=False, soft_wrap=True, style="red")
    return typer.Exit(code)


def _explain(error: Exception) -> tuple[str, int]:
    """What to tell the user about `error`, and the exit code."""
    if isinstance(error, MezzotintError):
        return f"error: {error}", BAD_INPUT
    if _is_out_of_memory(error):
        return "error: out of memory; make --batch-size or --calib-size smaller, or use --device cpu", BAD_INPUT
    return f"unexpected {type(error).__name__}: {error}; this is a bug, --debug shows where", BUG


def _is_out_of_memory(error: Exception) -> bool:
    """Whether `error` is any of the ways torch says so; by name, since torch may not be imported here."""
    said = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said))
    )


def _quiet_others(debug: bool) -> None:
    """Warnings of other packages are for developers: shown with --debug only. Our own log goes to stderr."""
    if not debug:
        warnings.simplefilter("ignore")
    log = logging.getLogger("mezzotint")
    log.setLevel(logging.INFO if debug else logging.WARNING)
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("mezzotint: %(message)s"))
        log.addHandler(handler)


def show(result: dict[str, Any], table: RenderableType, as_json: bool) -> None:
    """Prints the result of a command, as JSON or as a table."""
    if as_json:
        typer.echo(json.dumps(result, indent=2, default=str))
    else:
        stdout().print(table)


def facts(title: str, rows: dict[str, str]) -> Table:
    """A table of names and values."""
    table = Table("", "", title=title, show_header=False, title_justify="left", title_style="bold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def size(count: float) -> str:
    """Bytes as people say them: 19.67 MB, with 1 MB = 1,000,000 bytes."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


class RichProgress:
    """Draws the phases of a run as bars with the time that is left, one below the other, in the order they began."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._open: list[tuple[TaskID, int]] = []  # with their totals

    def start(self, phase: str, total: int) -> None:
        self._open.append((self._bars.add_task(phase, total=total, info=""), total))

    def advance(self, n: int = 1, **info: float | str) -> None:
        if self._open:
            self._bars.update(self._open[-1][0], advance=n, info=_words(info))

    def finish(self) -> None:
        if self._open:
            task, total = self._open.pop()
            self._bars.update(task, completed=total)
            self._bars.stop_task(task)


@dataclass
class _Phase:
    """A phase that is open; `inside` are the seconds of those that interrupted it."""

    name: str
    total: int
    begun: float
    info: str = ""
    inside: float = 0.0


class LineProgress:
    """One line when a phase ends: for logs, where bars cannot be redrawn.

    Its seconds are its own, without those of the phases that interrupted it: the lines add up.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open: list[_Phase] = []

    def start(self, phase: str, total: int) -> None:
        self._open.append(_Phase(phase, total, time.perf_counter()))

    def advance(self, n: int = 1, **info: float | str) -> None:
        if self._open:
            self._open[-1].info = _words(info) or self._open[-1].info

    def finish(self) -> None:
        if not self._open:
            return
        phase = self._open.pop()
        seconds = time.perf_counter() - phase.begun
        if self._open:
            self._open[-1].inside += seconds
        steps = f" ({phase.total:,} steps)" if phase.total > 1 else ""
        line = f"{_done(phase.name)} in {seconds - phase.inside:.1f} s{steps} {phase.info}".rstrip()
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _done(phase: str) -> str:
    """A phase that has ended, in words: `record: pilot` becomes `recorded pilot`."""
    verb, _, rest = phase.replace(": ", " ", 1).partition(" ")
    return f"{DONE[verb]} {rest}".rstrip() if verb in DONE else f"{phase}: done"


@contextmanager
def progress_bars() -> Iterator[protocol.Progress]:
    """Progress on stderr: bars on a terminal, one line a phase elsewhere."""
    console = stderr()
    if not console.is_terminal:
        yield LineProgress(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[info]}"),
    )
    with Progress(*columns, console=console) as bars:
        yield RichProgress(bars)


def _words(info: dict[str, float | str]) -> str:
    return " ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in info.items()
    )
