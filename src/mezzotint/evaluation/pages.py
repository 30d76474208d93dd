"""What every page shares: the templates, how numbers are set, and how a page is written.

Everything is inside the file: pictures as PNG data URIs, charts as inline SVG, one style sheet, a few lines of script
for the sliders. A content security policy in the page forbids every request. All text is escaped by Jinja, the names
of users' models included. Numbers stand in `<data value="...">` elements, so a page can be read back by a machine with
full precision.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mezzotint.errors import OutputError
from mezzotint.evaluation import charts


def render_page(template: str, context: Mapping[str, Any]) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("mezzotint.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "bytes": as_bytes, "loss": as_loss}
    return environment.get_template(template).render(**context)


def write_page(html: str, path: str | Path) -> Path:
    """Writes a page and returns its path; an existing file is replaced only once the new one is complete."""
    path = Path(path)
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(html)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot write the report: {error}") from error
    return path


def number(value: float | int, digits: int = 2, unit: str = "") -> Markup:
    """A number for people, with its full value for machines; thousands are set apart by thin spaces."""
    text = "∞" if value == float("inf") else f"{value:,.{digits}f}".replace(",", "\u202f").replace("-", "\u2212")
    return Markup('<data value="{}">{}</data>{}').format(repr(value), text, f"\u00a0{unit}" if unit else "")


def as_bytes(value: int) -> Markup:
    """Bytes in MB (10**6) or kB."""
    unit, size = ("MB", 1e6) if value >= 1e6 else ("kB", 1e3)
    return Markup('<data value="{}">{}</data>\u00a0{}').format(value, f"{value / size:,.2f}", unit)


def as_loss(value: float | int | None) -> Markup | str:
    """A loss with three digits."""
    return "–" if value is None else Markup('<data value="{}">{}</data>').format(repr(value), f"{value:.3g}")


def settings(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Names and values of a nested config, flat: `sampler.steps`, `100`."""
    rows: list[tuple[str, str]] = []
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            rows += settings(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)))
    return rows


def unit_summary(units: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many units kept what, and the unit that gained most, for the sentence under the heading."""
    learned = [unit for unit in units if unit.get("kept") == "learned" and unit.get("learned_loss")]
    best = max(learned, key=lambda unit: unit["nearest_loss"] / unit["learned_loss"], default=None)
    return {
        "learned": sum(unit.get("kept") == "learned" for unit in units),
        "nearest": sum(unit.get("kept") == "nearest" for unit in units),
        "best": best and {"name": best["name"], "gain": best["nearest_loss"] / best["learned_loss"]},
    }


def two_widths(chart: Any, source: Any) -> list[dict[str, Any]]:
    """The chart laid out wide and narrow, or nothing if there is no source."""
    return [chart(source, width) for width in (charts.WIDE, charts.NARROW)] if source else []
