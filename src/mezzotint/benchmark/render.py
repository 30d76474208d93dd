"""The files that a table is read in, all from the rows: Markdown, LaTeX, and the report."""

from __future__ import annotations

from pathlib import Path

from mezzotint.benchmark.markup import latex, markdown
from mezzotint.benchmark.names import missing_cells
from mezzotint.benchmark.page import render_report
from mezzotint.benchmark.rows import RowFile, write_whole
from mezzotint.benchmark.text import tables
from mezzotint.errors import ConfigError

MARKDOWN, LATEX, REPORT = "table.md", "table.tex", "report.html"


def render(folder: Path) -> list[Path]:
    """Writes the files anew and returns their paths. ConfigError if the folder holds no row."""
    file = RowFile(folder)
    rows = file.read()
    if not rows:
        raise ConfigError(f"{folder}: holds no finished cell to make a table of; run some, or name another folder")
    missing, found = missing_cells(file.planned(), rows), tables(rows)
    texts = {
        MARKDOWN: markdown(found, missing),
        LATEX: latex(found, missing),
        REPORT: render_report(rows, found, missing, folder),
    }
    for name, text in texts.items():
        write_whole(folder / name, text)
    return [folder / name for name in texts]
