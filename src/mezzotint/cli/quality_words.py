"""What `mezzotint bench-quality` says: a line for every finished cell; then tables, verdict and what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mezzotint.cli.output import facts, stdout

if TYPE_CHECKING:
    from rich.console import Group

    from mezzotint.benchmark.row import Row

PHASES = ("record", "select", "fit", "reconstruct", "correct", "measure noise")  # of the calibration


def without_effect_line(lacking: dict[str, dict[str, str]]) -> str:
    """One line about settings that leave some recipes as they are."""
    words = []
    for option, recipes in lacking.items():
        parts = dict.fromkeys(recipes.values())
        who = (f"{', '.join(name for name in recipes if recipes[name] == part)} (no {part})" for part in parts)
        words.append(f"{option} does nothing for {', '.join(who)}")
    return f"--set: {'; '.join(words)}"


def summary(row: Row) -> str:
    """A finished cell on one line: its figures, and where its time went."""
    from mezzotint.benchmark.plan import label

    simulated = "" if row.arithmetic == "simulated" else " (simulated)"
    trained = "" if row.fd_train is None else f", to training {row.fd_train:.3f} ({row.fd_train_float:.3f})"
    scores = "".join(f", {score['name']} {score['value']:.3f}" for score in row.scores)
    speed = "" if row.ms_per_iteration is None else f", {row.ms_per_iteration:.2f} ms an iteration"
    return (
        f"{label(row.key)}: SQNR {row.sqnr_db:.2f} dB{simulated}, PSNR pooled {row.psnr_pooled_db:.2f} mean "
        f"{row.psnr_mean_db:.2f} dB, FD {row.fd:.3f}{trained}{scores}; {_seconds(row)}{speed}"
    )


def _seconds(row: Row) -> str:
    """Where the time of a cell went; phases of the calibration only if they took a second."""

    def parts(*names: str) -> str:
        found = [name for name in names if name in row.seconds]
        return ", ".join(f"{'draw' if name == 'sample' else name} {row.seconds[name]:.0f}" for name in found)

    def long(*names: str) -> str:
        return parts(*(name for name in names if row.seconds.get(name, 0.0) >= 0.5))

    inside = "; ".join(filter(None, (long(*PHASES), long("shared"))))
    calibrated = f"{parts('calibrate')} ({inside})" if inside else parts("calibrate")
    told = ", ".join(filter(None, (calibrated, parts("sample", "sqnr", "compare", "score"))))
    apart = f", beside {drawn}" if (drawn := long("float images")) else ""
    return f"{row.elapsed:.0f} s: {told}{apart}"


def tables_and_verdict(rows: list[Row], result: dict[str, Any]) -> Group:
    """Every table for a terminal, then the verdict and the files."""
    from rich.console import Group

    from mezzotint.benchmark.render import MARKDOWN
    from mezzotint.benchmark.text import WARNING, tables
    from mezzotint.cli.text_tables import terminal_table

    found = tables(rows)
    parts: list[Any] = [terminal_table(table, stdout().width, MARKDOWN) for table in found]
    notes = dict.fromkeys(note for table in found for note in table.notes if note.startswith(WARNING))
    words = {"verdict": "\n".join(result["verdict"]), "files": "\n".join(result["files"])}
    if notes:
        words["warnings"] = "\n".join(note.removeprefix(WARNING) for note in notes)
    return Group(*parts, facts("Table", {**words, "not run": _missing(result)}))


def _missing(result: dict[str, Any]) -> str:
    """How many planned cells of the folder are not there, and where they are listed."""
    from mezzotint.benchmark.render import MARKDOWN

    count = len(result["missing"])
    return f"{count} planned cell{'s' if count != 1 else ''}, see {MARKDOWN}" if count else "0"
