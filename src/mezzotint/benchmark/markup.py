"""Tables as Markdown and as LaTeX. What is best of its bits, or a clear change, is bold; within the spread, italic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mezzotint.benchmark.fields import MINUS, TextTable


def markdown(tables: Sequence[TextTable], missing: Sequence[str]) -> str:
    """All tables as Markdown."""
    marks = {"best": "**", "clear": "**", "within": "*", "": ""}
    parts = []
    for table in tables:
        lines = [f"## {table.title}", "", f"{table.caption}.", ""]
        align = ["---"] * table.words + ["---:"] * (len(table.header) - table.words)
        lines += [_row(map(_plain, table.header)), _row(align)]  # Markdown knows no rules between sections
        for section in table.sections:
            for row in section:
                lines.append(_row(f"{marks[f.standing]}{_plain(f.whole)}{marks[f.standing]}" for f in row))
        parts.append("\n".join([*lines, "", *(f"- {note}" for note in table.notes)]).rstrip())
    if missing:
        parts.append("\n".join(["## Not run", "", *(f"- {name}" for name in missing)]))
    return "\n\n".join(parts) + "\n"


def _row(fields: Iterable[str]) -> str:
    return "| " + " | ".join(fields) + " |"


def _plain(text: str) -> str:
    """Text that Markdown leaves alone inside a table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


def latex(tables: Sequence[TextTable], missing: Sequence[str]) -> str:
    """All tables as LaTeX, each a `table` with the rules of booktabs."""
    marks = {"best": r"\textbf{%s}", "clear": r"\textbf{%s}", "within": r"\textit{%s}", "": "%s"}
    parts = [r"% needs \usepackage{booktabs}"]
    for table in tables:
        columns = "".join(_alignment(table, index) for index in range(len(table.header)))
        lines = [r"\begin{table}", r"\centering", r"\begin{tabular}{" + columns + "}", r"\toprule"]
        lines += [" & ".join(map(tex, table.header)) + r" \\"]
        for section in table.sections:
            lines.append(r"\midrule")
            lines += [" & ".join(marks[f.standing] % tex(f.whole) for f in row) + r" \\" for row in section]
        notes = " ".join(f"{note[:1].upper()}{note[1:]}." for note in table.notes)
        caption = f"{table.title}. {table.caption}. {notes}".strip()
        lines += [r"\bottomrule", r"\end{tabular}", r"\caption{" + tex(caption) + "}", r"\end{table}"]
        parts.append("\n".join(lines))
    parts += [f"% not run: {name}" for name in missing]
    return "\n\n".join(parts) + "\n"


def _alignment(table: TextTable, index: int) -> str:
    """How LaTeX sets a column: sentences in a box that breaks lines."""
    if index >= table.words:
        return "r"
    return "p{5cm}" if index == table.sentences else "l"


TEX = {
    "\\": r"\textbackslash{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "∞": r"$\infty$",
    MINUS: "$-$",
    "–": "--",
    "é": r"\'e",
    "×": r"$\times$",
}


def tex(text: str) -> str:
    """Text as LaTeX sets it."""
    return "".join(TEX.get(char, char) for char in text)
