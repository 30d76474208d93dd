"""The report: one HTML file that a person wants to look at, and can open on a train.

The page is built from three sources: the `Evaluation`, the images it was measured on, and the manifest of the
quantized model, which may lack what its recipe did not do (nearest rounding selects nothing and reconstructs
nothing); such a section says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import BaseModel
from torch import Tensor

from mezzotint.errors import ConfigError
from mezzotint.evaluation import charts, pictures
from mezzotint.evaluation.pages import render_page, settings, two_widths, unit_summary, write_page
from mezzotint.evaluation.result import Evaluation
from mezzotint.evaluation.verdict import GRADES, bits_in_words, verdict

TEMPLATE = "report.html.j2"
DIFFERENCE_GAIN = 8.0
SMALL_IMAGE = 96  # pixels; images up to this size are enlarged with hard edges, larger ones shown in smaller number
PAIRS, PAIRS_OF_LARGE = 8, 4
PLATE_IMAGES = 9
WORST_LAYERS = 8


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
    return write_page(render_report(evaluation, float_images, quantized_images, manifest), path)


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
    data = manifest.model_dump(mode="json") if isinstance(manifest, BaseModel) else dict(manifest or {})
    return render_page(TEMPLATE, context(evaluation, float_images, quantized_images, data))


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
        "sheet": sheets(a, b),
        "first_pairs": pairs(evaluation, a, b, range(min(shown, len(a)))),
        "worst_pairs": pairs(evaluation, a, b, worst_rows(evaluation, shown)),
        "selection": two_widths(charts.selection_chart, results.get("selection")),
        "units": two_widths(charts.units_chart, results.get("units")),
        "unit_summary": unit_summary(results.get("units") or []),
        "sqnr": two_widths(charts.sqnr_chart, [row.model_dump() for row in evaluation.steps]),
        "layers": [{"name": layer.name, "figures": [layer.sqnr_db]} for layer in evaluation.layers[:WORST_LAYERS]],
        "config": settings(manifest.get("config") or {}),
        "sampler": settings(evaluation.sampler),
        "float_modules": manifest.get("float_modules"),
        "recipe_seconds": results.get("seconds") or {},
        "provenance": provenance(evaluation, manifest),
    }


def sheets(a: Tensor, b: Tensor) -> dict[str, Any]:
    """The first images of both models as two sheets of the same size, for the slider."""
    left, right = pictures.contact_sheet(a), pictures.contact_sheet(b)
    return {
        "float": pictures.data_uri(left.picture),
        "quantized": pictures.data_uri(right.picture),
        "width": left.picture.shape[-1],
        "height": left.picture.shape[-2],
        "count": left.count,
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
