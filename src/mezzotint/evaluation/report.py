"""The report: one HTML file that a person wants to look at, and can open on a train.

Everything is inside the file: pictures as PNG data URIs, charts as inline SVG, one style sheet, a few lines of script
for the slider. A content security policy in the page forbids every request. All text is escaped by Jinja, the names
of users' models included. Numbers stand in `<data value="...">` elements, so the page can be read back by a machine
with full precision.

The page is built from three sources: the `Evaluation`, the images it was measured on, and the manifest of the
quantized model, which may lack what its recipe did not do (nearest rounding selects nothing and reconstructs
nothing); such a section says so.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel
from torch import Tensor

from mezzotint.errors import ConfigError, OutputError
from mezzotint.evaluation import charts, pictures
from mezzotint.evaluation.result import Evaluation
from mezzotint.evaluation.verdict import GRADES, bits_in_words, verdict

TEMPLATE = "report.html.j2"
DIFFERENCE_GAIN = 8.0
SMALL_IMAGE = 96  # pixels; images up to this size are enlarged with hard edges, larger ones shown in smaller number
PAIRS, PAIRS_OF_LARGE = 8, 4
SHEET_PIXELS = 400_000  # of one contact sheet; caps how many images it holds
PLATE_IMAGES = 9


def write_report(
    evaluation: Evaluation,
    float_images: Float[Tensor, "n c h w"],
    quantized_images: Float[Tensor, "n c h w"],
    manifest: BaseModel | Mapping[str, Any] | None,
    path: str | Path,
) -> Path:
    """Writes the report and returns its path; an existing file is replaced only once the new one is complete.

    Args:
        evaluation: from `evaluate`.
        float_images, quantized_images: the images it was measured on, row n from seed `evaluation.seed + n`.
        manifest: of the quantized model; if it is None or lacks a field, the section says what is missing.
    """
    html = render_report(evaluation, float_images, quantized_images, manifest)
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


def render_report(
    evaluation: Evaluation,
    float_images: Float[Tensor, "n c h w"],
    quantized_images: Float[Tensor, "n c h w"],
    manifest: BaseModel | Mapping[str, Any] | None,
) -> str:
    """The page as text."""
    if float_images.shape != quantized_images.shape or len(float_images) != evaluation.samples:
        raise ConfigError(
            f"report: the evaluation is of {evaluation.samples} pairs, got images {list(float_images.shape)} and "
            f"{list(quantized_images.shape)}"
        )
    environment = Environment(
        loader=PackageLoader("mezzotint.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "bytes": as_bytes, "loss": as_loss}
    data = manifest.model_dump(mode="json") if isinstance(manifest, BaseModel) else dict(manifest or {})
    return environment.get_template(TEMPLATE).render(context(evaluation, float_images, quantized_images, data))


def context(evaluation: Evaluation, a: Tensor, b: Tensor, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the template reads."""
    results = manifest.get("results") or {}
    small = max(a.shape[-2:]) <= SMALL_IMAGE
    shown = PAIRS if small else PAIRS_OF_LARGE
    return {
        "e": evaluation,
        "bits": bits_in_words(evaluation.bits),
        "verdict": verdict(evaluation),
        "grades": GRADES,
        "gain": f"{DIFFERENCE_GAIN:g}",
        "pixelated": small,
        "plate": pictures.data_uri(pictures.grid(b[:PLATE_IMAGES], columns=3, gap=1)),
        "sheet": contact_sheet(a, b),
        "first_pairs": pairs(evaluation, a, b, range(min(shown, len(a)))),
        "worst_pairs": pairs(evaluation, a, b, worst_rows(evaluation, shown)),
        "selection": _two_widths(charts.selection_chart, results.get("selection")),
        "units": _two_widths(charts.units_chart, results.get("units")),
        "unit_summary": unit_summary(results.get("units") or []),
        "sqnr": _two_widths(charts.sqnr_chart, [row.model_dump() for row in evaluation.steps]),
        "config": settings(manifest.get("config") or {}),
        "sampler": settings(evaluation.sampler),
        "float_modules": manifest.get("float_modules"),
        "recipe_seconds": results.get("seconds") or {},
        "provenance": provenance(evaluation, manifest),
    }


def contact_sheet(a: Tensor, b: Tensor) -> dict[str, Any]:
    """The first images of both models as two sheets of the same size, for the slider."""
    columns = min(8, len(a))
    rows = max(1, min(4, len(a) // columns, SHEET_PIXELS // (columns * a.shape[-1] * a.shape[-2])))
    count = rows * columns
    sheets = [pictures.grid(images[:count], columns, gap=0) for images in (a, b)]
    return {
        "float": pictures.data_uri(sheets[0]),
        "quantized": pictures.data_uri(sheets[1]),
        "width": sheets[0].shape[-1],
        "height": sheets[0].shape[-2],
        "count": count,
    }


def pairs(evaluation: Evaluation, a: Tensor, b: Tensor, rows: Any) -> list[dict[str, Any]]:
    """Float image, quantized image and their amplified difference for some rows."""
    return [
        {
            "seed": evaluation.seed + row,
            "psnr": evaluation.paired.psnr_images[row],
            "label": evaluation.conditions[row] if evaluation.conditions else None,
            "float": pictures.data_uri(a[row]),
            "quantized": pictures.data_uri(b[row]),
            "difference": pictures.data_uri(pictures.difference(a[row], b[row], DIFFERENCE_GAIN)),
        }
        for row in rows
    ]


def worst_rows(evaluation: Evaluation, count: int) -> list[int]:
    """The rows with the lowest PSNR, worst first."""
    psnr = torch.tensor(evaluation.paired.psnr_images)
    return psnr.argsort(stable=True)[:count].tolist()


def unit_summary(units: list[Mapping[str, Any]]) -> dict[str, Any]:
    """How many units kept what, and the unit that gained most, for the sentence under the heading."""
    learned = [unit for unit in units if unit.get("kept") == "learned" and unit.get("learned_loss")]
    best = max(learned, key=lambda unit: unit["nearest_loss"] / unit["learned_loss"], default=None)
    return {
        "learned": sum(unit.get("kept") == "learned" for unit in units),
        "nearest": sum(unit.get("kept") == "nearest" for unit in units),
        "best": best and {"name": best["name"], "gain": best["nearest_loss"] / best["learned_loss"]},
    }


def settings(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Names and values of a nested config, flat: `sampler.steps`, `100`."""
    rows: list[tuple[str, str]] = []
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            rows += settings(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)))
    return rows


def provenance(evaluation: Evaluation, manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What one needs to make the same page again."""
    base, last = manifest.get("base") or {}, evaluation.seed + evaluation.samples - 1
    rows = [
        ("float model", str(base.get("name") or evaluation.model)),
        ("float weights sha256", str(base.get("sha256") or "not recorded")),
        ("licence", str(base.get("licence") or "not recorded")),
        ("quantized on", str(manifest.get("created") or "not recorded")),
        ("quantized with", f"mezzotint {manifest.get('mezzotint_version') or 'unknown'}"),
        *((f"{name} seed", str(value)) for name, value in (manifest.get("seeds") or {}).items()),
        ("evaluation seeds", f"{evaluation.seed} to {last}"),
        ("device", evaluation.device),
        *((name, text) for name, text in evaluation.versions.model_dump().items()),
    ]
    files = manifest.get("files") or {}
    return rows + [(name, f"sha256 {entry.get('sha256', 'not recorded')}") for name, entry in files.items()]


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


def _two_widths(chart: Any, source: Any) -> list[dict[str, Any]]:
    """The chart laid out wide and narrow, or nothing if there is no source."""
    return [chart(source, width) for width in (charts.WIDE, charts.NARROW)] if source else []
