"""Tables of a benchmark on a terminal: as many columns as fit, the weightiest first, none broken into pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from mezzotint.benchmark.fields import Field, TextTable

STYLES = {"best": "bold", "clear": "bold", "within": "italic", "": ""}
MISSING = "–"
FRAME = 3  # characters that a column takes beside its text: two spaces and a rule
WORDS = 28  # characters of a field of words, before it breaks
FIGURES = 3  # that a table has at least, where leaving out the intervals makes room for them


def terminal_table(table: TextTable, width: int, whole: str) -> Table:
    """The table in `width` characters. What does not fit is left out, and the caption says where to find it.

    Args:
        whole: the file that has all columns.
    """
    intervals = _has_intervals(table)
    shown = _fitting(table, width, intervals)
    if intervals and len(shown) - table.words < FIGURES:
        intervals, shown = False, _fitting(table, width, False)
    missing = [name for index, name in enumerate(table.header) if index not in shown]
    missing += [] if intervals or not _has_intervals(table) else ["intervals"]
    caption = "\n".join([table.caption, *([f"more in {whole}: {'; '.join(missing)}"] if missing else [])])
    found = Table(title=table.title, caption=caption, title_justify="left", caption_justify="left", title_style="bold")
    left = width - 1 - sum(_wanted(table, index, intervals) + FRAME for index in shown)
    for index in shown:
        wide = _wanted(table, index, intervals)
        more = min(left, max(0, len(table.header[index]) - wide))  # for a title on one line
        left -= more
        found.add_column(table.header[index], justify="left" if index < table.words else "right", width=wide + more)
    figures = [index for index in shown if index >= table.words]
    for section in table.sections:
        for row in (row for row in section if any(row[index].text != MISSING for index in figures)):
            found.add_row(*(Text(_set(row[index], intervals), style=STYLES[row[index].standing]) for index in shown))
        found.add_section()
    return found


def _has_intervals(table: TextTable) -> bool:
    return any(field.under.startswith("[") for section in table.sections for row in section for field in row)


def _fitting(table: TextTable, width: int, intervals: bool) -> list[int]:
    """The columns that have room: words, then figures by rank, then sentences."""
    shown = [index for index in range(table.words) if index != table.sentences]
    left = width - 1 - sum(_wanted(table, index, intervals) + FRAME for index in shown)
    for index in [*table.rank, *([] if table.sentences is None else [table.sentences])]:
        if (needed := _wanted(table, index, intervals) + FRAME) <= left:
            shown.append(index)
            left -= needed
    return sorted(shown)


def _wanted(table: TextTable, index: int, intervals: bool) -> int:
    """Characters of a column that is pleasant to read: figures whole, words broken where they are long."""
    longest = max(len(word) for word in table.header[index].split())
    fields = (row[index] for section in table.sections for row in section)
    wide = max(longest, *(len(line) for field in fields for line in _set(field, intervals).split("\n")))
    return min(wide, max(WORDS, longest)) if index < table.words else wide


def _set(field: Field, intervals: bool) -> str:
    """A figure with its interval, a figure and its change on a line each."""
    if field.under.startswith("["):
        return field.whole if intervals else field.text
    return f"{field.text}\n{field.under}".rstrip()
